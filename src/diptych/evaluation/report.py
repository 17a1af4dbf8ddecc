"""Write the report of an evaluation as a folder: `results.json` for programs, `report.html` for people, and the pictures.

The page is a single file with embedded pictures and without scripts; it needs no network.
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

from diptych.core.deprecation import RenamedAttribute
from diptych.core.errors import ConfigError
from diptych.core.files import write_text
from diptych.core.formatting import plain
from diptych.core.html import render_html
from diptych.core.version import VERSION
from diptych.evaluation.tables import Table

RESULTS, PAGE = "results.json", "report.html"


@dataclass(frozen=True)
class Picture:
    """A picture of a report, which is drawn when the report is written."""

    name: str
    """Name of the PNG file, without suffix."""
    draw: Callable[[], bytes]
    """Returns the content of the PNG file."""
    shows: str
    """Caption."""


@dataclass(frozen=True)
class Section:
    """A section of a report: a heading, an explanation, tables and pictures."""

    title: str
    text: str = ""
    """Explanation under the heading."""
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()


@dataclass(frozen=True, kw_only=True)
class Report:
    """The results of an evaluation and their presentation."""

    title: str
    summary: str
    """The most important metrics in one line, for the model card."""
    metrics: Any
    """All metrics as dataclasses, dicts, lists and plain values, for `results.json`."""
    sections: Sequence[Section]
    protocol: Mapping[str, str | int]
    """How the metrics were measured."""
    about: Mapping[str, str | int] = field(default_factory=dict)
    """Other information for the reader, such as the bundle and the data."""

    figures = RenamedAttribute("metrics")


def write_report(report: Report, folder: Path) -> None:
    """Write the report to a folder; existing files with the same names are replaced.

    Raises:
        ConfigError: the folder cannot be written.
    """
    setting: dict[str, str | int] = {
        **report.about,
        **report.protocol,
        **versions(),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }
    content = {"title": report.title, "setting": setting, "figures": plain(report.metrics)}
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
    """Return the versions of Python and of the packages that can affect metrics, and the type of the machine."""
    packages = {"diptych": VERSION} | {name: version(name) for name in ("torch", "numpy", "Pillow", "tokenizers")}
    return {"python": platform.python_version(), **packages, "machine": platform.machine()}


def png_of(image: Image.Image) -> bytes:
    """Return the image as the content of a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


def _page(report: Report, setting: Mapping[str, str | int], pngs: Mapping[str, bytes]) -> str:
    encoded = {name: base64.b64encode(png).decode() for name, png in pngs.items()}
    return render_html(Path(__file__).with_name("report.html.jinja"), report=report, setting=setting, pngs=encoded)
