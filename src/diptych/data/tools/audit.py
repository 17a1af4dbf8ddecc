"""Check a dataset before training: counts, unreadable and duplicate images, caption lengths, and likely false negatives."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diptych.core.errors import DataError, ImageError
from diptych.core.files import MAX_IMAGE_BYTES, read_regular
from diptych.core.sample import ImageInput
from diptych.data.sources.protocol import Source
from diptych.data.storage.oddities import Oddity
from diptych.data.tools.parallel import in_order
from diptych.images.decode import decode, describe, file_mode
from diptych.images.fingerprints import equal_groups, fingerprint, near_groups
from diptych.tokenizers.clip_bpe import ClipBPETokenizer

BATCH_SIZES = (64, 256, 1024)


@dataclass(frozen=True, kw_only=True)
class Audit:
    """Statistics of a dataset, and the keys of suspicious samples."""

    num_samples: int
    num_captions: int
    splits: dict[str, int]
    labels: dict[str, int]
    sizes: dict[str, tuple[int, int]]
    """Width and height of the smallest, the median and the largest image, by area."""
    modes: dict[str, int]
    """Number of images by file format and color mode, such as `JPEG RGB`."""
    areas: tuple[int, ...]
    """Number of pixels of each readable image."""
    unreadable: tuple[tuple[str, str], ...]
    """(key, reason) of each unreadable image."""
    same: tuple[tuple[str, ...], ...]
    """Groups of samples whose image files are identical; decoded images are compared by their pixels."""
    alike: tuple[tuple[str, ...], ...]
    """Groups of samples with similar images, directly or through others of the group. Of several samples with identical
    images, only one is included."""
    across_splits: tuple[tuple[str, ...], ...]
    """Groups of samples with identical or similar images that are in at least two splits."""
    token_counts: tuple[int, ...]
    """Number of tokens of each caption with CLIP's tokenizer, including the start and end tokens."""
    num_cut: int
    """Number of captions longer than CLIP's context of 77 tokens."""
    num_empty: int
    """Number of empty captions."""
    oddities: tuple[Oddity, ...]
    """Unusual things in the data, and how the reader handled them."""
    frequent: tuple[tuple[str, int], ...]
    """The ten most frequent captions, with their counts."""
    false_negatives: dict[int, float]
    """Average number of pairs in a random batch that share a caption but not an image, by batch size."""


class _ImageInfo(NamedTuple):
    size: tuple[int, int]
    mode: str
    digest: bytes
    phash: int


def audit(
    source: Source,
    *,
    splits: Sequence[str] | None = None,
    workers: int = 2,
    on_sample: Callable[[], object] | None = None,
) -> Audit:
    """Read every image and every caption once, and return the statistics.

    Args:
        source: the samples.
        splits: the split of each sample; by default, the splits of the source.
        workers: number of decoding threads.
        on_sample: called after each image.

    Raises:
        DataError: the source is empty.
    """
    if not len(source):
        raise DataError("the data holds no samples")
    keys = [source.key(i) for i in range(len(source))]
    own = [source.split(i) or "by key" for i in range(len(source))]
    splits = own if splits is None else list(splits)
    captions = [source.captions(i) for i in range(len(source))]
    labels: Counter[str] = Counter()
    infos: list[_ImageInfo | None] = []
    unreadable = []
    for i, (result, label) in enumerate(_inspect_images(source, workers)):
        if label is not None:
            labels[source.classes[label]] += 1
        if isinstance(result, ImageError):
            unreadable.append((keys[i], str(result)))
        infos.append(None if isinstance(result, ImageError) else result)
        (on_sample or (lambda: None))()
    same = equal_groups([info and info.digest for info in infos])
    near = near_groups([info and info.phash for info in infos])
    repeated = {i for group in same for i in group[1:]}
    distinct = [[i for i in group if i not in repeated] for group in near]
    alike = [group for group in distinct if len(group) > 1]
    across = [group for group in near if len({splits[i] for i in group}) > 1]
    texts = [caption for of_sample in captions for caption in of_sample]
    encoded = ClipBPETokenizer(context_length=2**20).encode(texts)
    return Audit(
        num_samples=len(source),
        num_captions=len(texts),
        splits=dict(Counter(splits)),
        labels=dict(labels.most_common()),
        sizes=_sizes([info.size for info in infos if info]),
        modes=dict(Counter(info.mode for info in infos if info).most_common()),
        areas=tuple(info.size[0] * info.size[1] for info in infos if info),
        unreadable=tuple(unreadable),
        same=_named(same, keys),
        alike=_named(alike, keys),
        across_splits=_named(across, keys),
        token_counts=tuple(encoded.lengths.tolist()),
        num_cut=int((encoded.lengths > 77).sum()),
        num_empty=sum(not text.strip() for text in texts),
        oddities=source.oddities,
        frequent=tuple(Counter(texts).most_common(10)),
        false_negatives=false_negatives(captions),
    )


def false_negatives(captions: list[tuple[str, ...]]) -> dict[int, float]:
    """Return the average number of pairs of different images in a random batch that have the same caption, by batch size.

    One caption is drawn per image, as in training. If a random image draws caption c with probability p(c), two random images
    have the same caption with probability sum over c of p(c)^2; the pairs of an image with itself are subtracted.

    >>> false_negatives([("a dog",), ("a dog",), ("a cat",)])[64]
    1.0
    """
    num = len(captions)
    chance: dict[str, float] = {}
    own = 0.0
    for texts in captions:
        counts = Counter(" ".join(text.lower().split()) for text in texts)
        for text, times in counts.items():
            chance[text] = chance.get(text, 0.0) + times / len(texts)
        own += sum((times / len(texts)) ** 2 for times in counts.values())
    pairs = (sum(value**2 for value in chance.values()) - own) / 2  # Expected number in the whole dataset.
    drawn = {size: min(size, num) for size in BATCH_SIZES}
    return {size: round(pairs * n * (n - 1) / max(1, num * (num - 1)), 4) for size, n in drawn.items()}


def _inspect_images(source: Source, workers: int) -> Iterator[tuple[_ImageInfo | ImageError, int | None]]:
    """Yield (image info or error, label) of each sample, in order; several are processed ahead."""

    def inspect(index: int) -> tuple[_ImageInfo | ImageError, int | None]:
        try:
            sample = source[index]
        except ImageError as error:
            return error, None
        try:
            picture = decode(sample.image)
            digest = _digest(sample.image, picture.tobytes)
            return _ImageInfo(picture.size, file_mode(sample.image), digest, fingerprint(picture)), sample.label
        except ImageError as error:
            return error, sample.label
        except OSError as error:  # The file was removed after it was decoded.
            return ImageError(f"{describe(sample.image)}: cannot be read ({error.strerror})"), sample.label

    return in_order(inspect, range(len(source)), workers=workers)


def _digest(image: ImageInput, pixels: Callable[[], bytes]) -> bytes:
    """Return a hash of the image file, or of the pixels if there is no file."""
    if isinstance(image, str | Path):
        image = read_regular(image, max_bytes=MAX_IMAGE_BYTES)
    content = image if isinstance(image, bytes) else pixels()
    return blake2b(content, digest_size=16).digest()


def _named(groups: list[list[int]], keys: list[str]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(keys[i] for i in group) for group in groups)


def _sizes(sizes: list[tuple[int, int]]) -> dict[str, tuple[int, int]]:
    if not sizes:
        return {}
    ordered = [sizes[i] for i in np.argsort([width * height for width, height in sizes], kind="stable")]
    return {"smallest": ordered[0], "median": ordered[len(ordered) // 2], "largest": ordered[-1]}
