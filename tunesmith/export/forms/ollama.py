"""A folder for `ollama create`: the GGUF and a Modelfile whose template is worked out from the chat template.

What the chat template writes between one message and the next is seen by rendering conversations, and becomes a Go
template. It holds for an optional system message and then turns of user and assistant; that it writes the same is
shown on conversations (parity). Not expressed in it: tools, and that whitespace around messages is trimmed.
"""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from tunesmith.data.rows import RowProblem
from tunesmith.data.tokenizer import Tokenizer
from tunesmith.errors import UserError
from tunesmith.export.forms import gguf
from tunesmith.export.parity.in_ollama import Ollama, create, installed
from tunesmith.export.parity.probes import most_tokens
from tunesmith.files import read_json, write_atomic, write_json
from tunesmith.finetune.prepared import Prepared
from tunesmith.run import Run

Settings = gguf.Settings
precision = gguf.precision
instead = gguf.instead
MODEL = gguf.FILE
PIECES = "template.json"
SYSTEM, FIRST, ANSWER, SECOND = "\ue000S", "\ue000U", "\ue000A", "\ue000V"  # no template writes these


@dataclass(frozen=True)
class Template:
    """The text before, between and after the contents of messages."""

    before_system: str
    system_to_user: str
    before_user: str
    user_to_assistant: str
    assistant_to_user: str
    end: str
    """After the last user message: where the model answers."""
    system_last: bool
    """Whether the system message precedes the last user message instead of the first (Mistral)."""
    trimmed: list[str]
    """Roles whose messages the chat template trims; Ollama's templates cannot."""

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "Template":
        """Raises UserError if the chat template writes no conversations of this kind."""
        user, again = {"role": "user", "content": FIRST}, {"role": "user", "content": SECOND}
        system, answer = {"role": "system", "content": SYSTEM}, {"role": "assistant", "content": ANSWER}
        try:
            plain = tokenizer.render([user, answer, again], add_generation_prompt=True)
        except RowProblem as problem:
            raise UserError(f"--to ollama: the chat template refuses a plain conversation: {problem.detail}") from None
        before_user, user_to_assistant, assistant_to_user, end = _split(plain, FIRST, ANSWER, SECOND)
        before_system, system_to_user, system_last = before_user, "\n\n", False  # of a model without system messages
        with suppress(RowProblem, UserError):
            given = tokenizer.render([system, user, answer, again], add_generation_prompt=True)
            last = given.find(FIRST) < given.find(SYSTEM)
            before_system, *others = _split(
                given, *((FIRST, ANSWER, SYSTEM, SECOND) if last else (SYSTEM, FIRST, ANSWER, SECOND))
            )
            system_to_user, system_last = others[2 if last else 0], last
        return cls(
            before_system,
            system_to_user,
            before_user,
            user_to_assistant,
            assistant_to_user,
            end,
            system_last,
            _trimmed(tokenizer, [system, user, answer, again]),
        )

    def without_bos(self, bos: str) -> "Template":
        """Ollama puts it there by itself."""
        return replace(
            self, before_system=self.before_system.removeprefix(bos), before_user=self.before_user.removeprefix(bos)
        )

    def render(self, messages: list[dict], tools: list[dict] | None = None) -> str | None:
        """As `go_text` does; None for a conversation that it does not express."""
        if tools or not _is_plain(messages) or any(_is_spaced(m) and m["role"] in self.trimmed for m in messages):
            return None
        written = system = ""
        for number, message in enumerate(messages):
            last = number == len(messages) - 1
            if message["role"] == "system":
                system = message["content"] + self.system_to_user
                written += self.before_system + ("" if self.system_last else system)
            elif message["role"] == "user":
                written += ("" if number else self.before_user) + (system if last and self.system_last else "")
                written += message["content"] + (self.end if last else self.user_to_assistant)
            else:
                written += message["content"] + self.assistant_to_user
        return written

    def go_text(self) -> str:
        """The template as Go's text/template runs it in Ollama."""

        def literal(text: str) -> str:
            return "{{ " + json.dumps(text, ensure_ascii=False) + " }}" if text else ""

        is_last = "(eq (len (slice $.Messages $i)) 1)"
        system, moved = "{{ .Content }}" + literal(self.system_to_user), ""
        if self.system_last:
            system = "{{ $system = .Content }}"
            moved = f"{{{{ if and $system {is_last} }}}}{{{{ $system }}}}{literal(self.system_to_user)}{{{{ end }}}}"
        return (
            '{{- $system := "" }}{{- range $i, $_ := .Messages }}{{- if eq .Role "system" }}'
            + literal(self.before_system)
            + system
            + '{{- else if eq .Role "user" }}{{ if eq $i 0 }}'
            + literal(self.before_user)
            + "{{ end }}"
            + moved
            + "{{ .Content }}{{ if "
            + is_last
            + " }}"
            + literal(self.end)
            + "{{ else }}"
            + literal(self.user_to_assistant)
            + '{{ end }}{{- else if eq .Role "assistant" }}{{ .Content }}'
            + literal(self.assistant_to_user)
            + "{{- end }}{{- end }}"
        )


def write(run: Run, folder: Path, settings: Settings) -> list[str]:
    """Writes the GGUF, the Modelfile and, for parity, the template's pieces; returns the GGUF's notes."""
    tokenizer = Prepared.open(run).tokenizer
    template = Template.of(tokenizer)
    notes = gguf.write(run, folder, settings)
    bos = tokenizer.bos_token if tokenizer.adds_bos else None
    stops = sorted({tokenizer.decode([i]) for i in run.plan.stop_ids})
    write_atomic(folder / "Modelfile", modelfile(template.without_bos(bos) if bos else template, stops))
    write_json(folder / PIECES, vars(template))
    return notes


def modelfile(template: Template, stops: list[str]) -> str:
    lines = [f"FROM ./{MODEL}", f'TEMPLATE """{template.go_text()}"""']
    return "\n".join(lines + [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]) + "\n"


def opened(run: Run, folder: Path, settings: Settings) -> gguf.Engine:
    """The GGUF in llama.cpp, with conversations as the Modelfile's template writes them."""
    return gguf.Engine(run, folder / MODEL, render=_writer(run, folder))


def elsewhere(run: Run, folder: Path, settings: Settings, say) -> dict:
    """Ollama, where it is installed."""
    ask = partial(Ollama, folder, Prepared.open(run).tokenizer, _writer(run, folder), most_tokens(run))
    return {"Ollama": ask} if installed() else {}


def finish(folder: Path, name: str) -> str:
    """Makes the model in Ollama where that is installed; says what was done or what is to do."""
    command = f"ollama create {name} -f Modelfile"
    if not installed():
        return f"Ollama is not installed here; where it is: cd {folder} && {command}"
    try:
        create(folder, name)
    except UserError as error:
        return f"{error}; once it is mended: cd {folder} && {command}"
    return f"made in Ollama; `ollama run {name}` talks to it"


def _writer(run: Run, folder: Path):
    """Gives conversations as the Modelfile's template writes them; None for those that it or the chat template is not
    for."""
    template, tokenizer = Template(**read_json(folder / PIECES)), Prepared.open(run).tokenizer

    def rendered(messages: list[dict], tools: list[dict] | None) -> str | None:
        with suppress(RowProblem):
            tokenizer.render(messages, tools, add_generation_prompt=True)
            return template.render(messages, tools)
        return None

    return rendered


def _is_plain(messages: list[dict]) -> bool:
    roles = [m["role"] for m in messages]
    turns = roles[1:] if roles[0] == "system" else roles
    alternate = turns == ["user", "assistant"] * (len(turns) // 2) + ["user"]
    return alternate and not any("tool_calls" in message for message in messages)


def _is_spaced(message: dict) -> bool:
    return message["content"] != message["content"].strip()


def _trimmed(tokenizer: Tokenizer, messages: list[dict]) -> list[str]:
    """Roles whose content loses the whitespace around it."""
    spaced = [m | {"content": f"\n {m['content']} \n"} for m in messages]
    try:
        text = tokenizer.render(spaced, add_generation_prompt=True)
    except RowProblem:  # a model without system messages
        spaced = spaced[1:]
        text = tokenizer.render(spaced, add_generation_prompt=True)
    return sorted({m["role"] for m in spaced if m["content"] not in text})


def _split(text: str, *contents: str) -> list[str]:
    """Returns the text around the contents. Each content must occur once, in order."""
    pieces = []
    for content in contents:
        before, found, text = text.partition(content)
        if not found or content in text:
            raise UserError(
                "--to ollama: the chat template does not write each message once and in order, so it "
                "cannot be an Ollama template; --to gguf carries the chat template itself"
            )
        pieces.append(before)
    return [*pieces, text]
