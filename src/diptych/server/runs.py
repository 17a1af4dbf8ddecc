"""Web page that compares training runs: curves, differences between their settings, and samples.

Requests select runs by names from a listing of the folder. No part of a request becomes a path.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp

from diptych.core.errors import ConfigError
from diptych.core.program import command
from diptych.server.app import add_page
from diptych.server.errors import add_error_handlers
from diptych.server.guard import Guard
from diptych.server.limits import Limits
from diptych.server.metrics import Counts
from diptych.server.problems import Problem
from diptych.server.run_config import CONFIG
from diptych.server.run_events import EVENTS
from diptych.server.run_reader import PICTURES, RunReader, printable
from diptych.server.workers import Workers

T = TypeVar("T")


def find_runs(folder: Path) -> dict[str, Path]:
    """The run folders in a folder and its subfolders, or the folder itself if it is a run.

    Returns:
        Paths by name. The name is the path relative to `folder`, or the name of the folder itself.

    Raises:
        ConfigError: the folder does not exist, or it contains no run.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    if _is_run(folder):
        return {printable(folder.resolve().name): folder}
    runs = {}
    for parent, subfolders, _ in os.walk(folder):
        if _is_run(Path(parent)):
            runs[printable(str(Path(parent).relative_to(folder)))] = Path(parent)
            subfolders.clear()  # The folders of a run contain no other runs.
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
    if not runs:
        raise ConfigError(f"{folder}: holds no run; {command('train')} makes one")
    return runs


def create_runs_app(folder: Path, *, hosts: Sequence[str] = ()) -> ASGIApp:
    """The ASGI application of the page that shows training runs.

    Args:
        folder: a folder of run folders, or a run folder.
        hosts: names of this server that the `Host` header may contain; empty to allow any name.
    """
    app = FastAPI(title="Diptych runs", docs_url=None, redoc_url=None, redirect_slashes=False)
    add_error_handlers(app)
    threads, reader = Workers("runs", num=2), RunReader()

    @app.get("/api/runs")
    async def runs(request: Request) -> Response:
        """Return summaries of all runs. For a run that cannot be read, `unreadable` contains the reason."""
        return await _run_in_thread(threads, lambda: _respond(request, reader.summaries(find_runs(folder))))

    @app.get("/api/run")
    async def run(request: Request, name: str) -> Response:
        """Return the curves, messages and settings of one run."""
        return await _run_in_thread(threads, lambda: _respond(request, reader.details(name, _named(folder, name))))

    @app.get("/api/picture")
    async def picture(name: str, file: str) -> FileResponse:
        """Return one of the images in a run folder."""
        path = await _run_in_thread(threads, partial(_named, folder, name))
        if file not in PICTURES or not (path / file).is_file():
            raise Problem(404, "the run has no such picture")
        return FileResponse(path / file, headers={"Cache-Control": "no-cache"})

    add_page(app, "curves")
    return Guard(app, limits=Limits(), counts=Counts(), hosts=hosts)


async def _run_in_thread(threads: Workers, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, call)


def _respond(request: Request, payload: Any) -> Response:
    """The payload as JSON with an ETag, or status 304 if the client already has the same content."""
    response = JSONResponse(payload, headers={"Cache-Control": "no-cache"})
    tag = f'"{hashlib.blake2b(response.body, digest_size=16).hexdigest()}"'
    response.headers["ETag"] = tag
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"Cache-Control": "no-cache", "ETag": tag})
    return response


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / EVENTS).is_file()


def _named(folder: Path, name: str) -> Path:
    path = find_runs(folder).get(name)
    if path is None:
        raise Problem(404, "there is no such run")
    return path
