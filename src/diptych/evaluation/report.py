"""A folder that tells a measurement: `results.json` for programs, `report.html` for people, and its pictures.

The page is one file that needs no network: pictures are in it, and it has no script.
"""

import base64
import io
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.core.errors import ConfigError
from diptych.core.files import write_text
from diptych.core.formatting import plain
from diptych.core.html import render_html
from diptych.core.version import VERSION
from diptych.evaluation.tables import Table

RESULTS, PAGE = "results.json", "report.html"


@dataclass(frozen=True)
class Picture:
    """A PNG file to be, and what it shows."""

    name: str
    """Of its file, without suffix."""
    draw: Callable[[], bytes]
    """Gives the bytes of the file; called when the report is written."""
    shows: str


@dataclass(frozen=True)
class Section:
    """A heading, a line of explanation, and what stands under it."""

    title: str
    text: str = ""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was measured and how it is told."""

    title: str
    summary: str
    """The figures that matter most, in a line: what a model card says."""
    figures: Any
    """Dataclasses, dicts, lists and plain values, for `results.json`."""
    sections: Sequence[Section]
    protocol: Mapping[str, str | int]
    """How it was measured."""
    about: Mapping[str, str | int] = field(default_factory=dict)
    """What else a reader must know: which bundle, which data."""


def write_report(report: Report, folder: Path) -> None:
    """Write the folder; files of the same names are replaced.

    Raises:
        ConfigError: it cannot be written there.
    """
    setting: dict[str, str | int] = {
        **report.about,
        **report.protocol,
        **versions(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    content = {"title": report.title, "setting": setting, "figures": plain(report.figures)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(folder / RESULTS, json.dumps(content, indent=2) + "\n")
        pngs = {picture.name: picture.draw() for section in report.sections for picture in section.pictures}
        for name, png in pngs.items():
            (folder / f"{name}.png").write_bytes(png)
        write_text(folder / PAGE, _page(report, setting, pngs), errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error})") from None


def versions() -> dict[str, str]:
    """Of what a figure may depend on."""
    packages = {"diptych": VERSION} | {name: version(name) for name in ("torch", "numpy", "Pillow", "tokenizers")}
    return {"python": platform.python_version(), **packages, "machine": platform.machine()}


def png_of(image: Image.Image) -> bytes:
    """A picture as the bytes of its file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _page(report: Report, setting: Mapping[str, str | int], pngs: Mapping[str, bytes]) -> str:
    encoded = {name: base64.b64encode(png).decode() for name, png in pngs.items()}
    return render_html(Path(__file__).with_name("report.html.jinja"), report=report, setting=setting, pngs=encoded)
