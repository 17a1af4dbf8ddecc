"""Several models on the same samples: how they differ, and how sure that is. Shapes: N samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from diptych.core.errors import ConfigError, DataError
from diptych.core.randomness import keyed_generator
from diptych.evaluation.encoded import EncodedImages
from diptych.evaluation.retrieval import Retrieval
from diptych.evaluation.zero_shot import ZeroShot

RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A figure, and where it lies in 95 of a hundred resamplings."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models side by side. The first is what the others are compared with."""

    measure: str
    names: tuple[str, ...]
    own: tuple[Interval, ...]
    differences: tuple[Interval, ...]
    """Of each model's figure from the first one's, on the same samples."""
    protocol: dict[str, str | int]
    hits: tuple[Float[ndarray, " N"], ...]
    images: EncodedImages
    said: tuple[Callable[[int], str], ...]
    """What each model answered to a sample."""

    @property
    def explanation(self) -> str:
        """How to read the table."""
        return (
            f"Paired bootstrap: {RESAMPLES:,} times as many images are drawn with replacement, the same for every model. A "
            "difference whose interval does not hold 0 is not chance alone."
        )

    def figures(self) -> dict[str, Any]:
        """All but the samples."""
        return {
            "measure": self.measure,
            "models": list(self.names),
            "own": list(self.own),
            "differences": list(self.differences),
            "protocol": self.protocol,
        }

    def only(self, right: int, wrong: int) -> list[int]:
        """Samples that one model gets right and the other wrong, evenly spread over all of them."""
        chosen = np.flatnonzero((self.hits[right] == 1) & (self.hits[wrong] == 0))
        order = keyed_generator(0, "compare").permutation(len(chosen))
        return [int(row) for row in chosen[order]]

    def picture(self, row: int) -> Image.Image:
        """A sample's image."""
        return self.images.picture(row)

    def tell(self, row: int, right: int, wrong: int) -> str:
        """What both said to it."""
        return f"{self.said[right](row)}, not {self.said[wrong](row)}"


def compare_zero_shot(names: Sequence[str], results: Sequence[ZeroShot]) -> Comparison:
    """Top-1 accuracies on the images that all models could read.

    Raises:
        ConfigError: there are fewer than two models.
        DataError: the models were measured on different samples.
    """
    _check(names, [result.images for result in results])

    def sayer(result: ZeroShot) -> Callable[[int], str]:
        return lambda row: result.classes[int(result.predicted[row])]

    return _compare(
        "top 1",
        names,
        [result.hits for result in results],
        results[0].images,
        _joint(names, [result.report.protocol for result in results]),
        [sayer(result) for result in results],
    )


def compare_retrieval(names: Sequence[str], results: Sequence[Retrieval]) -> Comparison:
    """R@1 from images to texts. A sample is an image with all its texts, which resampling keeps together.

    Raises:
        ConfigError: there are fewer than two models.
        DataError: the models were measured on different samples.
    """
    _check(names, [result.pairs.images for result in results])

    def sayer(result: Retrieval) -> Callable[[int], str]:
        pairs = result.pairs
        return lambda row: f"'{pairs.captions[int((pairs.text_emb @ pairs.image_emb[row]).argmax())]}'"

    return _compare(
        "R@1 image to text",
        names,
        [result.image_to_text.found_at(1).astype(float) for result in results],
        results[0].pairs.images,
        _joint(names, [result.report.protocol for result in results]),
        [sayer(result) for result in results],
    )


def bootstrap(
    hits: Sequence[Float[ndarray, " N"]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[list[Interval], list[Interval]]:
    """Means of samples with their intervals, and of their differences from the first; the same draws for all."""
    table = np.stack(hits)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, len(table)))
    num = table.shape[1]
    for start in range(resamples):
        means[start] = table[:, generator.integers(0, num, num)].mean(axis=1)
    values = table.mean(axis=1)
    own = [_interval(values[i], means[:, i]) for i in range(len(table))]
    differences = [_interval(values[i] - values[0], means[:, i] - means[:, 0]) for i in range(len(table))]
    return own, differences


def _interval(value: float, drawn: Float[ndarray, "_"]) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _compare(  # noqa: PLR0917  (what a comparison is made of)
    measure: str,
    names: Sequence[str],
    hits: Sequence[Float[ndarray, " N"]],
    images: EncodedImages,
    protocol: dict[str, str | int],
    said: Sequence[Callable[[int], str]],
) -> Comparison:
    own, differences = bootstrap(hits)
    return Comparison(
        measure=measure,
        names=tuple(names),
        own=tuple(own),
        differences=tuple(differences),
        protocol=protocol,
        hits=tuple(hits),
        images=images,
        said=tuple(said),
    )


def _joint(names: Sequence[str], protocols: Sequence[dict[str, str | int]]) -> dict[str, str | int]:
    """What all models share, and of the rest, such as the transform, each model's own."""
    joint: dict[str, str | int] = {}
    for key, value in protocols[0].items():
        own = {name: protocol[key] for name, protocol in zip(names, protocols, strict=True)}
        is_shared = len(set(own.values())) == 1
        joint[key] = value if is_shared else "; ".join(f"{name}: {theirs}" for name, theirs in own.items())
    return joint


def _check(names: Sequence[str], images: Sequence[EncodedImages]) -> None:
    if len(names) < 2:
        raise ConfigError("a comparison needs at least two bundles")
    for name, other in zip(names[1:], images[1:], strict=True):
        if other.keys != images[0].keys:
            raise DataError(f"{names[0]} and {name} were not measured on the same samples: each could read others")
