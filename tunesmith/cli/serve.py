"""`tunesmith serve`: opens the models, describes them, and serves them."""

from collections.abc import Sequence
from contextlib import ExitStack, closing
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from tunesmith.cli.parameters import DEFAULT_OUTPUT, AtLeastOne
from tunesmith.errors import UserError
from tunesmith.leases import using
from tunesmith.studio.page import CHAT_PAGE

if TYPE_CHECKING:
    from tunesmith.serve.placement import Placement


def serve(
    *models: Path,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8383,
    api_key: Annotated[str | None, Parameter(env_var="TUNESMITH_API_KEY")] = None,
    cors: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    allow_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    context: Annotated[int | None, Parameter(validator=Number(gte=2))] = None,
    batch: AtLeastOne = 64,
    queue: Annotated[int, Parameter(validator=Number(gte=0))] = 256,
    engine: Literal["here", "vllm"] = "here",
    cpu: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Serve runs and models over the APIs of OpenAI and Anthropic. A run shares the weights of its base.

    Args:
        models: Folders of runs and models, hub ids, or GGUF files; a GGUF adapter after its base.
        host: The address to listen on. An address that other machines can reach needs --api-key.
        port: The port to listen on; 0 chooses a free one.
        api_key: The key that clients must send.
        cors: Origins, like http://localhost:3000, whose pages may call the server.
        allow_host: Further allowed host names, such as this machine's name in your network.
        context: The limit on prompt and answer together, in tokens, if lower than the model's.
        batch: The most requests to compute at the same time.
        queue: The most requests that may wait; further ones get status 429.
        engine: here computes in this process, vllm in a separate vLLM process.
        cpu: Compute on the CPU, also if there is a GPU.
    """
    if not models:
        raise UserError("serve: name a run or a model")
    paths = [_served(model) for model in models]
    open_and_serve(paths, host, port, api_key, cors, allow_host, context, batch, queue, engine, cpu)


def open_and_serve(
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
    cpu: bool = False,
) -> None:
    """Serves runs, model folders and GGUF files until interrupted. `engine` is "here" (Transformers, or llama.cpp for
    GGUF files, in this process) or "vllm". The memory of GPUs that another process trains on is left alone. `cpu`: no
    GPU is used. Raises UserError."""
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"serve needs {' and '.join(missing)}: pip install 'tunesmith[serve]'")
    from tunesmith.serve.binding import check_callers, listen, own_names

    check_callers(api_key, cors, allow_host)
    bound = listen(host, port, api_key)
    from tunesmith.serve.answering import Service
    from tunesmith.serve.app import serve
    from tunesmith.serve.placement import placed
    from tunesmith.serve.registry import registered, url_of

    console = Console(stderr=True, highlight=False)

    def say(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    port = bound.getsockname()[1]
    with registered(host, port, paths, api_key) as registration, ExitStack() as loading:
        placement = loading.enter_context(placed(paths, "serving", cpu))
        opening = _open(engine, paths, context, batch, queue, placement, lambda line: say(f"engine  {line}"))
        with closing(opening) as opened, using(opened.device_bytes, "serving", paths[0]):
            loading.close()
            for line in opened.description:
                say(f"engine  {line}")
            for served in opened.models.values():
                of = f" of {served.base}" if served.kind == "tuned" else ""
                say(f"model   {served.name}: {served.kind}{of}, context {served.context:,}")

            def ready() -> None:
                models = Service(opened).facts()
                registration.update(state="ready", models=models, devices=tuple(opened.device_bytes))
                url = url_of(host, port)
                say(f"serving {url}; Ctrl-C stops. Chat page: {url}/, base URL of the APIs: {url}/v1")

            def stopping(count: int) -> None:
                detail = f"{count:,} {'answer is' if count == 1 else 'answers are'} finished"
                registration.update(state="stopping", detail=f"when {detail}" if count else "")
                if count:
                    say(f"stopping when {detail}; Ctrl-C again stops at once")

            serve(opened, bound, api_key, cors, own_names(host, allow_host), CHAT_PAGE, ready, stopping)


def _open(engine: str, paths: Sequence[Path], context: int | None, batch: int, queue: int, placement: "Placement", say):
    if engine == "vllm":
        if placement.kv_bytes is not None:
            raise UserError("--engine vllm: vLLM takes all the memory of a GPU, and other processes use each; wait")
        from tunesmith.serve.open_vllm import open_vllm

        return open_vllm(paths, context, batch, queue, say)
    from tunesmith.inference.scheduler import BatchingEngine
    from tunesmith.serve.open_models import open_models

    return BatchingEngine(open_models(paths, context), batch, queue, placement.kv_bytes)


def _served(model: Path) -> Path:
    """Returns the folder of the named run, else the model unchanged. Raises UserError for a missing folder, which would
    otherwise be taken for a hub id."""
    from tunesmith.run import Run, runs_there

    if run := Run.find(model):
        return run.folder
    if not model.exists() and (len(model.parts) == 1 or model.parent.is_dir()) and model.suffix != ".gguf":
        raise UserError(f"no folder {model}, and no such run: {runs_there(model, DEFAULT_OUTPUT)}")
    return model
