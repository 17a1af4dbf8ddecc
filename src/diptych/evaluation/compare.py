"""Compare models on the same samples, with confidence intervals. Shapes: N samples."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray
from PIL import Image

from diptych.core.deprecation import RenamedAttribute
from diptych.core.errors import ConfigError, DataError
from diptych.core.randomness import keyed_generator
from diptych.evaluation.encoded import EncodedImages
from diptych.evaluation.retrieval import Retrieval
from diptych.evaluation.zero_shot import ZeroShot

RESAMPLES = 10_000
"""Number of bootstrap resamples."""


@dataclass(frozen=True)
class Interval:
    """A metric and its 95% bootstrap confidence interval."""

    value: float
    low: float
    """The 2.5th percentile of the resamples."""
    high: float
    """The 97.5th percentile of the resamples."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of two or more models. The first model is the baseline."""

    measure: str
    """Name of the metric."""
    names: tuple[str, ...]
    """Name of each model."""
    own: tuple[Interval, ...]
    """Metric of each model."""
    differences: tuple[Interval, ...]
    """For each model, its metric minus the metric of the first model, on the same samples."""
    protocol: dict[str, str | int]
    """How the metrics were measured."""
    hits: tuple[Float[ndarray, " N"], ...]
    """For each model, 1 for each sample that it gets right, else 0."""
    images: EncodedImages
    """The samples."""
    answers: tuple[Callable[[int], str], ...]
    """For each model, a function that returns its answer for a sample."""

    said = RenamedAttribute("answers")
    figures = RenamedAttribute("metrics")
    tell = RenamedAttribute("describe")

    @property
    def explanation(self) -> str:
        """A text that explains the table of intervals."""
        return (
            f"Paired bootstrap: {RESAMPLES:,} times as many images are drawn with replacement, the same for every model. A "
            "difference whose interval does not contain 0 is not due to chance alone."
        )

    def metrics(self) -> dict[str, Any]:
        """Return all results except those of single samples."""
        return {
            "measure": self.measure,
            "models": list(self.names),
            "own": list(self.own),
            "differences": list(self.differences),
            "protocol": self.protocol,
        }

    def only(self, right: int, wrong: int) -> list[int]:
        """Return the rows of the samples that model `right` gets right and model `wrong` gets wrong, in random order."""
        selected = np.flatnonzero((self.hits[right] == 1) & (self.hits[wrong] == 0))
        order = keyed_generator(0, "compare").permutation(len(selected))
        return [int(row) for row in selected[order]]

    def picture(self, row: int) -> Image.Image:
        """Return the image of a sample."""
        return self.images.picture(row)

    def describe(self, row: int, right: int, wrong: int) -> str:
        """Return the answers of models `right` and `wrong` for a sample."""
        return f"{self.answers[right](row)}, not {self.answers[wrong](row)}"


def compare_zero_shot(names: Sequence[str], results: Sequence[ZeroShot]) -> Comparison:
    """Compare the top-1 accuracies of models on the same images.

    Args:
        names: the name of each model.
        results: the result of each model, in the same order.

    Raises:
        ConfigError: there are fewer than two models.
        DataError: the models were measured on different samples.
    """
    _check(names, [result.images for result in results])

    def answers_of(result: ZeroShot) -> Callable[[int], str]:
        return lambda row: result.classes[int(result.predicted[row])]

    return _compare(
        "top 1",
        names,
        [result.hits for result in results],
        results[0].images,
        _joint(names, [result.report.protocol for result in results]),
        [answers_of(result) for result in results],
    )


def compare_retrieval(names: Sequence[str], results: Sequence[Retrieval]) -> Comparison:
    """Compare the image-to-text R@1 of models. A sample is an image with all its texts; resampling keeps them together.

    Args:
        names: the name of each model.
        results: the result of each model, in the same order.

    Raises:
        ConfigError: there are fewer than two models.
        DataError: the models were measured on different samples.
    """
    _check(names, [result.pairs.images for result in results])

    def answers_of(result: Retrieval) -> Callable[[int], str]:
        pairs = result.pairs
        return lambda row: f"'{pairs.captions[int((pairs.text_emb @ pairs.image_emb[row]).argmax())]}'"

    return _compare(
        "R@1 image to text",
        names,
        [result.image_to_text.found_at(1).astype(float) for result in results],
        results[0].pairs.images,
        _joint(names, [result.report.protocol for result in results]),
        [answers_of(result) for result in results],
    )


def bootstrap(
    hits: Sequence[Float[ndarray, " N"]], *, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[list[Interval], list[Interval]]:
    """Return the mean of each model's hits and its difference from the first model's mean, with 95% intervals.

    Uses the paired percentile bootstrap: each resample has the same samples for all models.

    Args:
        hits: for each model one number per sample.
        resamples: number of bootstrap resamples.
        seed: seed of the random numbers.
    """
    table = np.stack(hits)  # (models, N)
    generator = np.random.default_rng(seed)
    means = np.empty((resamples, len(table)))
    num = table.shape[1]
    for start in range(resamples):
        means[start] = table[:, generator.integers(0, num, num)].mean(axis=1)
    values = table.mean(axis=1)
    own = [_interval(values[i], means[:, i]) for i in range(len(table))]
    differences = [_interval(values[i] - values[0], means[:, i] - means[:, 0]) for i in range(len(table))]
    return own, differences


def _interval(value: float, resampled: Float[ndarray, "_"]) -> Interval:
    low, high = np.percentile(resampled, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _compare(  # noqa: PLR0917  (these are the parts of a comparison)
    measure: str,
    names: Sequence[str],
    hits: Sequence[Float[ndarray, " N"]],
    images: EncodedImages,
    protocol: dict[str, str | int],
    answers: Sequence[Callable[[int], str]],
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
        answers=tuple(answers),
    )


def _joint(names: Sequence[str], protocols: Sequence[dict[str, str | int]]) -> dict[str, str | int]:
    """Return one protocol: a value that all models share once, any other value (such as the transform) for each model."""
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
