"""`tunesmith studio`: the workstation in a browser."""

import secrets
import socket
import webbrowser
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number
from rich.console import Console

from tunesmith.cli.parameters import DEFAULT_OUTPUT
from tunesmith.errors import UserError

KEY_VARIABLE = "TUNESMITH_STUDIO_KEY"


def studio(
    *,
    host: str = "127.0.0.1",
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535))] = 8384,
    key: Annotated[str | None, Parameter(env_var=KEY_VARIABLE)] = None,
    allow_host: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    allow_changes: Annotated[bool, Parameter(negative="")] = False,
    root: Annotated[tuple[Path, ...], Parameter(negative="")] = (),
    output: Path = DEFAULT_OUTPUT,
    upload_limit: Annotated[float, Parameter(validator=Number(gt=0))] = 20,
    open_browser: Annotated[bool, Parameter(name="--open")] = True,
) -> None:
    """Open the workstation in the browser: data, recipes, the queue, runs, chat, exports and servers. Ctrl-C ends the
    studio; jobs and servers continue without it.

    Args:
        host: The address to listen on. An address that other machines can reach needs --key.
        port: The port to listen on; 0 chooses a free one.
        key: The key that a browser must know. By default a new one at each start, in the address that is printed.
        allow_host: Further allowed host names, such as this machine's name in your network.
        allow_changes: Also let other machines change things, where --host lets them see them.
        root: A further folder whose files the page may see and use. The first is the current one.
        output: The folder of runs.
        upload_limit: The largest file that the page may send, in GB.
        open_browser: --no-open only prints the address.
    """
    if missing := [name for name in ("fastapi", "uvicorn") if find_spec(name) is None]:
        raise UserError(f"studio needs {' and '.join(missing)}: pip install 'tunesmith[serve]'")
    from tunesmith.serve.binding import check_callers, is_loopback, listen
    from tunesmith.studio.server import run_studio

    if missing_root := next((one for one in root if not one.is_dir()), None):
        raise UserError(f"--root {missing_root}: there is no such folder")
    key_flag = f"--key (or {KEY_VARIABLE})"
    check_callers(key, (), allow_host, key_flag)
    bound = listen(host, port, key, key_flag)
    token = key or secrets.token_urlsafe(32)
    names = ["localhost", host.lower(), socket.gethostname().lower(), *allow_host]
    folder = Path.cwd()
    console = Console(stderr=True, highlight=False)
    address = f"[{host}]" if ":" in host else host
    url = f"http://{address}:{bound.getsockname()[1]}/#token={token}"

    def ready() -> None:
        console.print(f"studio  {url}\n        Ctrl-C ends it; jobs and servers continue", markup=False, soft_wrap=True)
        if open_browser:
            webbrowser.open(url)

    read_only, upload_bytes = not (is_loopback(host) or allow_changes), int(upload_limit * 10**9)
    run_studio(folder, [folder, *root], [output], bound, token, names, read_only, upload_bytes, ready)
