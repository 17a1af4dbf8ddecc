"""A folder that tells a measurement: `results.json` for programs, `report.html` for people, and its pictures.

The page is one file that needs no network: pictures are in it, and it has no script.
"""

import base64
import io
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

from PIL import Image

from diptych.core.errors import ConfigError
from diptych.core.figures import plain
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
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    }
    content = {"title": report.title, "setting": setting, "figures": plain(report.figures)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULTS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        pngs = {picture.name: picture.draw() for section in report.sections for picture in section.pictures}
        for name, png in pngs.items():
            (folder / f"{name}.png").write_bytes(png)
        (folder / PAGE).write_text(_page(report, setting, pngs), encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror or error})") from None


def versions() -> dict[str, str]:
    """Of what a figure may depend on."""
    packages = {name: version(name) for name in ("diptych", "torch", "numpy", "Pillow", "tokenizers")}
    return {"python": platform.python_version(), **packages, "machine": platform.machine()}


def png_of(image: Image.Image) -> bytes:
    """A picture as the bytes of its file."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


_STYLE = """
:root { color-scheme: light dark; --ink: #222; --faint: #6b6b6b; --rule: #ddd; --paper: #fff; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --faint: #a0a0a0; --rule: #3a3a3a; --paper: #17191c; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 62rem; margin: 0 auto;
  padding: 1.5rem 1rem 4rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid var(--rule); padding-top: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .8rem .25rem 0; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
figure { margin: 1rem 0; } figcaption { color: var(--faint); }
img { max-width: 100%; height: auto; background: #fff; border: 1px solid var(--rule); border-radius: 4px; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; color: var(--faint); font-size: .9rem; }
dt { font-weight: 600; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { dl { grid-template-columns: 1fr; } }
"""


def _page(report: Report, setting: Mapping[str, str | int], pngs: Mapping[str, bytes]) -> str:
    facts = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(str(value))}</dd>" for name, value in setting.items()
    )
    sections = "".join(_section(section, pngs) for section in report.sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n<h1>{escape(report.title)}</h1>\n"
        f"{sections}<h2>How it was measured</h2>\n<dl>{facts}</dl>\n</body>\n</html>\n"
    )


def _section(section: Section, pngs: Mapping[str, bytes]) -> str:
    text = f"<p>{escape(section.text)}</p>\n" if section.text else ""
    tables = "".join(map(_table, section.tables))
    pictures = "".join(_figure(picture, pngs[picture.name]) for picture in section.pictures)
    return f"<section>\n<h2>{escape(section.title)}</h2>\n{text}{tables}{pictures}</section>\n"


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>\n" for row in table.rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n"


def _figure(picture: Picture, png: bytes) -> str:
    data = base64.b64encode(png).decode()
    shows = escape(picture.shows)
    return f'<figure><img src="data:image/png;base64,{data}" alt="{shows}"><figcaption>{shows}</figcaption></figure>\n'
