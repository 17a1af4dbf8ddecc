"""Run folders as a page: curves of several runs over each other, what their settings differ in, samples.

Only what lies in the folder is shown, by the names that a listing of it gave: no part of a request becomes a path.
"""

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from fastapi import FastAPI
from fastapi.responses import FileResponse
from starlette.types import ASGIApp

from diptych.core.errors import ConfigError
from diptych.server.app import add_page
from diptych.server.counts import Counts
from diptych.server.guard import Guard
from diptych.server.limits import Limits
from diptych.server.problems import Problem, answer_problems

_CONFIG, _EVENTS = "config.yaml", "events.jsonl"
_MAX_POINTS = 2000
_PICTURES = ("curves.png", "samples.png", "search.png")
_ABOUT = frozenset({"step", "epoch", "progress", "elapsed_s", "seconds_left", "skipped"})
"""Of a logged step: where it stands, no curve."""


def find_runs(folder: Path) -> dict[str, Path]:
    """Run folders by name: those in a folder and its subfolders, or the folder itself.

    Raises:
        ConfigError: there is no such folder, or it has none.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such folder")
    if _is_run(folder):
        return {folder.resolve().name: folder}
    found = {}
    for place, below, _ in os.walk(folder):
        if _is_run(Path(place)):
            found[str(Path(place).relative_to(folder))] = Path(place)
            below.clear()  # Checkpoints and pictures hold no runs.
        below[:] = sorted(name for name in below if not name.startswith("."))
    if not found:
        raise ConfigError(f"{folder}: holds no run; diptych train makes one")
    return found


def create_runs_app(folder: Path, *, hosts: Sequence[str] = ()) -> ASGIApp:
    """What uvicorn serves."""
    app = FastAPI(title="Diptych runs", docs_url=None, redoc_url=None, redirect_slashes=False)
    answer_problems(app)

    @app.get("/api/runs")
    def runs() -> list[dict[str, Any]]:
        """All of them, as they are now."""
        return [_summary(name, path, _events(path)) for name, path in find_runs(folder).items()]

    @app.get("/api/run")
    def run(name: str) -> dict[str, Any]:
        """Curves, messages and settings of one."""
        path = _named(folder, name)
        events = list(_events(path))
        return {**_summary(name, path, events), **_curves(events), "settings": dict(_flat(_settings(path)))}

    @app.get("/api/picture")
    def picture(name: str, file: str) -> FileResponse:
        """One that the run drew."""
        path = _named(folder, name)
        if file not in _PICTURES or not (path / file).is_file():
            raise Problem(404, "the run has no such picture")
        return FileResponse(path / file, headers={"Cache-Control": "no-cache"})

    add_page(app, "curves")
    return Guard(app, limits=Limits(), counts=Counts(), hosts=hosts)


def _is_run(folder: Path) -> bool:
    return (folder / _CONFIG).is_file() and (folder / _EVENTS).is_file()


def _named(folder: Path, name: str) -> Path:
    path = find_runs(folder).get(name)
    if path is None:
        raise Problem(404, "there is no such run")
    return path


def _summary(name: str, path: Path, events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    last: dict[str, Any] = {}
    for event in events:
        last |= {key: value for key, value in event.items() if _is_figure(value)}
    settings = _settings(path)
    return {
        "name": name,
        "recipe": settings.get("recipe"),
        "data": (settings.get("data") or {}).get("source"),
        "step": last.get("step", 0),
        "elapsed_s": last.get("elapsed_s"),
        "loss": last.get("loss"),
        "is_done": (path / "bundle").is_dir(),
        "last": {key: value for key, value in last.items() if key.startswith("val_")},
        "pictures": [file for file in _PICTURES if (path / file).is_file()],
    }


def _curves(events: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """By figure its points (step, seconds, value), thinned out where there are more than a page can show."""
    curves: dict[str, list[tuple[int, float, float]]] = {}
    messages, seconds = [], 0.0
    for event in events:
        if "message" in event:
            messages.append(str(event["message"]))
            continue
        seconds = event.get("elapsed_s", seconds)
        for key, value in event.items():
            if key not in _ABOUT and _is_figure(value):
                curves.setdefault(key, []).append((event.get("step", 0), seconds, value))
    return {"curves": {key: _thinned(points) for key, points in curves.items()}, "messages": messages[-200:]}


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _thinned(points: list[tuple[int, float, float]]) -> list[tuple[int, float, float]]:
    apart = -(-len(points) // _MAX_POINTS)
    return points if apart == 1 else [*points[:-1:apart], points[-1]]


def _events(path: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; the last may be half written."""
    try:
        lines = (path / _EVENTS).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            yield event


def _settings(path: Path) -> dict[str, Any]:
    try:
        read = yaml.safe_load((path / _CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    return read if isinstance(read, dict) else {}


def _flat(settings: Any, before: str = "") -> Iterator[tuple[str, Any]]:
    """By dotted path, as the command line sets them."""
    if isinstance(settings, dict):
        for key, value in settings.items():
            yield from _flat(value, f"{before}{key}.")
    else:
        yield before.rstrip("."), settings
