"""Pictures that are in the data twice, to the byte."""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path

from diptych.core.errors import ImageError
from diptych.data.sources.protocol import Source


def copies_of(source: Source, some: Sequence[int], others: Sequence[int]) -> list[int]:
    """Those of some samples whose image file is the same as that of any of the others.

    Only files of the same size are opened. Samples without a file are copies of nothing.
    """
    sizes = {i: source.image_size(i) for i in some}
    wanted = set(sizes.values()) - {None}
    twins = {i: size for i in others if (size := source.image_size(i)) in wanted}
    known = {content_hash(source, i) for i in twins} - {None}
    found = set(twins.values())
    return [i for i in some if sizes[i] in found and content_hash(source, i) in known]


def content_hash(source: Source, index: int) -> bytes | None:
    """A hash of the sample's image file, or of its pixels; None if it cannot be read."""
    try:
        image = source[index].image
        content = Path(image).read_bytes() if isinstance(image, str | Path) else image
    except (ImageError, OSError):
        return None
    return blake2b(content if isinstance(content, bytes) else content.tobytes(), digest_size=16).digest()
