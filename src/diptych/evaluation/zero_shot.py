"""Zero-shot classification of a labeled source (Radford et al. 2021, sec. 3.1). Shapes: N images, C classes, E embedding."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from jaxtyping import Float, Float32, Int64
from numpy import ndarray

from diptych.core.errors import DataError
from diptych.core.lists import check_list
from diptych.data.sources.protocol import Source
from diptych.evaluation.calibration import Calibration, calibration
from diptych.evaluation.encoded import EncodedImages, SourceEncoder
from diptych.inference.classify import DEFAULT_TEMPLATES, TextEncoder, class_embeddings
from diptych.inference.similarity import softmax

_MAX_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class ZeroShotReport:
    """The metrics of zero-shot classification. Accuracies are in [0, 1]."""

    top1: float
    top5: float
    mean_per_class: float
    """Mean of the accuracies of the classes that have images."""
    per_class: dict[str, float]
    """Accuracy of each class that has images."""
    chance: float
    """Accuracy of random guessing."""
    calibration_error: float
    """Expected calibration error in [0, 1] (15 bins; Guo et al. 2017, sec. 2)."""
    protocol: dict[str, str | int]
    """How the metrics were measured."""


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """The predictions of zero-shot classification for each image, and the metrics."""

    report: ZeroShotReport
    images: EncodedImages
    classes: tuple[str, ...]
    """Distinct display names of the classes (`distinct_names`)."""
    labels: Int64[ndarray, " N"]
    """True class of each image."""
    predicted: Int64[ndarray, " N"]
    """Predicted class of each image."""
    probability: Float32[ndarray, " N"]
    """Probability of the predicted class: softmax over the classes at the model's temperature."""
    calibration: Calibration

    @property
    def hits(self) -> Float[ndarray, " N"]:
        """1 where the prediction is correct, else 0."""
        return (self.labels == self.predicted).astype(float)

    def confusion(self) -> Int64[ndarray, "C C"]:
        """Return the number of images of each true class (row) by predicted class (column)."""
        table = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        np.add.at(table, (self.labels, self.predicted), 1)
        return table


def evaluate_zero_shot(
    encoder: SourceEncoder,
    source: Source,
    *,
    split: str,
    templates: Sequence[str] = (),
    classes: Sequence[str] | None = None,
    all_must_occur: bool = False,
    images: EncodedImages | None = None,
) -> ZeroShot:
    """Classify every image of a labeled source by comparing it with the embeddings of the class names.

    Args:
        encoder: the model.
        source: labeled samples.
        split: name of the split, for the protocol.
        templates: texts with `{}` for the class name. The embedding of a class is the normalized mean over the templates. By
            default the source's own templates, or "a photo of a {}".
        classes: class names that replace the source's own, in the same order.
        all_must_occur: raise an error if a class has no sample.
        images: the encoded images of the source, if they are already available.

    Raises:
        DataError: labels are missing or out of range, the number of class names is wrong, a class has no sample (only with
            `all_must_occur`), or no image can be read.
        ConfigError: a template lacks `{}`, or a name is empty.
    """
    if classes is not None:
        check_list(classes, "classes")
    names = tuple(classes) if classes is not None else source.classes
    check_labels(source)
    if len(names) != len(source.classes):
        raise DataError(f"{len(names)} class names given, but the data has {len(source.classes)} classes")
    if all_must_occur:
        check_all_classes_occur(source, names)
    templates = templates or own_templates(source)
    class_emb = class_embeddings(encoder, names, templates)
    images = images or encoder.encode_images(source)
    labels = np.array(images.labels, dtype=np.int64)
    cosine = images.emb @ class_emb.T  # (N, C)
    ranked = np.argsort(-cosine, axis=1, kind="stable")[:, :5]
    predicted = ranked[:, 0].astype(np.int64)
    probability = softmax(cosine * np.float32(encoder.embedder.logit_scale))[np.arange(len(labels)), predicted]
    hit = predicted == labels
    display_names = distinct_names(names)
    per_class = {display_names[label]: float(hit[labels == label].mean()) for label in np.unique(labels)}
    calibrated = calibration(probability, hit)
    report = ZeroShotReport(
        top1=float(hit.mean()),
        top5=float((ranked == labels[:, None]).any(axis=1).mean()),
        mean_per_class=float(np.mean(list(per_class.values()))),
        per_class=per_class,
        chance=1 / len(names),
        calibration_error=calibrated.error,
        protocol={
            **encoder.protocol(images, split=split),
            "classes": len(names),
            **({"classes_without_images": len(names) - len(per_class)} if len(per_class) < len(names) else {}),
            "templates": len(templates),
            "prompt_hash": prompt_hash(names, templates),
        },
    )
    return ZeroShot(
        report=report,
        images=images,
        classes=display_names,
        labels=labels,
        predicted=predicted,
        probability=probability,
        calibration=calibrated,
    )


def own_templates(source: Source) -> Sequence[str]:
    """Return the prompt templates of a source, or "a photo of a {}" if it has none."""
    return source.templates or DEFAULT_TEMPLATES


def distinct_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Return the class names, with the index of the class added to names that several classes share.

    In the published list of ImageNet, for example, two classes have the name "crane".

    >>> distinct_names(["missile", "crane", "crane"])
    ('missile', 'crane (class 1)', 'crane (class 2)')
    """
    times = Counter(classes)
    return tuple(name if times[name] == 1 else f"{name} (class {label})" for label, name in enumerate(classes))


def prompt_hash(classes: Sequence[str], templates: Sequence[str]) -> str:
    """Return a hash of class names and templates, 12 hexadecimal digits; equal hashes mean equal prompts."""
    return sha256("\0".join([*classes, "", *templates]).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def check_labels(source: Source) -> None:
    """Check that every sample has a valid label.

    Raises:
        DataError: the source has no classes, a sample has no label, or a label is out of range.
    """
    if not source.classes:
        raise DataError(
            "the data has no labels, which this evaluation needs; give rows a 'label', or evaluate retrieval"
        )
    for i in range(len(source)):
        label = source.label(i)
        if label is None:
            raise DataError(f"some samples have no label, the first of them {source.key(i)}; each needs one")
        if not 0 <= label < len(source.classes):
            raise DataError(
                f"{source.key(i)} has the label {label}; the data has classes 0 to {len(source.classes) - 1}"
            )


def check_all_classes_occur(source: Source, names: Sequence[str]) -> None:
    """Check that every class has a sample; otherwise the list of classes probably belongs to other data.

    Raises:
        DataError: a class has no sample; the message lists up to five of them.
    """
    occurring = {source.label(i) for i in range(len(source))}
    empty = [name for label, name in enumerate(names) if label not in occurring]
    if empty:
        more = f" and {len(empty) - _MAX_LISTED} more" if len(empty) > _MAX_LISTED else ""
        raise DataError(
            f"{len(empty)} of {len(names)} classes have no sample in this split: {', '.join(empty[:_MAX_LISTED])}"
            f"{more}; use --allow-empty-classes to keep them as possible (wrong) answers"
        )


def zero_shot_accuracy(
    encoder: TextEncoder, image_emb: Float32[ndarray, "N E"], labels: Sequence[int | None], source: Source
) -> float | None:
    """Return the top-1 accuracy of encoded images with the source's own classes and templates; None if a label is missing.

    Args:
        encoder: encodes the prompts.
        image_emb: unit embeddings of the images.
        labels: the class of each image.
        source: provides classes and templates.
    """
    if any(label is None for label in labels):
        return None
    class_emb = class_embeddings(encoder, source.classes, own_templates(source))
    return float(((image_emb @ class_emb.T).argmax(axis=1) == np.array(labels)).mean())
