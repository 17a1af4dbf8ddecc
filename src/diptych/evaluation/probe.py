"""Classifiers on frozen image embeddings: logistic regression and nearest neighbors.

Shapes: N images, M training images, E embedding, C classes.
"""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64
from numpy import ndarray

from diptych.core.errors import ConfigError, DataError
from diptych.core.progress import Track, silently
from diptych.data.sources.protocol import Source
from diptych.evaluation.encoded import EncodedImages, SourceEncoder
from diptych.evaluation.zero_shot import check_labels

COARSE = tuple(10.0**power for power in (-6, -4, -2, 0, 2, 4, 6))
"""Values of C that are tried first."""
_STEPS_PER_DECADE = 8
_MAX_ITERATIONS = 1000
_VAL_SHARE = 0.1
_CHUNK = 2048


@dataclass(frozen=True, kw_only=True)
class ProbeReport:
    """The accuracy of a linear probe. Accuracies are in [0, 1]."""

    top1: float
    mean_per_class: float
    """Mean of the accuracies of the classes."""
    c: float
    """Inverse regularization strength (`C` of scikit-learn) with the best accuracy on the validation samples."""
    sweep: dict[float, float]
    """Accuracy on the validation samples for every `C` that was tried."""
    protocol: dict[str, str | int]
    """How the accuracy was measured."""


@dataclass(frozen=True, kw_only=True)
class KnnReport:
    """The accuracy of nearest-neighbor classification. Accuracies are in [0, 1]."""

    top1: float
    mean_per_class: float
    """Mean of the accuracies of the classes."""
    protocol: dict[str, str | int]
    """How the accuracy was measured."""


def evaluate_probe(
    encoder: SourceEncoder, train: Source, test: Source, *, split: str, train_split: str, seed: int = 0
) -> ProbeReport:
    """Train and measure logistic regression on unit embeddings (Radford et al. 2021, app. A.3: L-BFGS, up to 1,000 iterations).

    As in the paper, the sweep tries seven values of `C` from 1e-6 to 1e6, then halves the interval around the best one until
    there are eight values per decade. `C` is selected on a random tenth of the training samples, which serves as validation
    set. Then the classifier is trained again on all training samples.

    Args:
        encoder: the model.
        train: labeled samples for training.
        test: labeled samples for measuring the accuracy.
        split: name of the test split, for the protocol.
        train_split: name of the training split, for the protocol.
        seed: seed of the selection of the validation samples.

    Raises:
        DataError: labels are missing, or the training samples are fewer than ten or belong to a single class.
        ConfigError: scikit-learn is not installed.
    """
    features, labels, images = _features(encoder, train)
    test_features, test_labels, test_images = _features(encoder, test)
    if len(features) < 10 or len(np.unique(labels)) < 2:
        raise DataError(f"the split '{train_split}' has {len(features)} samples of {len(np.unique(labels))} classes; a probe "
                        "needs ten of two")  # fmt: skip
    is_validation = validation_mask(labels, seed=seed)
    fit = _fit_function()
    sweep: dict[float, float] = {}

    def accuracy(c: float) -> float:
        if c not in sweep:
            model = fit(features[~is_validation], labels[~is_validation], c)
            sweep[c] = float((model.predict(features[is_validation]) == labels[is_validation]).mean())
        return sweep[c]

    best = search_c(accuracy, track=encoder.track)
    predicted = fit(features, labels, best).predict(test_features)
    return ProbeReport(
        **_accuracies(predicted, test_labels),
        c=best,
        sweep=dict(sorted(sweep.items())),
        protocol={
            **encoder.protocol(test_images, split=split),
            "trained_on": f"{len(images.rows)} images of {train_split}",
            "chosen_on": f"{int(is_validation.sum())} of them, seed {seed}",
            "classifier": f"logistic regression, L-BFGS, at most {_MAX_ITERATIONS} iterations, unit embeddings",
        },
    )


def evaluate_knn(
    encoder: SourceEncoder,
    train: Source,
    test: Source,
    *,
    split: str,
    train_split: str,
    neighbours: int = 20,
    temperature: float = 0.07,
) -> KnnReport:
    """Classify each image by the votes of the nearest training images, weighted by exp(cosine / temperature) (Wu et al. 2018).

    Args:
        encoder: the model.
        train: labeled samples that vote.
        test: labeled samples for measuring the accuracy.
        split: name of the test split, for the protocol.
        train_split: name of the training split, for the protocol.
        neighbours: number of training images that vote.
        temperature: temperature of the weights, above 0.

    Raises:
        DataError: labels are missing.
        ConfigError: there are fewer training images than `neighbours`, or the temperature is not above 0.
    """
    if not 0 < temperature < math.inf:
        raise ConfigError(f"temperature is {temperature}; it must be above 0")
    features, labels, images = _features(encoder, train)
    test_features, test_labels, test_images = _features(encoder, test)
    if not 1 <= neighbours <= len(features):
        raise ConfigError(f"neighbours is {neighbours}; the split '{train_split}' has {len(features)} images")
    predicted = nearest_votes(
        features, labels, test_features, num_classes=len(train.classes), neighbours=neighbours, temperature=temperature
    )
    return KnnReport(
        **_accuracies(predicted, test_labels),
        protocol={
            **encoder.protocol(test_images, split=split),
            "trained_on": f"{len(images.rows)} images of {train_split}",
            "classifier": f"{neighbours} nearest by cosine, votes exp(cosine / {temperature:g})",
        },
    )


def validation_mask(labels: Int64[ndarray, " M"], *, seed: int) -> Bool[ndarray, " M"]:
    """Return a mask of a random tenth of the samples for validation. At least one sample of each class is not selected.

    Args:
        labels: the class of each sample.
        seed: seed of the random selection.

    Raises:
        DataError: every class has a single sample.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    reserved = [max(np.flatnonzero(labels == label), key=order.__getitem__) for label in np.unique(labels)]
    free = np.setdiff1d(np.arange(len(labels)), reserved)
    if not len(free):
        raise DataError("each class has one sample in the training split; a probe needs two of one class or more")
    is_validation = np.zeros(len(labels), dtype=bool)
    is_validation[free[np.argsort(order[free])][: max(1, round(_VAL_SHARE * len(labels)))]] = True
    return is_validation


def search_c(accuracy: Callable[[float], float], *, track: Track = silently) -> float:
    """Return the `C` with the best accuracy; among equal accuracies, the smallest (the strongest regularization).

    Tries `COARSE`, then repeatedly the values halfway (in log10) on both sides of the best one.

    Args:
        accuracy: returns the validation accuracy for a value of `C`.
        track: reports progress.

    >>> search_c(lambda c: -abs(np.log10(c) - 0.5))
    3.16...
    """
    width = float(np.log10(COARSE[1] / COARSE[0]))
    num_halvings = int(np.log2(width * _STEPS_PER_DECADE))
    with track("decays", len(COARSE) + 2 * num_halvings) as advance:
        tried: dict[float, float] = {}

        def attempt(power: float) -> None:
            power = round(power, 6)
            if power not in tried and -6 <= power <= 6:
                tried[power] = accuracy(float(10.0**power))
            advance()

        for c in COARSE:
            attempt(float(np.log10(c)))
        for _ in range(num_halvings):
            best = _best(tried)
            width /= 2
            attempt(best - width)
            attempt(best + width)
    return float(10.0 ** _best(tried))


def nearest_votes(
    features: Float32[ndarray, "M E"],
    labels: Int64[ndarray, " M"],
    queries: Float32[ndarray, "N E"],
    *,
    num_classes: int,
    neighbours: int,
    temperature: float,
) -> Int64[ndarray, " N"]:
    """Return the predicted class of each query: the class with the largest sum of votes, the lowest index among equals.

    Args:
        features: unit embeddings of the training images.
        labels: classes of the training images.
        queries: unit embeddings of the images to classify.
        num_classes: number of classes.
        neighbours: number of nearest training images that vote.
        temperature: temperature of the weights exp(cosine / temperature).
    """
    stored, owner = torch.from_numpy(features), torch.from_numpy(labels)
    predicted = []
    for part in torch.from_numpy(queries).split(_CHUNK):
        cosine, nearest = (part @ stored.T).topk(neighbours, dim=1)  # (chunk, neighbours)
        weight = torch.exp((cosine - 1) / temperature)
        votes = torch.zeros(len(part), num_classes).scatter_add_(1, owner[nearest], weight)
        predicted.append(votes.argmax(dim=1))
    return torch.cat(predicted).numpy()


def _best(tried: dict[float, float]) -> float:
    return max(sorted(tried), key=lambda power: tried[power])


def _features(
    encoder: SourceEncoder, source: Source
) -> tuple[Float32[ndarray, "N E"], Int64[ndarray, " N"], EncodedImages]:
    check_labels(source)
    images = encoder.encode_images(source)
    return images.emb, np.array(images.labels, dtype=np.int64), images


def _accuracies(predicted: Int64[ndarray, " N"], labels: Int64[ndarray, " N"]) -> dict[str, float]:
    hit = predicted == labels
    per_class = [float(hit[labels == label].mean()) for label in np.unique(labels)]
    return {"top1": float(hit.mean()), "mean_per_class": float(np.mean(per_class))}


def _fit_function() -> Callable[[Float[ndarray, "M E"], Int64[ndarray, " M"], float], Any]:
    try:
        from sklearn.exceptions import ConvergenceWarning  # noqa: PLC0415  (an extra; takes a second)
        from sklearn.linear_model import LogisticRegression  # noqa: PLC0415
    except ImportError:
        raise ConfigError("a probe needs scikit-learn: pip install 'diptych[probe]'") from None

    def fit(features: Float[ndarray, "M E"], labels: Int64[ndarray, " M"], c: float) -> Any:
        with warnings.catch_warnings():  # The limit of iterations is part of the protocol.
            warnings.simplefilter("ignore", ConvergenceWarning)
            return LogisticRegression(C=c, max_iter=_MAX_ITERATIONS).fit(features, labels)

    return fit
