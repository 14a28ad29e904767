"""`tunesmith serve`: opens the models, says what it does, and serves."""

from collections.abc import Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console

from tunesmith.errors import UserError
from tunesmith.serve.binding import check_callers, listen, own_names


def run(
    paths: Sequence[Path],
    host: str,
    port: int,
    api_key: str | None,
    cors: Sequence[str],
    allow_host: Sequence[str],
    context: int | None,
    batch: int,
    queue: int,
    engine: str,
) -> None:
    """Serves runs, model folders and GGUF files until interrupted; `engine`: transformers (or llama.cpp for GGUF files)
    in this process, or vllm. Raises UserError."""
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"serve needs {' and '.join(missing)}: pip install 'tunesmith[serve]'")
    check_callers(api_key, cors, allow_host)
    bound = listen(host, port, api_key)
    from tunesmith.serve.app import serve

    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    with closing(_open(engine, paths, context, batch, queue, lambda line: say(f"engine  {line}"))) as opened:
        for line in opened.description:
            say(f"engine  {line}")
        for served in opened.models.values():
            of = f" of {served.base}" if served.kind == "tuned" else ""
            say(f"model   {served.name}: {served.kind}{of}, context {served.context:,}")
        address = f"[{host}]" if ":" in host else host
        url = f"http://{address}:{bound.getsockname()[1]}"
        ready = f"serving {url}; Ctrl-C stops. Chat page: {url}/, base URL of the APIs: {url}/v1"
        serve(opened, bound, api_key, cors, own_names(host, allow_host), ready, say)


def _open(engine: str, paths: Sequence[Path], context: int | None, batch: int, queue: int, say):
    if engine == "vllm":
        from tunesmith.serve.open_vllm import open_vllm

        return open_vllm(paths, context, batch, queue, say)
    from tunesmith.inference.scheduler import BatchingEngine
    from tunesmith.serve.open_models import open_models

    return BatchingEngine(open_models(paths, context), batch, queue)
