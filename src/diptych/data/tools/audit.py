"""What is in the data, before a night is spent on it."""

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
    """Counts, and the samples worth a look, by key."""

    num_samples: int
    num_captions: int
    splits: dict[str, int]
    labels: dict[str, int]
    sizes: dict[str, tuple[int, int]]
    """Width and height of the smallest, the median and the largest picture, by area."""
    modes: dict[str, int]
    """File formats with their colour modes, such as `JPEG RGB`, and how many pictures have them."""
    areas: tuple[int, ...]
    """Pixels of each readable picture."""
    unreadable: tuple[tuple[str, str], ...]
    """(key, reason)."""
    same: tuple[tuple[str, ...], ...]
    """Groups of samples whose picture is the same to the byte, or to the pixel where it is no file."""
    alike: tuple[tuple[str, ...], ...]
    """Groups of samples whose pictures look alike, directly or through others of the group. A group includes one of several
    samples with the same picture."""
    across_splits: tuple[tuple[str, ...], ...]
    """Groups of samples whose pictures are the same or look alike, and that are in at least two splits."""
    token_counts: tuple[int, ...]
    """Tokens of each caption under CLIP's tokenizer, marks included."""
    num_cut: int
    """Captions longer than CLIP's context of 77."""
    num_empty: int
    oddities: tuple[Oddity, ...]
    """What is unusual in the data, and what its reader did about it."""
    frequent: tuple[tuple[str, int], ...]
    """The captions that occur most often, and how often."""
    false_negatives: dict[int, float]
    """By batch size: pairs of a random batch that share a caption without sharing a picture, on average."""


class _Seen(NamedTuple):
    size: tuple[int, int]
    mode: str
    digest: bytes
    print: int


def audit(
    source: Source,
    *,
    splits: Sequence[str] | None = None,
    workers: int = 2,
    on_sample: Callable[[], object] | None = None,
) -> Audit:
    """Read every picture and every caption once.

    Args:
        source: what is looked at.
        splits: the split of each sample; the source's own if nothing is given.
        workers: threads that decode.
        on_sample: called after each picture.

    Raises:
        DataError: there is nothing in it.
    """
    if not len(source):
        raise DataError("the data holds no samples")
    keys = [source.key(i) for i in range(len(source))]
    own = [source.split(i) or "by key" for i in range(len(source))]
    splits = own if splits is None else list(splits)
    captions = [source.captions(i) for i in range(len(source))]
    labels: Counter[str] = Counter()
    seen: list[_Seen | None] = []
    unreadable = []
    for i, (result, label) in enumerate(_look(source, workers)):
        if label is not None:
            labels[source.classes[label]] += 1
        if isinstance(result, ImageError):
            unreadable.append((keys[i], str(result)))
        seen.append(None if isinstance(result, ImageError) else result)
        (on_sample or (lambda: None))()
    same = equal_groups([entry and entry.digest for entry in seen])
    near = near_groups([entry and entry.print for entry in seen])
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
        sizes=_sizes([entry.size for entry in seen if entry]),
        modes=dict(Counter(entry.mode for entry in seen if entry).most_common()),
        areas=tuple(entry.size[0] * entry.size[1] for entry in seen if entry),
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
    """Pairs of different pictures in a random batch that have the same caption, on average, by batch size.

    One caption is drawn from each picture, as training does it. With p(c) the chance that a random picture draws caption c,
    a random pair agrees with the chance that the sum of p(c)^2 over all captions gives, less that of a picture with itself.

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
    pairs = (sum(value**2 for value in chance.values()) - own) / 2  # Expected agreeing pairs of the whole set.
    drawn = {size: min(size, num) for size in BATCH_SIZES}
    return {size: round(pairs * n * (n - 1) / max(1, num * (num - 1)), 4) for size, n in drawn.items()}


def _look(source: Source, workers: int) -> Iterator[tuple[_Seen | ImageError, int | None]]:
    """Each sample's picture, in order; a few are always under way."""

    def see(index: int) -> tuple[_Seen | ImageError, int | None]:
        try:
            sample = source[index]
        except ImageError as error:
            return error, None
        try:
            picture = decode(sample.image)
            digest = _digest(sample.image, picture.tobytes)
            return _Seen(picture.size, file_mode(sample.image), digest, fingerprint(picture)), sample.label
        except ImageError as error:
            return error, sample.label
        except OSError as error:  # The file went between the two looks at it.
            return ImageError(f"{describe(sample.image)}: cannot be read ({error.strerror})"), sample.label

    return in_order(see, range(len(source)), workers=workers)


def _digest(image: ImageInput, pixels: Callable[[], bytes]) -> bytes:
    """Of the file where there is one, else of the pixels."""
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
