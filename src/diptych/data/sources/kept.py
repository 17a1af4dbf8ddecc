"""Listings that were read before, from the cache folder; valid while every file and folder that was read is unchanged."""

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL
from numpy.typing import NDArray

from diptych.core.array_cache import MIN_ROWS, ArrayCache
from diptych.core.file_states import file_states
from diptych.data.sources.class_folder import LabelledPictures
from diptych.data.sources.listing import Listing, skips_missing
from diptych.data.sources.protocol import Source
from diptych.data.storage.columns import TextColumn
from diptych.data.storage.inputs import recorded_inputs, warn
from diptych.images.formats import FORMATS

KINDS = frozenset({"class-folder", "coco", "csv", "image-folder", "json", "text-folder", "tsv-folder"})
"""Kinds whose readers name all that they read with `inputs.reads`."""
_CACHE_VERSION = 2
"""To be raised with any change that could make another source of the same files."""


def kept_or_read(spec: str, read: Callable[[], tuple[str, Source]]) -> Source:
    """The source that `read` returns with its kind, from the cache if it was read before and nothing has changed since.

    Sources of 10,000 samples or more are kept, unless the working folder was removed.

    Args:
        spec: what the user calls the source.
        read: reads it.
    """
    try:
        working_folder = os.getcwd()  # noqa: PTH109
    except OSError:
        return read()[1]
    is_path = os.path.exists(spec.partition(":")[2])  # noqa: PTH110  (whether a question mark begins options)
    pictures = [PIL.__version__, sorted(FORMATS)]  # They decide which files are pictures, and the warnings.
    key = [_CACHE_VERSION, spec, working_folder, skips_missing(), is_path, pictures]
    cache = ArrayCache()
    kept = cache.get("listing", key)
    if kept is not None and _is_valid(kept):
        return _source(kept)
    with recorded_inputs() as inputs:
        kind, source = read()
    states = inputs.states()
    if kind in KINDS and isinstance(source, Listing | LabelledPictures) and len(source) >= MIN_ROWS:
        arrays = source.to_arrays() if states.is_settled() else None
        if arrays is not None:
            paths = inputs.paths.to_arrays()
            arrays |= {f"input_{name}": array for name, array in paths.items()}
            kept_type = np.array(type(source).__name__)
            warned = np.array(json.dumps(inputs.warned))
            cache.put("listing", key, {**arrays, "input_states": states.table, "warned": warned, "type": kept_type})
    return source


def _is_valid(kept: dict[str, NDArray[Any]]) -> bool:
    paths = list(TextColumn.from_arrays(kept["input_bytes"], kept["input_ends"]))
    return np.array_equal(file_states(paths).table, kept["input_states"])


def _source(kept: dict[str, NDArray[Any]]) -> Source:
    for text in json.loads(str(kept["warned"])):
        warn(text)
    types: dict[str, type[Listing] | type[LabelledPictures]] = {
        "Listing": Listing,
        "LabelledPictures": LabelledPictures,
    }
    return types[str(kept["type"])].from_arrays(kept)
