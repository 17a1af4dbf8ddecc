"""The fingerprint of a source's rows: from whole columns if the source has them, else row by row, with the same result."""

from contextlib import closing
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.core.digests import FileDigests
from diptych.core.errors import ImageError
from diptych.core.fingerprint import DataFingerprint, FingerprintBuilder, PicturesBy
from diptych.core.sample import ImageInput
from diptych.data.sources.protocol import Source
from diptych.data.storage.blocks import RowColumns
from diptych.data.storage.columns import NameColumn, TextColumn

_CHUNK = 1 << 16
"""Rows at a time: memory does not grow with the number of rows."""


def fingerprint_data(source: Source, *, pictures: PicturesBy = "sizes") -> DataFingerprint:
    """The fingerprint of all samples of a source, in their order.

    Args:
        source: the samples.
        pictures: `sizes` looks up the size of each picture file and opens none; a picture replaced by another of the same
            size is not noticed. `contents` reads every picture that the cache of checksums does not hold yet.
    """
    builder = FingerprintBuilder(pictures)
    with closing(FileDigests()) as digests:
        for start in range(0, len(source), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(source)), dtype=np.int64)
            _add_columns(builder, source.columns(rows) or columns_by_row(source, rows))
            if pictures == "sizes":
                builder.add("pictures", source.image_sizes(rows))
            else:
                builder.add("pictures", _digests(source, rows, digests))
            builder.num_rows += len(rows)
    return builder.build(classes=source.classes, parts=source.parts)


def split_hash(source: Source) -> str:
    """The short form of the fingerprint: figures with the same hash were measured on the same pictures and texts."""
    return fingerprint_data(source).short


def columns_by_row(source: Source, rows: NDArray[np.int64]) -> RowColumns:
    """The columns of some rows of a source that does not keep them as columns."""
    keys, captions, splits = TextColumn(), TextColumn(), NameColumn()
    counts, labels = np.zeros(len(rows), dtype=np.int64), np.full(len(rows), -1, dtype=np.int64)
    for place, index in enumerate(rows.tolist()):
        keys.append(source.key(index))
        texts = source.captions(index)
        counts[place] = len(texts)
        for text in texts:
            captions.append(text)
        label = source.label(index)
        labels[place] = -1 if label is None else label
        splits.append(source.split(index))
    return RowColumns(
        keys=keys.take(np.arange(len(keys))),
        captions=captions.take(np.arange(len(captions))),
        num_captions=counts,
        labels=labels,
        splits=splits.codes(),
        split_names=splits.names,
    )


def _add_columns(builder: FingerprintBuilder, columns: RowColumns) -> None:
    builder.add("keys", columns.keys.content, lengths=columns.keys.lengths)
    builder.add("captions", columns.captions.content, lengths=columns.captions.lengths, counts=columns.num_captions)
    builder.add("labels", columns.labels)
    builder.add_splits(columns.splits, columns.split_names)


def _digests(source: Source, rows: NDArray[np.int64], digests: FileDigests) -> NDArray[np.uint8]:
    """32 bytes for each picture; zeros for one that cannot be read."""
    found = bytearray()
    for index in rows.tolist():
        try:
            found += image_digest(source[index].image, digests)
        except (ImageError, OSError, ValueError):
            found += bytes(32)
    return np.frombuffer(found, dtype=np.uint8)


def image_digest(image: ImageInput, digests: FileDigests) -> bytes:
    """SHA-256 of a picture's file, or of its pixels and their shape; a path is looked up in the cache of digests first.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(image, str | Path):
        return digests.digest(Path(image))
    if isinstance(image, bytes):
        return sha256(image).digest()
    pixels = np.asarray(image)
    return sha256(f"{pixels.shape} {pixels.dtype.str} ".encode() + pixels.tobytes()).digest()
