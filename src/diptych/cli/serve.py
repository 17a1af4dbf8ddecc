"""`diptych serve`, `diptych runs serve`."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.loading import DEFAULT_LOADING, BundlePath, IndexPlace, Loading
from diptych.cli.output import say, warn
from diptych.core.errors import ConfigError

if TYPE_CHECKING:
    from socket import socket

    from starlette.types import ASGIApp

Host = Annotated[str, Parameter(help="Address to listen at; 0.0.0.0 lets other machines in.")]
Port = Annotated[int, Parameter(help="Port to listen at; 0 for a free one.")]


def serve(
    bundle: BundlePath,
    /,
    *,
    index: Annotated[IndexPlace | None, Parameter(help="Pictures to search: a folder or an address.")] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: Annotated[
        Path | None, Parameter(help="Keys, one a line; without one of them only the health routes answer.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, Parameter(help="Name by which a proxy asks for it; several may be given.", negative="")
    ] = None,
    batch: Annotated[int, Parameter(help="Texts that go through the model at once; a quarter as many pictures.")] = 64,
    window_ms: Annotated[float, Parameter(help="Milliseconds that the first of a batch waits for others.")] = 2.0,
    waiting: Annotated[
        int,
        Parameter(
            help="Maximum number of waiting texts; a quarter as many pictures may wait. Further requests get 429."
        ),
    ] = 4096,
    deadline: Annotated[float, Parameter(help="Seconds that a request may take.")] = 30.0,
    body_mb: Annotated[int, Parameter(help="MiB of a request's body.")] = 32,
    loading: Loading = DEFAULT_LOADING,
) -> None:
    """Put a bundle, and the search page of an index, behind an address."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # Threads of several models share the cores.
    if loading.urls:
        raise ConfigError("a server reads no URLs: who names them would have it fetch what they cannot reach")
    _need_extra()
    from diptych.index.open_index import open_index
    from diptych.search.collection import check_model
    from diptych.server.app import create_app
    from diptych.server.keys import read_keys
    from diptych.server.limits import Limits
    from diptych.server.run import bind_socket, is_loopback, allowed_hosts

    limits = Limits(batch=batch, window_ms=window_ms, waiting=waiting, deadline_s=deadline, body_mb=body_mb)
    keys = read_keys(api_key_file)
    with bind_socket(host, port) as listening, ExitStack() as held:
        opened = None if index is None else held.enter_context(open_index(index, timeout_s=deadline))
        clip = loading.load(bundle)
        said = ""
        if opened is not None:
            check_model(opened, clip)
            said = f", {len(opened):,} pictures of {opened.place}"
        app = create_app(
            clip,
            opened,
            limits=limits,
            keys=keys,
            hosts=allowed_hosts(host, allowed_host or []),
            has_absolute_paths=is_loopback(host) and not keys and not allowed_host,
        )
        say(f"Serving {bundle}{said}")
        _warn_if_public(host, keys)
        _until_signal(app, listening)


def serve_runs(
    runs: Annotated[Path, Parameter(help="Folder of run folders, or one of them.")] = Path("runs"),
    /,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8001,
) -> None:
    """Show run folders as a page: curves over each other, what their settings differ in, samples."""
    _need_extra()
    from diptych.server.run import bind_socket, allowed_hosts
    from diptych.server.runs import create_runs_app, find_runs

    found = find_runs(runs)
    with bind_socket(host, port) as listening:
        say(f"{len(found)} runs of {runs}")
        _warn_if_public(host, [])
        _until_signal(create_runs_app(runs, hosts=allowed_hosts(host, [])), listening)


def _until_signal(app: "ASGIApp", listening: "socket") -> None:
    from diptych.server.run import base_url, exit_if_stuck
    from diptych.server.run import serve as run

    say(f"Open {base_url(listening)}   (Ctrl-C ends it)")
    run(app, listening)
    say("Stopped; what was under way was answered")
    exit_if_stuck()


def _warn_if_public(host: str, keys: list[str]) -> None:
    from diptych.server.run import is_loopback

    if not is_loopback(host) and not keys:
        warn(f"{host}: whoever reaches this machine can use it and see all pictures; --api-key-file asks for a key")


def _need_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serving needs the extra 'serve' ({error.name}): pip install 'diptych[serve]'") from None
