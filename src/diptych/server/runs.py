"""Run folders as a page: curves of several runs over each other, what their settings differ in, samples.

Only what lies in the folder is shown, by the names that a listing of it gave: no part of a request becomes a path.
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
from diptych.server.errors import answer_problems
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
    """Run folders by name: those in a folder and its subfolders, or the folder itself.

    Raises:
        ConfigError: there is no such folder, or it has none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    if _is_run(folder):
        return {printable(folder.resolve().name): folder}
    found = {}
    for place, below, _ in os.walk(folder):
        if _is_run(Path(place)):
            found[printable(str(Path(place).relative_to(folder)))] = Path(place)
            below.clear()  # Checkpoints and pictures hold no runs.
        below[:] = sorted(name for name in below if not name.startswith("."))
    if not found:
        raise ConfigError(f"{folder}: holds no run; {command('train')} makes one")
    return found


def create_runs_app(folder: Path, *, hosts: Sequence[str] = ()) -> ASGIApp:
    """What uvicorn serves."""
    app = FastAPI(title="Diptych runs", docs_url=None, redoc_url=None, redirect_slashes=False)
    answer_problems(app)
    threads, reader = Workers("runs", num=2), RunReader()

    def all_runs() -> list[dict[str, Any]]:
        return reader.summaries(find_runs(folder))

    def one_run(name: str) -> dict[str, Any]:
        return reader.whole(name, _named(folder, name))

    @app.get("/api/runs")
    async def runs(request: Request) -> Response:
        """All of them, as they are now; one that cannot be read has the reason as `unreadable`."""
        return await _in_thread(threads, partial(_answer, request, all_runs))

    @app.get("/api/run")
    async def run(request: Request, name: str) -> Response:
        """Curves, messages and settings of one."""
        return await _in_thread(threads, partial(_answer, request, partial(one_run, name)))

    @app.get("/api/picture")
    async def picture(name: str, file: str) -> FileResponse:
        """One that the run drew."""
        path = await _in_thread(threads, partial(_named, folder, name))
        if file not in PICTURES or not (path / file).is_file():
            raise Problem(404, "the run has no such picture")
        return FileResponse(path / file, headers={"Cache-Control": "no-cache"})

    add_page(app, "curves")
    return Guard(app, limits=Limits(), counts=Counts(), hosts=hosts)


async def _in_thread(threads: Workers, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, call)


def _answer(request: Request, read: Callable[[], Any]) -> Response:
    """What was read as JSON with an ETag; 304 without content if the client has it already."""
    answer = JSONResponse(read(), headers={"Cache-Control": "no-cache"})
    tag = f'"{hashlib.blake2b(answer.body, digest_size=16).hexdigest()}"'
    answer.headers["ETag"] = tag
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers={"Cache-Control": "no-cache", "ETag": tag})
    return answer


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / EVENTS).is_file()


def _named(folder: Path, name: str) -> Path:
    path = find_runs(folder).get(name)
    if path is None:
        raise Problem(404, "there is no such run")
    return path
