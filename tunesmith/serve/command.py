"""`tunesmith serve`: opens the models, says what it does, and serves."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from tunesmith.errors import UserError
from tunesmith.serve.binding import bind


def run(paths: Sequence[Path], host: str, port: int, api_key: str | None, cors: Sequence[str], context: int | None,
        batch: int, queue: int, engine: str) -> None:
    """Serves runs, model folders and GGUF files until interrupted; `engine`: transformers (or llama.cpp for GGUF files)
    in this process, or vllm. Raises UserError."""
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"serve needs {' and '.join(missing)}: pip install 'tunesmith[serve]'")
    bound = bind(host, port, api_key)
    from tunesmith.serve.app import serve

    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(f"engine  {line}", markup=False, soft_wrap=True)

    opened = _open(engine, paths, context, batch, queue, say)
    for line in opened.description:
        say(line)
    for served in opened.models.values():
        of = f" of {served.base}" if served.kind == "tuned" else ""
        console.print(f"model   {served.name}: {served.kind}{of}, context {served.context:,}", markup=False)
    bound.listen()  # whoever calls from here on waits for the moment until the server is there
    address = f"[{host}]" if ":" in host else host
    console.print(f"serving http://{address}:{bound.getsockname()[1]}; Ctrl-C stops", markup=False)
    serve(opened, bound, host, api_key, cors)


def _open(engine: str, paths: Sequence[Path], context: int | None, batch: int, queue: int, say):
    if engine == "vllm":
        from tunesmith.serve.engines.vllm import open_vllm

        return open_vllm(paths, context, batch, queue, say)
    from tunesmith.serve.engines.batching import BatchingEngine
    from tunesmith.serve.models import open_models

    return BatchingEngine(open_models(paths, context), batch, queue)
