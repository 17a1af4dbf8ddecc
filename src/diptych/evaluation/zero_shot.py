"""Zero-shot classification of a labelled source (Radford et al. 2021, sec. 3.1). Shapes: N images, C classes, K bins."""

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
    """How often the right class came first, and how it was measured. All shares within [0, 1]."""

    top1: float
    top5: float
    mean_per_class: float
    """Mean over the classes that occur of the share of theirs that came first."""
    per_class: dict[str, float]
    chance: float
    """What guessing among the classes gives."""
    calibration_error: float
    """How far probabilities are from the share that is right (ECE, 15 bins; Guo et al. 2017, sec. 2)."""
    protocol: dict[str, str | int]


@dataclass(frozen=True, kw_only=True)
class ZeroShot:
    """A classification image by image, and what follows from it."""

    report: ZeroShotReport
    images: EncodedImages
    classes: tuple[str, ...]
    """Their names for people, each another (`distinct_names`)."""
    labels: Int64[ndarray, " N"]
    predicted: Int64[ndarray, " N"]
    probability: Float32[ndarray, " N"]
    """Of the predicted class: softmax over the classes at the model's temperature."""
    calibration: Calibration

    @property
    def hits(self) -> Float[ndarray, " N"]:
        """1 where the right class came first, else 0."""
        return (self.labels == self.predicted).astype(float)

    def confusion(self) -> Int64[ndarray, "C C"]:
        """How many images of each class (row) were taken for each class (column)."""
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
    """Classify every image of a labelled source among its classes, from nothing but their names.

    Args:
        encoder: the model.
        source: samples with labels.
        split: its name, for the protocol.
        templates: texts with `{}` for a class's name; a class's embedding is the mean over them, renormalised. By default
            the source's own, or "a photo of a {}".
        classes: names to use instead of the source's own, in the same order.
        all_must_occur: refuse classes that no sample has.
        images: the source's, where they are encoded already.

    Raises:
        DataError: the samples have no labels or impossible ones, a class has no sample, or no image can be read.
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
    cosine = images.emb @ class_emb.T
    ranked = np.argsort(-cosine, axis=1, kind="stable")[:, :5]
    predicted = ranked[:, 0].astype(np.int64)
    probability = softmax(cosine * np.float32(encoder.embedder.logit_scale))[np.arange(len(labels)), predicted]
    hit = predicted == labels
    shown = distinct_names(names)
    per_class = {shown[label]: float(hit[labels == label].mean()) for label in np.unique(labels)}
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
        classes=shown,
        labels=labels,
        predicted=predicted,
        probability=probability,
        calibration=calibrated,
    )


def own_templates(source: Source) -> Sequence[str]:
    """Those that a source's classes are usually named by, or "a photo of a {}"."""
    return source.templates or DEFAULT_TEMPLATES


def distinct_names(classes: Sequence[str]) -> tuple[str, ...]:
    """Names that several classes have, as two of ImageNet's published ones, with the number of the class.

    >>> distinct_names(["missile", "crane", "crane"])
    ('missile', 'crane (class 1)', 'crane (class 2)')
    """
    times = Counter(classes)
    return tuple(name if times[name] == 1 else f"{name} (class {label})" for label, name in enumerate(classes))


def prompt_hash(classes: Sequence[str], templates: Sequence[str]) -> str:
    """Twelve hex digits of names and templates: two figures with the same hash asked the same texts."""
    return sha256("\0".join([*classes, "", *templates]).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def check_labels(source: Source) -> None:
    """Refuse data whose labels do not tell what each sample is.

    Raises:
        DataError: there are no labels, a sample lacks one, or one is beyond the list of classes.
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
    """Refuse a list of classes of which some have no sample: most likely it is another data's.

    Raises:
        DataError: which of them.
    """
    occurring = {source.label(i) for i in range(len(source))}
    empty = [name for label, name in enumerate(names) if label not in occurring]
    if empty:
        more = f" and {len(empty) - _MAX_LISTED} more" if len(empty) > _MAX_LISTED else ""
        raise DataError(
            f"{len(empty)} of {len(names)} classes have no sample in this split: {', '.join(empty[:_MAX_LISTED])}"
            f"{more}; with --allow-empty-classes they stay as wrong answers"
        )


def zero_shot_accuracy(
    encoder: TextEncoder, image_emb: Float32[ndarray, "N E"], labels: Sequence[int | None], source: Source
) -> float | None:
    """Share of encoded images whose class comes first among the source's, with its own templates; None if labels lack."""
    if any(label is None for label in labels):
        return None
    class_emb = class_embeddings(encoder, source.classes, own_templates(source))
    return float(((image_emb @ class_emb.T).argmax(axis=1) == np.array(labels)).mean())
