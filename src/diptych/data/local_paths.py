"""Find the local files and folders that a source specification refers to, without opening the source."""

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl

from diptych.core.remote import is_remote
from diptych.data.open_source import SOURCES
from diptych.data.sources.mix import part_specs
from diptych.data.sources.tar_pattern import BRACES

_PATH_OPTIONS = ("root", "templates", "classes")


def local_paths(spec: str) -> list[Path]:
    """Return the existing paths in a source specification: its location, and its options that are paths.

    A mixture gives the paths of all its parts; a glob or a range gives the files that match.

    >>> local_paths("shapes:256")
    []
    """
    kind, _, location = spec.partition(":")
    if kind == "mix":
        return [path for part in part_specs(location) for path in local_paths(part)]
    try:
        return list(dict.fromkeys(path for path in _named(location if kind in SOURCES else spec) if path.exists()))
    except OSError:  # The name is too long for a file; opening the source reports it.
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
    """Yield the files that match a glob, and the path itself."""
    if any(sign in str(pattern) for sign in "*?["):
        yield from Path(pattern.anchor or ".").glob(str(pattern.relative_to(pattern.anchor)))
    yield pattern
