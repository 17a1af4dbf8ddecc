"""`diptych serve` and `diptych runs serve`."""

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from diptych.cli.loading import DEFAULT_LOADING, BundlePath, IndexAddress, Loading
from diptych.cli.output import print_line, warn
from diptych.core.errors import ConfigError

if TYPE_CHECKING:
    from socket import socket

    from starlette.types import ASGIApp

Host = Annotated[str, Parameter(help="Address to listen on. Use 0.0.0.0 to allow other machines.")]
Port = Annotated[int, Parameter(help="Port to listen on; 0 selects a free port.")]


def serve(
    bundle: BundlePath,
    /,
    *,
    index: Annotated[IndexAddress | None, Parameter(help="Index to search: a folder or an address.")] = None,
    host: Host = "127.0.0.1",
    port: Port = 8000,
    api_key_file: Annotated[
        Path | None, Parameter(help="File with one API key per line. Requests then need a key, except health checks.")
    ] = None,
    allowed_host: Annotated[
        list[str] | None, Parameter(help="Host name that a proxy uses for this server. Can be repeated.")
    ] = None,
    batch: Annotated[int, Parameter(help="Maximum number of texts per batch; for images, a quarter of it.")] = 64,
    window_ms: Annotated[float, Parameter(help="Time that a batch waits for more requests, in milliseconds.")] = 2.0,
    waiting: Annotated[
        int,
        Parameter(help="Maximum number of queued texts; for images, a quarter of it. Further requests get status 429."),
    ] = 4096,
    deadline: Annotated[float, Parameter(help="Maximum duration of a request in seconds.")] = 30.0,
    body_mb: Annotated[int, Parameter(help="Maximum size of a request's body in MiB.")] = 32,
    loading: Loading = DEFAULT_LOADING,
) -> None:
    """Serve a model, and the search page of an index, over HTTP."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # Spinning threads of one queue would slow the others down.
    if loading.urls:
        raise ConfigError(
            "a server reads no URLs: clients could make it fetch addresses that they cannot reach themselves"
        )
    _check_installed()
    from diptych.index.open_index import open_index
    from diptych.search.check_model import check_model
    from diptych.server.app import create_app
    from diptych.server.keys import read_keys
    from diptych.server.limits import Limits
    from diptych.server.run import allowed_hosts, bind_socket, is_loopback

    limits = Limits(batch=batch, window_ms=window_ms, waiting=waiting, deadline_s=deadline, body_mb=body_mb)
    keys = read_keys(api_key_file)
    with bind_socket(host, port) as listening, ExitStack() as held:
        opened = None if index is None else held.enter_context(open_index(index, timeout_s=deadline))
        clip = loading.load(bundle)
        clip.embedder.towers.open()
        index_summary = ""
        if opened is not None:
            check_model(opened, clip)
            index_summary = f", {len(opened):,} pictures of {opened.place}"
        app = create_app(
            clip,
            opened,
            limits=limits,
            keys=keys,
            hosts=allowed_hosts(host, allowed_host or []),
            has_absolute_paths=is_loopback(host) and not keys and not allowed_host,
        )
        print_line(f"Serving {bundle}{index_summary}")
        _warn_if_public(host, keys)
        _until_signal(app, listening)


def serve_runs(
    runs: Annotated[Path, Parameter(help="Folder of run folders, or one run folder.")] = Path("runs"),
    /,
    *,
    host: Host = "127.0.0.1",
    port: Port = 8001,
) -> None:
    """Serve a web page that compares runs: curves, differences between their settings, and samples."""
    _check_installed()
    from diptych.server.run import allowed_hosts, bind_socket
    from diptych.server.runs import create_runs_app, find_runs

    found = find_runs(runs)
    with bind_socket(host, port) as listening:
        print_line(f"{len(found)} runs of {runs}")
        _warn_if_public(host, [])
        _until_signal(create_runs_app(runs, hosts=allowed_hosts(host, [])), listening)


def _until_signal(app: "ASGIApp", listening: "socket") -> None:
    from diptych.server.run import base_url, exit_if_stuck
    from diptych.server.run import serve as run

    print_line(f"Open {base_url(listening)}   (Ctrl-C ends it)")
    run(app, listening)
    print_line("Stopped; all current requests were completed")
    exit_if_stuck()


def _warn_if_public(host: str, keys: list[str]) -> None:
    from diptych.server.run import is_loopback

    if not is_loopback(host) and not keys:
        warn(
            f"{host}: anyone who can reach this machine can use it and see all pictures; --api-key-file makes a key necessary"
        )


def _check_installed() -> None:
    try:
        import fastapi  # noqa: F401
        import httptools  # noqa: F401  (optional for uvicorn; its parser limits the size of headers)
        import prometheus_client  # noqa: F401
        import python_multipart  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"serving needs the extra 'serve' ({error.name}): pip install 'diptych[serve]'") from None
