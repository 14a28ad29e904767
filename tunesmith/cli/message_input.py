"""Reads the user's messages from a terminal or a pipe."""

import sys

from rich.console import Console


class MessageInput:
    """Reads messages. On a terminal it is a line editor with arrow keys and history, in which pasted lines are one
    message. Elsewhere each line is a message."""

    def __init__(self, console: Console):
        self._console = console
        self._editor = None
        if sys.stdin.isatty() and sys.stdout.isatty():
            self._editor = _editor()
        else:
            sys.stdin.reconfigure(errors="replace")

    def read(self, name: str) -> str | None:
        """Prompts with `name` and returns the next message that is not empty, or None at the end of input."""
        while True:
            try:
                message = self._console.input(f"[bold]{name}[/] > ") if self._editor is None else self._edited(name)
            except EOFError:
                self._console.print()
                return None
            except KeyboardInterrupt:
                if self._editor is None:
                    self._console.print()
                    return None
                if not self._editor.default_buffer.text:
                    self._console.print("Ctrl-D or /quit ends.", style="dim")
                continue
            if message.strip():
                return message

    def _edited(self, name: str) -> str:
        message = self._editor.prompt([("bold", name), ("", " > ")])
        return message.encode("utf-8", "surrogateescape").decode("utf-8", "replace")  # bytes that are not UTF-8


def _editor():
    from prompt_toolkit import PromptSession
    from prompt_toolkit.key_binding import KeyBindings
    from prompt_toolkit.output import create_output

    keys = KeyBindings()

    @keys.add("enter")
    def _(event):
        event.current_buffer.validate_and_handle()

    # A terminal without bracketed paste sends line breaks in pasted text as Ctrl-J.
    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event):
        event.current_buffer.newline(copy_margin=False)

    # The editor queries the cursor position only for menus, and warns if the terminal does not answer.
    output = create_output()
    output.enable_cpr = False
    return PromptSession(multiline=True, key_bindings=keys, prompt_continuation="", output=output)
