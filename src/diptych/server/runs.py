"""Run folders as a page: curves of several runs over each other, what their settings differ in, samples.

Only what lies in the folder is shown, by the names that a listing of it gave: no part of a request becomes a path.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from fastapi import FastAPI
from fastapi.responses import FileResponse, JSONResponse
from starlette.types import ASGIApp

from diptych.core.errors import ConfigError
from diptych.core.program import command
from diptych.server.app import add_page
from diptych.server.counts import Counts
from diptych.server.errors import answer_problems
from diptych.server.guard import Guard
from diptych.server.limits import Limits
from diptych.server.problems import Problem
from diptych.server.run_reader import CONFIG, EVENTS, PICTURES, printable, read_run
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
    readers = Workers("runs", num=2)

    @app.get("/api/runs")
    async def runs() -> JSONResponse:
        """All of them, as they are now; one that cannot be read has the reason as `unreadable`."""
        return JSONResponse(await _in_thread(readers, partial(_all_runs, folder)))

    @app.get("/api/run")
    async def run(name: str) -> JSONResponse:
        """Curves, messages and settings of one."""
        return JSONResponse(await _in_thread(readers, partial(_one_run, folder, name)))

    @app.get("/api/picture")
    async def picture(name: str, file: str) -> FileResponse:
        """One that the run drew."""
        path = await _in_thread(readers, partial(_named, folder, name))
        if file not in PICTURES or not (path / file).is_file():
            raise Problem(404, "the run has no such picture")
        return FileResponse(path / file, headers={"Cache-Control": "no-cache"})

    add_page(app, "curves")
    return Guard(app, limits=Limits(), counts=Counts(), hosts=hosts)


async def _in_thread(readers: Workers, call: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(readers, call)


def _all_runs(folder: Path) -> list[dict[str, Any]]:
    return [read_run(name, path, is_whole=False) for name, path in find_runs(folder).items()]


def _one_run(folder: Path, name: str) -> dict[str, Any]:
    return read_run(name, _named(folder, name), is_whole=True)


def _is_run(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and (folder / EVENTS).is_file()


def _named(folder: Path, name: str) -> Path:
    path = find_runs(folder).get(name)
    if path is None:
        raise Problem(404, "there is no such run")
    return path
