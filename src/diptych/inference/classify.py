"""Zero-shot classification (Radford et al. 2021, sec. 3.1). Shapes: I images, C classes, N texts, E embedding."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.lists import check_list
from diptych.core.program import command
from diptych.core.progress import Track, silently
from diptych.inference.encoder import Encoder
from diptych.inference.inputs import Images, OnError, encode_all
from diptych.inference.similarity import softmax

DEFAULT_TEMPLATES = ("a photo of a {}",)
"""Templates of the prompts; `{}` is replaced by the name of a class."""


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """Score of one class for one image."""

    name: str
    """Name of the class."""
    probability: float
    """Softmax over the classes at the model's temperature, within [0, 1]."""
    cosine: float
    """Cosine similarity of the image and the class embedding, within [-1, 1]."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Classes of one image."""

    image: str
    """Name of the image."""
    scores: tuple[ClassScore, ...]
    """Scores of all classes, most probable first."""
    threshold: float | None = None
    """Minimum cosine similarity of the best class, or None."""

    @property
    def best(self) -> ClassScore | None:
        """The most probable class; None if its cosine similarity is below the threshold."""
        first = self.scores[0]
        return None if self.threshold is not None and first.cosine < self.threshold else first


def classify(
    embedder: Encoder,
    images: Images,
    classes: Sequence[str],
    *,
    templates: Sequence[str] = DEFAULT_TEMPLATES,
    threshold: float | Literal["auto"] | None = None,
    on_error: OnError | None = None,
    track: Track = silently,
) -> list[Classification]:
    """Classify images by the similarity to the names of classes.

    Args:
        embedder: the encoder.
        images: a folder, or an iterable of images.
        classes: distinct names of the classes.
        templates: prompts with `{}` for the name. The embedding of a class is the mean over the prompts.
        threshold: cosine similarity, within [-1, 1], below which `Classification.best` is None. "auto" uses the threshold that
            validation of the training run stored in the bundle (`calibrated_threshold`).
        on_error: called with (name, error) for each image that cannot be read; the image is then skipped.
        track: reports progress.

    Returns:
        One classification per image.

    Raises:
        ConfigError: there is no class, a class is repeated, a template has no `{}`, the threshold is outside [-1, 1], or it is
            "auto" and the bundle has no calibrated threshold.
        ImageError: an image cannot be read and `on_error` is None, or no image can be read.
    """
    check_distinct(classes)
    if threshold == "auto":
        threshold = calibrated_threshold(embedder.metrics)
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; it must lie within [-1, 1]")
    class_emb = class_embeddings(embedder, classes, templates)
    encoded = encode_all(embedder, images, on_error=on_error, track=track)
    return ranked_classes(
        encoded.emb @ class_emb.T, classes, names=encoded.names, logit_scale=embedder.logit_scale, threshold=threshold
    )


def ranked_classes(
    cosine: Float32[ndarray, "I C"],
    classes: Sequence[str],
    *,
    names: Sequence[str],
    logit_scale: float,
    threshold: float | None,
) -> list[Classification]:
    """Classifications from the cosine similarities of images and classes.

    Args:
        cosine: cosine similarities.
        classes: names of the classes (columns).
        names: names of the images (rows).
        logit_scale: factor of the similarities before the softmax.
        threshold: minimum cosine similarity of the best class, or None.
    """
    probability = softmax(cosine * np.float32(logit_scale))
    results = []
    for row, name in enumerate(names):
        order = np.argsort(-cosine[row], kind="stable")
        scores = tuple(
            ClassScore(name=classes[i], probability=float(probability[row, i]), cosine=float(cosine[row, i]))
            for i in order
        )
        results.append(Classification(image=name, scores=scores, threshold=threshold))
    return results


def calibrated_threshold(metrics: Mapping[str, Any]) -> float:
    """The cosine similarity that best separates matching from other pairs of the validation data, read from a bundle's metrics.

    Raises:
        ConfigError: the metrics contain no threshold.
    """
    try:
        return float(metrics["retrieval"]["pairs"]["threshold"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            "the bundle has no validation scores to calibrate a threshold; pass a number, or evaluate the bundle: "
            + command("evaluate", "retrieval", "BUNDLE", "--data", "DATA", "--out", "FOLDER")
        ) from None


@runtime_checkable
class TextEncoder(Protocol):
    """Protocol of objects that compute embeddings of texts."""

    def encode_texts(self, texts: Sequence[str], /) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length, one row per text."""
        ...


def class_embeddings(
    embedder: TextEncoder, classes: Sequence[str], templates: Sequence[str]
) -> Float32[ndarray, "C E"]:
    """Class embeddings of unit length: the normalized mean of the embeddings of each class's prompts.

    This is the prompt ensembling of Radford et al. 2021, sec. 3.1.4.

    Raises:
        ConfigError: there is no class, a class has an empty name, or a template has no `{}`.
    """
    return class_means(embedder.encode_texts(class_prompts(classes, templates)), len(classes))


def class_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """Prompts of all classes: first all prompts of the first class, then of the second, and so on.

    Raises:
        ConfigError: there is no class, a class has an empty name, or a template has no `{}`.

    >>> class_prompts(["cat", "dog"], ["a {}", "the {}"])
    ['a cat', 'the cat', 'a dog', 'the dog']
    """
    check_classes(classes)
    check_templates(templates)
    return [template.replace("{}", name) for name in classes for template in templates]


def class_means(emb: Float32[ndarray, "N E"], num_classes: int) -> Float32[ndarray, "C E"]:
    """Class embeddings of unit length from the embeddings of their prompts, in the order of `class_prompts`.

    >>> class_means(np.array([[1, 0], [1, 0], [0, 1], [0, 1]], dtype=np.float32), 2).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    mean = emb.reshape(num_classes, -1, emb.shape[1]).mean(axis=1)  # C E
    return (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)


def check_classes(classes: Sequence[str]) -> None:
    """Check that there is at least one class and no empty name.

    Raises:
        ConfigError: there is no class, or a name is empty.
        DiptychError: `classes` is a single string.
    """
    check_list(classes, "classes")
    if len(classes) == 0:
        raise ConfigError("the list of classes is empty")
    if not all(name.strip() for name in classes):
        raise ConfigError("a class has an empty name")


def check_distinct(classes: Sequence[str]) -> None:
    """Check that no class is repeated.

    Raises:
        ConfigError: a class is repeated; the message lists up to five.
        DiptychError: `classes` is a single string.
    """
    check_list(classes, "classes")
    repeated = sorted(name for name, times in Counter(classes).items() if times > 1)
    if repeated:
        raise ConfigError(f"classes given more than once: {', '.join(repeated[:5])}")


def check_templates(templates: Sequence[str]) -> None:
    """Check that there is at least one template and that each contains `{}`.

    Raises:
        ConfigError: there is no template, or a template has no `{}`.
        DiptychError: `templates` is a single string.
    """
    check_list(templates, "templates")
    if not templates:
        raise ConfigError("no template given; the simplest one is '{}'")
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"template {template!r} has no {{}} for the class name, as in 'a photo of a {{}}'")
