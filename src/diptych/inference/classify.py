"""Zero-shot classification (Radford et al. 2021, sec. 3.1). Shapes: I images, C classes, N prompts, E embedding."""

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


@dataclass(frozen=True, kw_only=True)
class ClassScore:
    """One class for one image."""

    name: str
    probability: float
    """Softmax over the classes at the model's temperature."""
    cosine: float
    """Cosine of the image and the class's embedding."""


@dataclass(frozen=True, kw_only=True)
class Classification:
    """One image's classes, the likeliest first."""

    image: str
    scores: tuple[ClassScore, ...]
    threshold: float | None = None
    """Cosine below which the image is taken for none of the classes; None where none was asked for."""

    @property
    def best(self) -> ClassScore | None:
        """The likeliest class; None if even that one is below the threshold."""
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
    """Each image's classes, ranked.

    Args:
        embedder: the model.
        images: what is classified: a folder, or images.
        classes: names of the classes, each once.
        templates: texts with `{}` for the name; a class's embedding is the mean over them.
        threshold: cosine below which the answer is none of the classes; `auto` takes the one that the bundle was calibrated to
            when its run was validated. Within [-1, 1].
        on_error: told of images that cannot be read, which are then left out.
        track: told how far it is.

    Raises:
        ConfigError: the classes are empty or repeat, a template lacks `{}`, the threshold is no cosine, or the bundle was not
            calibrated.
        ImageError: an image cannot be read, and there is no `on_error`.
    """
    check_distinct(classes)
    if threshold == "auto":
        threshold = calibrated_threshold(embedder.metrics)
    if threshold is not None and not -1 <= threshold <= 1:
        raise ConfigError(f"threshold is {threshold}; it must lie within [-1, 1]")
    class_emb = class_embeddings(embedder, classes, templates)
    encoded = encode_all(embedder, images, on_error=on_error, track=track)
    return ranked_classes(
        encoded.emb @ class_emb.T,
        classes,
        names=encoded.names,
        logit_scale=embedder.logit_scale,
        threshold=threshold,
    )


def ranked_classes(
    cosine: Float32[ndarray, "I C"],
    classes: Sequence[str],
    *,
    names: Sequence[str],
    logit_scale: float,
    threshold: float | None,
) -> list[Classification]:
    """Each image's classes, ranked, from the cosines of images and classes; `names` are the images'."""
    probability = softmax(cosine * np.float32(logit_scale))
    results = []
    for row, name in enumerate(names):
        ranked = np.argsort(-cosine[row], kind="stable")
        scores = tuple(
            ClassScore(name=classes[i], probability=float(probability[row, i]), cosine=float(cosine[row, i]))
            for i in ranked
        )
        results.append(Classification(image=name, scores=scores, threshold=threshold))
    return results


def calibrated_threshold(metrics: Mapping[str, Any]) -> float:
    """The cosine that tells matching pairs of the validation data from others, as a bundle keeps it.

    Raises:
        ConfigError: the bundle has none.
    """
    try:
        return float(metrics["retrieval"]["pairs"]["threshold"])
    except (KeyError, TypeError, ValueError):
        raise ConfigError(
            "the bundle keeps no validation scores to calibrate a threshold by; give it as a number, or measure the bundle: "
            + command("evaluate", "retrieval", "BUNDLE", "--data", "DATA", "--out", "FOLDER")
        ) from None


@runtime_checkable
class TextEncoder(Protocol):
    """Whatever makes unit embeddings of texts."""

    def encode_texts(self, texts: Sequence[str], /) -> Float32[ndarray, "N E"]:
        """One row a text."""
        ...


def class_embeddings(
    embedder: TextEncoder, classes: Sequence[str], templates: Sequence[str]
) -> Float32[ndarray, "C E"]:
    """One unit embedding a class: the mean of its prompts' unit embeddings, renormalised (Radford et al. 2021, sec. 3.1.4).

    Raises:
        ConfigError: the classes are empty, or a template lacks `{}`.
    """
    return class_means(embedder.encode_texts(class_prompts(classes, templates)), len(classes))


def class_prompts(classes: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts of the first class, then all of the second, and so on.

    Raises:
        ConfigError: the classes are empty, or a template lacks `{}`.
    """
    check_classes(classes)
    check_templates(templates)
    return [template.replace("{}", name) for name in classes for template in templates]


def class_means(emb: Float32[ndarray, "N E"], num_classes: int) -> Float32[ndarray, "C E"]:
    """One unit embedding a class from those of its prompts, in the order of `class_prompts`."""
    mean = emb.reshape(num_classes, -1, emb.shape[1]).mean(axis=1)
    return (mean / np.linalg.norm(mean, axis=1, keepdims=True)).astype(np.float32)


def check_classes(classes: Sequence[str]) -> None:
    """Refuse a list of classes that is empty or holds an empty name.

    Raises:
        ConfigError: which of these it is.
        DiptychError: the argument is a single string.
    """
    check_list(classes, "classes")
    if len(classes) == 0:
        raise ConfigError("the list of classes is empty")
    if not all(name.strip() for name in classes):
        raise ConfigError("a class has an empty name")


def check_distinct(classes: Sequence[str]) -> None:
    """Refuse a list of classes that repeats one.

    Raises:
        ConfigError: which of them.
        DiptychError: the argument is a single string.
    """
    check_list(classes, "classes")
    repeated = sorted(name for name, times in Counter(classes).items() if times > 1)
    if repeated:
        raise ConfigError(f"classes given more than once: {', '.join(repeated[:5])}")


def check_templates(templates: Sequence[str]) -> None:
    """Refuse templates without a place for the class.

    Raises:
        ConfigError: there is none, or one lacks `{}`.
        DiptychError: the argument is a single string.
    """
    check_list(templates, "templates")
    if not templates:
        raise ConfigError("no template given; the plain one is '{}'")
    for template in templates:
        if "{}" not in template:
            raise ConfigError(f"template {template!r} has no {{}} for the class name, as in 'a photo of a {{}}'")
