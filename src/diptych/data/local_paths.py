"""Which files and folders of this machine the name of a source means, without opening it."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

from diptych.core.remote import is_remote
from diptych.data.open_source import SOURCES
from diptych.data.sources.mix import part_specs
from diptych.data.sources.tar_pattern import BRACES

_PATH_OPTIONS = ("root", "templates", "classes")


def local_paths(spec: str) -> list[Path]:
    """The location of a source and those of its options that are paths, as far as they exist; of a mixture, those of each part.

    Of a glob or a range, the result has the files that match.

    >>> local_paths("shapes:256")
    []
    """
    kind, _, location = spec.partition(":")
    if kind == "mix":
        return [path for part in part_specs(location) for path in local_paths(part)]
    try:
        return list(dict.fromkeys(path for path in _named(location if kind in SOURCES else spec) if path.exists()))
    except OSError:  # A name that is too long for a file; opening the source says so.
        return []


def _named(location: str) -> Iterator[Path]:
    if not location:
        return
    yield Path(location)
    path, question, options = location.rpartition("?")
    if question:
        yield from (Path(value) for name, value in parse_qsl(options) if name in _PATH_OPTIONS)
    for pattern in (path or location).split("::"):
        if not is_remote(pattern):
            yield from _matching(Path(BRACES.sub("*", pattern)))


def _matching(pattern: Path) -> Iterator[Path]:
    """The path itself, or what a glob finds."""
    if any(sign in str(pattern) for sign in "*?["):
        yield from Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor)))
    yield pattern
