"""Any source as WebDataset tars, which open_clip's and webdataset's readers take, and `shards:` reads with random access."""

import io
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from diptych.core.errors import ConfigError, DataError, ImageError
from diptych.core.files import MAX_IMAGE_BYTES, atomic_write, read_regular
from diptych.core.sample import ImageInput, Sample
from diptych.data.sources.protocol import Source
from diptych.images.decode import decode
from diptych.images.opener import open_image

_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """What was written."""

    paths: tuple[Path, ...]
    num_samples: int
    skipped: tuple[tuple[str, str], ...]
    """(key, reason) of the samples whose image cannot be read."""


def write_shards(
    source: Source, out: Path, *, per_shard: int = 5000, on_sample: Callable[[], object] | None = None
) -> WrittenShards:
    """Tars `00000.tar`, `00001.tar`, ... in a folder, each written beside its place and renamed.

    A sample is its image file as it is (a drawing becomes a PNG), `.txt` with the first caption, and `.json` with key, all
    captions, label and split.

    Args:
        source: what is written, in its order.
        out: the folder, which must not hold tars.
        per_shard: samples a tar.
        on_sample: called after each sample.

    Raises:
        ConfigError: `per_shard` is below 1.
        DataError: the folder holds tars already, or cannot be written, or no picture can be read.
    """
    if per_shard < 1:
        raise ConfigError(f"per_shard is {per_shard}; it must be at least 1")
    if next(out.glob("*.tar"), None) is not None:
        raise DataError(f"{out}: holds tars already; choose another folder")
    skipped: list[tuple[str, str]] = []
    good = _readable(source, skipped, on_sample or (lambda: None))
    paths: list[Path] = []
    num_samples = 0
    try:
        out.mkdir(parents=True, exist_ok=True)
        sample = next(good, None)
        while sample is not None:
            path = out / f"{len(paths):05d}.tar"
            with atomic_write(path) as tmp, tarfile.open(tmp, "w") as tar:
                for _ in range(per_shard):
                    _add(tar, f"{num_samples:09d}", sample)
                    num_samples += 1
                    sample = next(good, None)
                    if sample is None:
                        break
            paths.append(path)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    if not paths:
        first = f"; the first: {skipped[0][1]}" if skipped else ""
        raise DataError(f"{out}: nothing to write, none of {len(source)} pictures can be read{first}")
    return WrittenShards(paths=tuple(paths), num_samples=num_samples, skipped=tuple(skipped))


def _readable(
    source: Source, skipped: list[tuple[str, str]], on_sample: Callable[[], object]
) -> Iterator[dict[str, bytes]]:
    """The files of every sample whose image can be decoded, by their endings."""
    for i in range(len(source)):
        try:
            sample = source[i]
            content, ending = _file_of(sample.image)
            decode(content)
        except ImageError as error:
            skipped.append((source.key(i), str(error)))
        else:
            meta = json.dumps(_meta(sample, source, source.split(i)), ensure_ascii=False)
            caption = sample.captions[0].encode("utf-8", "replace")
            yield {ending: content, "txt": caption, "json": meta.encode("utf-8", "replace")}
        on_sample()


def _meta(sample: Sample, source: Source, split: str | None) -> dict[str, object]:
    label = {} if sample.label is None else {"label": source.classes[sample.label]}
    return {"key": sample.key, "captions": sample.captions, **label, **({} if split is None else {"split": split})}


def _file_of(image: ImageInput) -> tuple[bytes, str]:
    """An image file's bytes and ending; what is no file yet becomes a PNG."""
    if isinstance(image, str | os.PathLike):
        path = Path(image)
        try:
            image = read_regular(path, max_bytes=MAX_IMAGE_BYTES)
        except OSError as error:
            raise ImageError(f"{path}: cannot be read ({error.strerror})") from None
    if isinstance(image, bytes):
        try:
            with open_image(image) as opened:
                return image, _ENDINGS.get(opened.format or "", "png")
        except Exception:  # Pillow's plug-ins raise almost anything; `decode` says what it is.
            return image, "jpg"
    buffer = io.BytesIO()
    decode(image).save(buffer, "PNG")
    return buffer.getvalue(), "png"


def _add(tar: tarfile.TarFile, name: str, files: dict[str, bytes]) -> None:
    for ending, content in files.items():
        info = tarfile.TarInfo(f"{name}.{ending}")  # Without time and owner: the same source gives the same bytes.
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
