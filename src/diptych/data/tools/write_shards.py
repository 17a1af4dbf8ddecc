"""Write a source as WebDataset tars, for the readers of open_clip and webdataset, and for `shards:`."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from diptych.core.errors import ConfigError, DataError, ImageError
from diptych.core.files import atomic_write
from diptych.core.sample import ImageInput, Sample
from diptych.data.sources.benchmark_files import CLASSES, TEMPLATES, TYPE
from diptych.data.sources.protocol import Source
from diptych.images.decode import decode, file_content
from diptych.images.opener import open_image

Layout: TypeAlias = Literal["webdataset", "clip-benchmark"]
_ENDINGS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif"}


@dataclass(frozen=True, kw_only=True)
class WrittenShards:
    """Summary of the written tars."""

    paths: tuple[Path, ...]
    num_samples: int
    skipped: tuple[tuple[str, str], ...]
    """(key, reason) of each sample whose image cannot be read."""


def write_shards(
    source: Source,
    out: Path,
    *,
    per_shard: int = 5000,
    layout: Layout = "webdataset",
    on_sample: Callable[[], object] | None = None,
) -> WrittenShards:
    """Write tars `00000.tar`, `00001.tar`, ... to a folder. Each tar is written to a temporary file and renamed.

    A sample consists of its unchanged image file (a decoded image becomes a PNG), a `.txt` with the first caption, a `.cls`
    with the number of its label, and a `.json` with its key, all captions, label and split. The names of the classes are
    written to `classnames.txt`.

    Args:
        source: the samples, which are written in their order.
        out: the folder, which must not contain tars.
        per_shard: number of samples per tar.
        layout: `clip-benchmark` writes the layout of CLIP_benchmark's WebDataset reader: tars `0.tar`, `1.tar`, ... and
            `nshards.txt` in a folder per split (`test` for samples without one), all captions in `.txt`, one per line, and
            files that describe the dataset.
        on_sample: called after each sample.

    Raises:
        ConfigError: `per_shard` is below 1.
        DataError: the folder contains tars or cannot be written, or no image can be read.
    """
    if per_shard < 1:
        raise ConfigError(f"per_shard is {per_shard}; it must be at least 1")
    if next(out.glob("*.tar"), None) is not None or next(out.glob("*/*.tar"), None) is not None:
        raise DataError(f"{out}: holds tars already; choose another folder")
    skipped: list[tuple[str, str]] = []
    parts: dict[str, list[int]] = {}
    for i in range(len(source)):
        parts.setdefault((source.split(i) or "test") if layout == "clip-benchmark" else ".", []).append(i)
    paths: list[Path] = []
    num_samples = 0
    try:
        for split, indices in parts.items():
            lines = layout == "clip-benchmark"
            good = _readable(source, indices, skipped, on_sample or (lambda: None), lines=lines)
            written, num = _write_tars(good, out / split, per_shard, "{}.tar" if lines else "{:05d}.tar")
            paths, num_samples = paths + written, num_samples + num
            if lines:
                (out / split / "nshards.txt").write_text(f"{len(written)}\n", encoding="utf-8")
        _write_side_files(source, out, layout)
    except OSError as error:
        raise DataError(f"{out}: cannot be written ({error.strerror or error})") from None
    if not paths:
        first = f"; the first: {skipped[0][1]}" if skipped else ""
        raise DataError(f"{out}: nothing to write, none of {len(source)} pictures can be read{first}")
    return WrittenShards(paths=tuple(paths), num_samples=num_samples, skipped=tuple(skipped))


def _write_tars(good: Iterator[dict[str, bytes]], out: Path, per_shard: int, name: str) -> tuple[list[Path], int]:
    """Write the samples, and return the paths of the tars and the number of samples."""
    out.mkdir(parents=True, exist_ok=True)
    paths, num_samples = list[Path](), 0
    sample = next(good, None)
    while sample is not None:
        path = out / name.format(len(paths))
        with atomic_write(path) as tmp, tarfile.open(tmp, "w") as tar:
            for _ in range(per_shard):
                _add(tar, f"{num_samples:09d}", sample)
                num_samples += 1
                sample = next(good, None)
                if sample is None:
                    break
        paths.append(path)
    return paths, num_samples


def _write_side_files(source: Source, out: Path, layout: Layout) -> None:
    """Write the names of the classes; for CLIP_benchmark also the templates, or that the dataset is for retrieval."""
    files = {CLASSES: tuple(" ".join(name.split()) for name in source.classes)}
    if layout == "clip-benchmark":
        files[TEMPLATES] = tuple(template.replace("{}", "{c}") for template in source.templates)
        files[TYPE] = () if source.templates else ("retrieval",)
    for name, lines in files.items():
        if lines:
            (out / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _readable(
    source: Source,
    indices: Sequence[int],
    skipped: list[tuple[str, str]],
    on_sample: Callable[[], object],
    *,
    lines: bool,
) -> Iterator[dict[str, bytes]]:
    """Yield the files of each sample whose image can be decoded, by ending."""
    for i in indices:
        try:
            sample = source[i]
            content, ending = _file_of(sample.image)
            decode(content)
        except ImageError as error:
            skipped.append((source.key(i), str(error)))
        else:
            meta = json.dumps(_meta(sample, source, source.split(i)), ensure_ascii=False)
            texts = [" ".join(text.splitlines()) for text in sample.captions] if lines else sample.captions[:1]
            files = {ending: content, "txt": "\n".join(texts).encode("utf-8", "replace")}
            files |= {} if sample.label is None else {"cls": str(sample.label).encode()}
            yield {**files, "json": meta.encode("utf-8", "replace")}
        on_sample()


def _meta(sample: Sample, source: Source, split: str | None) -> dict[str, object]:
    label = {} if sample.label is None else {"label": source.classes[sample.label]}
    return {"key": sample.key, "captions": sample.captions, **label, **({} if split is None else {"split": split})}


def _file_of(image: ImageInput) -> tuple[bytes, str]:
    """Return the bytes and ending of an image file; a decoded image is encoded as PNG."""
    content = file_content(image)
    try:
        with open_image(content) as opened:
            return content, _ENDINGS.get(opened.format or "", "png")
    except Exception:  # Pillow's plug-ins may raise any exception; `decode` reports it.
        return content, "jpg"


def _add(tar: tarfile.TarFile, name: str, files: dict[str, bytes]) -> None:
    for ending, content in files.items():
        info = tarfile.TarInfo(f"{name}.{ending}")  # No time and owner, so that the same source gives the same bytes.
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
