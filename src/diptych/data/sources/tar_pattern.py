"""Expand the pattern of `shards:PATTERN` to tars: a path, a glob, a range or list in braces, or a folder of tars."""

import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path, PurePosixPath

from diptych.core.address import redacted
from diptych.core.errors import DataError
from diptych.core.remote import is_remote, list_remote
from diptych.data.sources.location import listable
from diptych.data.sources.split_names import SPLIT_FOLDERS

MAX_TARS = 1_000_000
"""Maximum number of names that the ranges of a pattern may expand to."""
_MAX_DIGITS = 18
BRACES = re.compile(r"\{(\d+\.\.\d+|[^{},]*,[^{}]*)\}")


def tars_of(pattern: str) -> list[tuple[str, str | None]]:
    """Return the sorted paths or URLs of a pattern, each with the split that its folder implies.

    A folder stands for the tars in it, or for those in its subfolders that are named after splits. All tars of a range must
    exist.

    Raises:
        DataError: the pattern matches no tars, or a tar is missing.
    """
    spelled = expanded(pattern)
    is_glob = any(sign in pattern for sign in "*?[")
    if is_remote(pattern):
        return [(url, None) for url in (list_remote(pattern) if "*" in pattern else spelled)]
    if Path(pattern).is_dir():
        return [(str(path), split) for path, split in _of_folder(Path(pattern))]
    if len(spelled) > 1 or not is_glob:
        missing = [name for name in spelled if not Path(name).is_file()]
        if missing:
            raise DataError(f"{pattern}: {len(missing)} of {len(spelled)} tars are missing, the first: {missing[0]}")
        return [(name, None) for name in spelled]
    path = Path(pattern)
    fixed = next(folder for folder in path.parents if not any(sign in str(folder) for sign in "*?["))
    if fixed.is_dir():
        listable(fixed)
    found = sorted(Path(path.anchor or ".").glob(str(path.relative_to(path.anchor))))
    if not found:
        raise DataError(f"{pattern}: matches no tars")
    return [(str(path), None) for path in found]


def holds_tars(folder: Path) -> bool:
    """Return whether `shards:FOLDER` would find tars."""
    return any(True for _ in _found_in(folder))


def _of_folder(folder: Path) -> list[tuple[Path, str | None]]:
    listable(folder)
    found = list(_found_in(folder))
    if not found:
        packed = sorted(path for path in folder.iterdir() if ".tar." in path.name.lower())
        way_out = f"; {packed[0].name} is compressed: unpack such files first" if packed else ""
        splits = ", ".join(sorted(SPLIT_FOLDERS))
        raise DataError(f"{folder}: holds no tars, nor do folders in it that are called {splits}{way_out}")
    return found


def _found_in(folder: Path) -> Iterator[tuple[Path, str | None]]:
    own = _tars_in(folder)
    if own:
        yield from ((path, None) for path in own)
        return
    for below in sorted(entry for entry in folder.iterdir() if entry.name in SPLIT_FOLDERS and entry.is_dir()):
        yield from ((path, below.name) for path in _tars_in(below))


def _tars_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == ".tar" and path.name[0] != ".")


def distinct_stems(names: list[str]) -> list[str]:
    """Return the tars' names without suffix, with as many parent folders as necessary to make them distinct.

    >>> distinct_stems(["a/x/0.tar", "b/x/0.tar"]), distinct_stems(["0.tar", "0.tar"])
    (['a/x/0', 'b/x/0'], ['0', '0#2'])
    """
    paths = [PurePosixPath(redacted(name).partition("?")[0] if is_remote(name) else name) for name in names]
    for depth in range(1, max((len(path.parts) for path in paths), default=1) + 1):
        stems = ["/".join((*path.parts[:-1][1 - depth or len(path.parts) :], path.stem)) for path in paths]
        if len(set(stems)) == len(stems):
            return stems
    seen: dict[str, int] = {}
    for number, stem in enumerate(stems):
        seen[stem] = seen.get(stem, 0) + 1
        stems[number] = f"{stem}#{seen[stem]}" if seen[stem] > 1 else stem
    return stems


def expanded(pattern: str) -> list[str]:
    """Return the names that a pattern with ranges and lists in braces expands to; leading zeros are preserved.

    Raises:
        DataError: there are more than a million names, a range is empty, or a number has more than 18 digits.

    >>> expanded("a{08..10}.tar"), expanded("{x,y}/0.tar")
    (['a08.tar', 'a09.tar', 'a10.tar'], ['x/0.tar', 'y/0.tar'])
    """
    texts = BRACES.split(pattern)
    insides = texts[1::2]
    choices = [_choices(inside, pattern) for inside in insides]
    count = 1
    for choice in choices:
        count *= len(choice)
        if count > MAX_TARS:  # Stop here: the full product may have any number of digits.
            raise DataError(
                f"{shortened(pattern)}: its ranges name {count:,} tars or more; at most {MAX_TARS:,} are allowed"
            )
    written = [
        [str(choice).zfill(inside.index(".")) for choice in some] if isinstance(some, range) else some
        for some, inside in zip(choices, insides, strict=True)
    ]
    return [
        texts[0] + "".join(word + text for word, text in zip(words, texts[2::2], strict=True))
        for words in product(*written)
    ]


def _choices(inside: str, pattern: str) -> list[str] | range:
    """Return the words of a list, or the numbers of a range, which may be too many to expand."""
    first, dots, last = inside.partition("..")
    if not dots or "," in inside:
        return inside.split(",")
    longest = max(len(first), len(last))
    if longest > _MAX_DIGITS:
        raise DataError(f"{shortened(pattern)}: a number has {longest:,} digits; at most {_MAX_DIGITS} are allowed")
    if int(first) > int(last):
        raise DataError(f"{shortened(pattern)}: the range {{{inside}}} is empty; write the smaller number first")
    return range(int(first), int(last) + 1)


def shortened(pattern: str) -> str:
    """Return a pattern, cut to 200 characters for a message."""
    return pattern if len(pattern) <= 200 else f"{pattern[:200]}..."
