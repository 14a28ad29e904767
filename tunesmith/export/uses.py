"""The folder of an export, and the commands that use it."""

from pathlib import Path

from tunesmith.errors import quoted
from tunesmith.run import Run


def folder_of(run: Run, to: str) -> Path:
    """Returns the folder that a run's export is written to if no other is named."""
    return run.folder / (to if run.folder / to != run.result else f"{to}-export")


def commands_for(form: str, folder: Path) -> list[str]:
    """Returns commands that use an export of this form, to copy."""
    files = sorted(folder.glob("*.gguf"))
    if files and form == "gguf":
        return [f"tunesmith serve {quoted(files[0])}", f"llama-server -m {quoted(files[0])}"]
    if form == "merged":
        return [f"tunesmith serve {quoted(folder)}", f"vllm serve {quoted(folder)}"]
    return [f"vllm serve {quoted(folder)}"] if form in ("fp8", "int4") else []
