"""Decode and resize the images of a source once, so that training reads pixels instead of files."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray

from diptych.core.errors import ConfigError, DataError, ImageError
from diptych.core.files import atomic_write, clear_tmp, write_text
from diptych.core.fingerprint import DataFingerprint
from diptych.core.sample import Sample
from diptych.data.sources.identity import fingerprint_data
from diptych.data.sources.packed import FORMAT_VERSION, PACK, ShardTable, read_pack, shard_checksum
from diptych.data.sources.protocol import Source
from diptych.data.tools.parallel import in_order
from diptych.images.decode import decode_array
from diptych.images.resize import resize


@dataclass(frozen=True, kw_only=True)
class Packed:
    """Summary of a pack."""

    num_samples: int
    num_bytes: int
    """Total size of the pixels."""
    num_shards: int
    num_kept: int
    """Number of shards that existed already, with the right checksum."""
    skipped: tuple[tuple[str, str], ...]
    """(key, reason) of each sample whose image cannot be read."""


def pack(
    source: Source,
    out: Path,
    *,
    image_px: int = 128,
    per_shard: int = 2048,
    workers: int = 2,
    on_sample: Callable[[], object] | None = None,
) -> Packed:
    """Write the images as raw pixels, resized to a short side of `image_px`; smaller images are not enlarged.

    An interrupted call can be repeated: shards with the right checksum are kept, and damaged ones are written anew.

    Args:
        source: the samples, which are packed in their order.
        out: a folder that is new, or contains a pack of the same source with the same settings.
        image_px: length of the short side in pixels.
        per_shard: number of samples per shard.
        workers: number of decoding threads.
        on_sample: called after each sample.

    Raises:
        ConfigError: a setting is below 1.
        DataError: the folder contains something else or cannot be written, or no image can be read.
    """
    if min(image_px, per_shard, workers) < 1:
        raise ConfigError(f"image_px {image_px}, per_shard {per_shard} and workers {workers} must be at least 1")
    fingerprint = fingerprint_data(source)
    settings = {
        "format_version": FORMAT_VERSION,
        "image_px": image_px,
        "per_shard": per_shard,
        "source": fingerprint.to_plain(),
        "classes": list(source.classes),
        "templates": list(source.templates),
    }
    try:
        known = _begin(out, settings, fingerprint)
        checksums, tables, num_kept = dict[str, str](), list[ShardTable](), 0
        for number, start in enumerate(range(0, len(source), per_shard)):
            name, indices = f"{number:05d}", range(start, min(start + per_shard, len(source)))
            if known.get(name) is None or known[name] != _checksum_or_none(out, name):
                _write_shard(source, indices, out, name, image_px=image_px, workers=workers, on_sample=on_sample)
                known[name] = shard_checksum(out, name)
                _write_meta(out, settings, {"written": known})
            else:
                num_kept += 1
                for _ in indices:
                    (on_sample or (lambda: None))()
            checksums[name] = known[name]
            tables.append(ShardTable.load(out / f"{name}.npz"))
        num_samples = sum(len(table.keys) for table in tables)
        skipped = tuple(skip for table in tables for skip in table.skipped)
        if not num_samples:
            first = f"; the first: {skipped[0][1]}" if skipped else ""
            raise DataError(f"{out}: nothing to pack, none of {len(source)} pictures can be read{first}")
        _write_meta(out, settings, {"written": known, "checksums": checksums})
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    return Packed(
        num_samples=num_samples,
        num_bytes=sum(table.num_bytes for table in tables),
        num_shards=len(tables),
        num_kept=num_kept,
        skipped=skipped,
    )


def _begin(out: Path, settings: dict[str, object], source: DataFingerprint) -> dict[str, str]:
    """Return the checksums of the shards that an earlier call wrote with the same settings."""
    out.mkdir(parents=True, exist_ok=True)
    clear_tmp(out)
    meta = read_pack(out)
    if meta is None:
        if any(out.iterdir()):
            raise DataError(f"{out}: is not empty and holds no pack; choose another folder")
        _write_meta(out, settings, {"written": {}})
        return {}
    if "source" not in meta:
        raise DataError(
            f"{out}: holds a pack of an earlier version, which can only be read; choose another folder or remove it"
        )
    changes = source.changes_since(DataFingerprint.from_plain(meta["source"]))
    if changes is not None:
        raise DataError(f"{out}: holds a pack of other data ({changes}); choose another folder or remove it")
    differing = [name for name, value in settings.items() if meta.get(name) != value]
    if differing:
        raise DataError(f"{out}: holds a pack with another {', '.join(differing)}; choose another folder or remove it")
    return dict(meta["written"])


def _write_meta(out: Path, settings: dict[str, object], more: dict[str, object]) -> None:
    write_text(out / PACK, json.dumps({**settings, **more}, indent=1) + "\n")


def _checksum_or_none(out: Path, name: str) -> str | None:
    try:
        return shard_checksum(out, name)
    except OSError:
        return None


def _write_shard(
    source: Source,
    indices: range,
    out: Path,
    name: str,
    *,
    image_px: int,
    workers: int,
    on_sample: Callable[[], object] | None,
) -> None:
    table = ShardTable()
    with atomic_write(out / f"{name}.pixels") as tmp, tmp.open("wb") as file:
        for index, found in zip(indices, _shrunk(source, indices, image_px, workers), strict=True):
            if isinstance(found, ImageError):
                table.skipped.append((source.key(index), str(found)))
            else:
                sample, pixels = found
                _add(table, sample, source, index)
                table.shapes.append((pixels.shape[0], pixels.shape[1]))
                file.write(np.ascontiguousarray(pixels).data)
            (on_sample or (lambda: None))()
        table.save(out / f"{name}.npz")


def _add(table: ShardTable, sample: Sample, source: Source, index: int) -> None:
    table.keys.append(sample.key)
    for caption in sample.captions:
        table.captions.append(caption)
    table.caption_ends.append(len(table.captions))
    table.labels.append(-1 if sample.label is None else sample.label)
    table.splits.append(source.split(index))
    size = source.image_size(index)
    table.file_sizes.append(-1 if size is None else size)


def _shrunk(
    source: Source, indices: range, image_px: int, workers: int
) -> Iterator[tuple[Sample, UInt8[ndarray, "H W 3"]] | ImageError]:
    """Yield each sample with its resized pixels, or the error, in order; several are processed ahead."""

    def one(index: int) -> tuple[Sample, UInt8[ndarray, "H W 3"]] | ImageError:
        try:
            sample = source[index]
            return sample, shrink(decode_array(sample.image), image_px)
        except ImageError as error:
            return error

    return in_order(one, indices, workers=workers)


def shrink(pixels: UInt8[ndarray, "H W 3"], image_px: int) -> UInt8[ndarray, "H2 W2 3"]:
    """Return the image resized to a short side of `image_px`, or a copy if its short side is not longer.

    >>> shrink(np.zeros((375, 500, 3), dtype=np.uint8), 128).shape
    (128, 171, 3)
    """
    height, width = pixels.shape[:2]
    short = min(height, width)
    if short <= image_px:
        return pixels.copy()
    new_height, new_width = round(height * image_px / short), round(width * image_px / short)
    return resize(pixels, new_height, new_width, interpolation="bicubic").transpose(1, 2, 0)
