"""Which source `kind:location` means."""

from collections.abc import Callable

from diptych.core.errors import DataError, unknown_name
from diptych.data.sources.flickr import read_flickr
from diptych.data.sources.json_file import read_json
from diptych.data.sources.protocol import Source
from diptych.data.sources.shapes import read_shapes

SOURCES: dict[str, Callable[[str], Source]] = {
    "shapes": read_shapes,
    "json": read_json,
    "flickr30k": read_flickr,
    "flickr8k": read_flickr,
}


def open_source(spec: str) -> Source:
    """The source that `kind:location` names.

    Raises:
        DataError: the kind is not known (the nearest is named), or the source cannot be read.
    """
    kind, _, location = spec.partition(":")
    if kind not in SOURCES:
        raise DataError(unknown_name("source kind", kind, SOURCES) + ". Sources are written kind:location.")
    if not location and kind != "shapes":
        raise DataError(f"source '{spec}' has no location: write {kind}:PATH")
    return SOURCES[kind](location)
