"""Pictures that are in the data twice, to the byte."""

import os
from collections.abc import Callable, Hashable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

import numpy as np

from diptych.core.errors import ImageError
from diptych.core.files import open_regular
from diptych.data.sources.protocol import Source

_TAIL = 4096
"""Bytes at the end of a file that are looked at first: of two photos of one size they hardly ever agree."""


def copies_of(source: Source, some: Sequence[int], others: Sequence[int]) -> list[int]:
    """Those of some samples whose image is the same as that of any of the others.

    Only what agrees in size is opened, and only what agrees in its last bytes is read. Samples of unknown size are copies of
    nothing.
    """
    marks: tuple[Callable[[int], Hashable], ...] = (
        source.image_size,
        partial(_content_mark, source, _TAIL),
        partial(_content_mark, source, None),
    )
    for mark in marks:
        of_some = {i: mark(i) for i in some}
        wanted = set(of_some.values()) - {None}
        of_others = {i: value for i in others if (value := mark(i)) in wanted}
        shared = set(of_others.values())
        some, others = [i for i in some if of_some[i] in shared], list(of_others)
    return list(some)


def _content_mark(source: Source, last: int | None, index: int) -> bytes | None:
    """A hash of the sample's image file, or of its pixels, or of so many of their last bytes; None if it cannot be read."""
    try:
        image = source[index].image
        if isinstance(image, str | Path):
            with open_regular(image) as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(0 if last is None else max(0, size - last))
                content = file.read()
        else:
            content = image if isinstance(image, bytes) else np.asarray(image).tobytes()
    except (ImageError, OSError, ValueError):
        return None
    return blake2b(content if last is None else content[-last:], digest_size=16).digest()
