"""Cache of listings; an entry is valid while all files and folders that were read for it are unchanged."""

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
from diptych.data.storage.columns import TextColumn, named_arrays
from diptych.data.storage.inputs import recorded_inputs, warn
from diptych.images.formats import FORMATS

KINDS = frozenset({"class-folder", "coco", "csv", "image-folder", "json", "text-folder", "tsv-folder"})
"""Kinds whose readers record everything that they read with `inputs.reads`."""
_CACHE_VERSION = 2
"""Increment it with any change that could produce another source from the same files."""


def kept_or_read(spec: str, read: Callable[[], tuple[str, Source]]) -> Source:
    """Return the source from the cache if it was read before and nothing has changed since, else from `read`.

    Sources of 10,000 samples or more are cached, unless the working directory was removed.

    Args:
        spec: the source as the user specifies it.
        read: returns the kind of the source, and the source.
    """
    try:
        working_folder = os.getcwd()  # noqa: PTH109
    except OSError:
        return read()[1]
    is_path = os.path.exists(spec.partition(":")[2])  # noqa: PTH110  (whether a question mark begins options)
    pictures = [PIL.__version__, sorted(FORMATS)]  # They determine which files are images, and the warnings.
    key = [_CACHE_VERSION, spec, working_folder, skips_missing(), is_path, pictures]
    cache = ArrayCache()
    cached = cache.get("listing", key)
    if cached is not None and _is_valid(cached):
        return _source(cached)
    with recorded_inputs() as inputs:
        kind, source = read()
    states = inputs.states()
    if kind in KINDS and isinstance(source, Listing | LabelledPictures) and len(source) >= MIN_ROWS:
        arrays = source.to_arrays() if states.is_settled() else None
        if arrays is not None:
            arrays |= named_arrays(input=inputs.paths)
            type_name = np.array(type(source).__name__)
            warned = np.array(json.dumps(inputs.warned))
            cache.put("listing", key, {**arrays, "input_states": states.table, "warned": warned, "type": type_name})
    return source


def _is_valid(cached: dict[str, NDArray[Any]]) -> bool:
    paths = list(TextColumn.from_arrays(cached["input_bytes"], cached["input_ends"]))
    return np.array_equal(file_states(paths).table, cached["input_states"])


def _source(cached: dict[str, NDArray[Any]]) -> Source:
    for text in json.loads(str(cached["warned"])):
        warn(text)
    read = Listing.from_arrays if str(cached["type"]) == "Listing" else LabelledPictures.from_arrays
    return read(cached)
