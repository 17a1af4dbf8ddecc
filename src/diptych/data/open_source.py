"""Open the source that `kind:location` specifies, or detect the kind of a path."""

import re
from collections.abc import Callable
from pathlib import Path

from diptych.core.address import is_redacted
from diptych.core.errors import DataError, unknown_name
from diptych.core.foreign import is_foreign
from diptych.data.sources.cc3m import read_cc3m
from diptych.data.sources.cifar import read_cifar10, read_cifar100
from diptych.data.sources.class_folder import read_class_folder
from diptych.data.sources.coco import read_coco
from diptych.data.sources.depth import with_depth
from diptych.data.sources.flickr import has_tokens, is_flickr8k, read_flickr8k, read_flickr30k
from diptych.data.sources.hugging_face import read_hf
from diptych.data.sources.image_folder import (
    EMBEDDED,
    has_pictures,
    is_image_folder,
    is_text_folder,
    read_image_folder,
    read_text_folder,
    without_captions,
)
from diptych.data.sources.json_file import read_json
from diptych.data.sources.kept import kept_or_read
from diptych.data.sources.mix import read_mix
from diptych.data.sources.packed import PACK, read_packed
from diptych.data.sources.protocol import Source
from diptych.data.sources.shapes import read_shapes
from diptych.data.sources.shards import read_shards
from diptych.data.sources.table import read_csv, read_tsv_folder
from diptych.data.sources.tar_pattern import holds_tars

_COMPRESSED_TAR = re.compile(r"\.(tar\.(gz|bz2|xz|zst)|tgz)$", re.IGNORECASE)
SOURCES: dict[str, Callable[[str], Source]] = {
    "shapes": read_shapes,
    "json": read_json,
    "csv": read_csv,
    "tsv-folder": read_tsv_folder,
    "text-folder": read_text_folder,
    "image-folder": read_image_folder,
    "flickr30k": read_flickr30k,
    "flickr8k": read_flickr8k,
    "coco": read_coco,
    "class-folder": read_class_folder,
    "cifar10": read_cifar10,
    "cifar100": read_cifar100,
    "shards": read_shards,
    "packed": read_packed,
    "cc3m": read_cc3m,
    "hf": read_hf,
}

_FETCHED = frozenset({"cifar10", "cifar100", "flickr30k", "flickr8k"})
_WITHOUT_LOCATION = _FETCHED | {"shapes"}
_BY_SUFFIX = {
    **{".json": "json", ".jsonl": "json", ".ndjson": "json"},
    **{".csv": "csv", ".tsv": "csv", ".tar": "shards", ".parquet": "hf"},
}


def open_source(spec: str) -> Source:
    """Open a source given as `kind:location`, or as a path whose kind can be detected.

    >>> source = open_source("shapes:100")
    >>> source.captions(0)[0], source.split(0)
    ('a red circle', 'train')

    Args:
        spec: `kind:location`, `mix: 0.7*kind:location + 0.3*kind:location`, or a path.

    Raises:
        DataError: the kind is unknown (the message names the closest one) or ambiguous, the source cannot be read, or the
            specification lacks a secret.
    """
    if is_redacted(spec):
        raise DataError(
            f"{spec}: the secret was left out of this address; give the whole address with --data, or put the secrets.yaml of "
            "its run next to config.yaml"
        )
    try:
        source = _open(spec)
        return with_depth(source)
    except OSError as error:  # Usually a missing permission.
        raise DataError(f"{error.filename or spec}: cannot be read ({error.strerror or error})") from None


def _open(spec: str) -> Source:
    kind, _, location = spec.partition(":")
    if kind == "mix":
        return read_mix(location, open_source)
    return kept_or_read(spec, lambda: _read(spec))


def _read(spec: str) -> tuple[str, Source]:
    """Return the kind of a source, and the source."""
    kind, _, location = spec.partition(":")
    path = Path(spec.partition("?")[0])
    if kind not in SOURCES and spec and path.exists():
        is_embedded = path.is_dir() and spec.endswith(f"?captions={EMBEDDED}")
        kind, location = "text-folder" if is_embedded else recognise(path), spec
    elif kind not in SOURCES:
        raise DataError(unknown_name("source kind", kind, [*SOURCES, "mix"]) + ". Sources are written kind:location.")
    elif spec in _FETCHED and path.exists():  # Do not download gigabytes because a './' is missing.
        raise DataError(
            f"'{spec}' is a folder here, and a kind of data: write {spec}:{spec} to read it, {spec}: to fetch"
        )
    elif not location and kind not in _WITHOUT_LOCATION:
        raise DataError(f"source '{spec}' has no location: write {kind}:PATH")
    return kind, SOURCES[kind](location)


def recognise(path: Path) -> str:
    """Return the kind of data that a path holds.

    Raises:
        DataError: the path matches no kind, or several.
    """
    if path.is_file():
        suffix = path.suffix.lower()
        kinds = [_BY_SUFFIX[suffix]] if suffix in _BY_SUFFIX else []
        if path.name.startswith("captions_") and suffix == ".json":
            kinds = ["coco"]
        if suffix == ".zip":
            kinds = ["class-folder"]
        if _COMPRESSED_TAR.search(path.name):
            kinds = ["shards"]  # Its error explains how to unpack the file.
    else:
        kinds = [kind for kind, looks_so in _FOLDERS.items() if looks_so(path)]
        if not kinds and is_text_folder(path):
            kinds = ["text-folder"]
        if (
            not kinds
            and _has(path, "*/*.[jJpP]*", "*/*/*.[jJpP]*")
            and all(entry.is_dir() for entry in path.iterdir() if not is_foreign(entry.name))
        ):
            kinds = ["class-folder"]
        if not kinds and has_pictures(path):
            raise without_captions(path)
        if not kinds and any(_COMPRESSED_TAR.search(entry.name) for entry in path.iterdir()):
            kinds = ["shards"]  # Its error explains how to unpack the files.
    if len(kinds) != 1:
        seen = f"looks like {' and '.join(kinds)}" if kinds else "looks like no kind of data"
        raise DataError(f"{path}: {seen}; specify the kind: KIND:{path}, with KIND one of {', '.join(SOURCES)}")
    return kinds[0]


def _has(path: Path, *patterns: str) -> bool:
    return any(True for pattern in patterns for _ in path.glob(pattern))


_FOLDERS: dict[str, Callable[[Path], bool]] = {
    "tsv-folder": lambda path: _has(path, "captions.txt") and not is_flickr8k(path / "captions.txt"),
    "flickr30k": lambda path: (
        _has(path, "results.csv", "flickr30k_images/results.csv", "dataset_flickr*.json", "dataset_coco.json")
        or has_tokens(path)
    ),
    "flickr8k": lambda path: _has(path, "captions.txt") and is_flickr8k(path / "captions.txt"),
    "packed": lambda path: _has(path, PACK),
    "coco": lambda path: _has(path, "captions_*.json", "annotations/captions_*.json"),
    "shards": holds_tars,
    "image-folder": is_image_folder,
    "hf": lambda path: _has(path, "dataset_dict.json", "state.json"),
}
"""Tests for folders of each kind that has captions. A folder that contains only folders of images is a class folder."""
