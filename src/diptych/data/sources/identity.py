"""Compute the fingerprint of a source, from columns if the source provides them, else row by row, with the same result."""

from contextlib import closing
from hashlib import sha256
from itertools import chain
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from diptych.core.digests import FileDigests
from diptych.core.errors import ImageError
from diptych.core.fingerprint import DataFingerprint, FingerprintBuilder, PicturesBy
from diptych.core.sample import ImageInput
from diptych.data.sources.protocol import Source, row_chunks
from diptych.data.storage.blocks import RowColumns
from diptych.data.storage.columns import NameColumn, TextColumn


def fingerprint_data(source: Source, *, pictures: PicturesBy = "sizes") -> DataFingerprint:
    """Return the fingerprint of all samples of a source, in their order.

    Args:
        source: the samples.
        pictures: `sizes` uses the size of each image file without opening it, so that an image replaced by another one of the
            same size is not detected. `contents` reads every image whose checksum is not in the cache yet.
    """
    builder = FingerprintBuilder(pictures)
    with closing(FileDigests()) as digests:
        for rows in row_chunks(source):
            _add_columns(builder, source.columns(rows) or columns_by_row(source, rows))
            if pictures == "sizes":
                builder.add("pictures", source.image_sizes(rows))
            else:
                builder.add("pictures", _digests(source, rows, digests))
            builder.num_rows += len(rows)
    return builder.build(classes=source.classes, parts=source.parts)


def split_hash(source: Source) -> str:
    """Return the short form of the fingerprint; metrics with the same hash were measured on the same images and texts."""
    return fingerprint_data(source).short


def columns_by_row(source: Source, rows: NDArray[np.int64]) -> RowColumns:
    """Return the columns of several rows of a source that does not implement `columns`."""
    indices = rows.tolist()
    texts, labels = [source.captions(i) for i in indices], [source.label(i) for i in indices]
    keys, captions = TextColumn(map(source.key, indices)), TextColumn(chain.from_iterable(texts))
    splits = NameColumn(map(source.split, indices))
    return RowColumns(
        keys=keys.take(np.arange(len(keys))),
        captions=captions.take(np.arange(len(captions))),
        num_captions=np.array([len(of_row) for of_row in texts], dtype=np.int64),
        labels=np.array([-1 if label is None else label for label in labels], dtype=np.int64),
        splits=splits.codes(),
        split_names=splits.names,
    )


def _add_columns(builder: FingerprintBuilder, columns: RowColumns) -> None:
    builder.add("keys", columns.keys.content, lengths=columns.keys.lengths)
    builder.add("captions", columns.captions.content, lengths=columns.captions.lengths, counts=columns.num_captions)
    builder.add("labels", columns.labels)
    builder.add_splits(columns.splits, columns.split_names)


def _digests(source: Source, rows: NDArray[np.int64], digests: FileDigests) -> NDArray[np.uint8]:
    """Return the 32-byte digest of each image; zeros for an unreadable image."""
    found = bytearray()
    for index in rows.tolist():
        try:
            found += image_digest(source[index].image, digests)
        except (ImageError, OSError, ValueError):
            found += bytes(32)
    return np.frombuffer(found, dtype=np.uint8)


def image_digest(image: ImageInput, digests: FileDigests) -> bytes:
    """Return the SHA-256 of an image file, or of the pixels and their shape; the digest of a path may come from the cache.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(image, str | Path):
        return digests.digest(Path(image))
    if isinstance(image, bytes):
        return sha256(image).digest()
    pixels = np.asarray(image)
    return sha256(f"{pixels.shape} {pixels.dtype.str} ".encode() + pixels.tobytes()).digest()
