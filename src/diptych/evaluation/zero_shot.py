"""Zero-shot classification of a labelled source (Radford et al. 2021, sec. 3.1). Shapes: N images, C classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import DataError
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import split_hash
from diptych.evaluation.pairs import encode_samples
from diptych.images.transforms import size_name
from diptych.inference.classify import DEFAULT_TEMPLATES, class_embeddings
from diptych.inference.embedder import Embedder


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
    protocol: dict[str, str | int]


def evaluate_zero_shot(
    embedder: Embedder, source: Source, *, split: str, templates: Sequence[str], classes: Sequence[str] | None = None
) -> ZeroShotReport:
    """Classify every image of a labelled source among its classes, from nothing but their names.

    Args:
        embedder: the model.
        source: samples with labels.
        split: its name, for the protocol.
        templates: texts with `{}` for a class's name.
        classes: names to use instead of the source's own, in the same order.

    Raises:
        DataError: the samples have no labels, or no image can be read.
        ConfigError: a template lacks `{}`, or the classes repeat.
    """
    names = tuple(classes) if classes is not None else source.classes
    if not source.classes:
        raise DataError(
            "the data has no labels, which zero-shot evaluation needs; give rows a 'label', or evaluate retrieval"
        )
    if len(names) != len(source.classes):
        raise DataError(f"{len(names)} class names given, but the data has {len(source.classes)} classes")
    class_emb = class_embeddings(embedder, names, templates)
    samples, image_emb, num_skipped = encode_samples(embedder, source)
    if any(sample.label is None for sample in samples):
        raise DataError("some samples have no label; zero-shot evaluation needs one on every row")
    labels = np.array([sample.label for sample in samples])
    ranked = np.argsort(-(image_emb @ class_emb.T), axis=1, kind="stable")
    hit = ranked[:, 0] == labels
    per_class = {names[label]: float(hit[labels == label].mean()) for label in np.unique(labels)}
    return ZeroShotReport(
        top1=float(hit.mean()),
        top5=float((ranked[:, :5] == labels[:, None]).any(axis=1).mean()),
        mean_per_class=float(np.mean(list(per_class.values()))),
        per_class=per_class,
        chance=1 / len(names),
        protocol={
            "split": split,
            "split_hash": split_hash(source),
            "images": len(samples),
            "skipped_images": num_skipped,
            "classes": len(names),
            "templates": len(templates),
            "prompt_hash": sha256("\0".join([*names, "", *templates]).encode()).hexdigest()[:12],
            "transform": f"{embedder.bundle.config.pixels.interpolation} short side, centre crop",
            "image_px": size_name(embedder.bundle.config.image.image_px),
            "precision": "float32",
        },
    )


def zero_shot_accuracy(
    embedder: Embedder, image_emb: Float32[ndarray, "N E"], labels: Sequence[int | None], source: Source
) -> float | None:
    """Share of encoded images whose class comes first among the source's, with its own templates; None if labels lack."""
    if any(label is None for label in labels):
        return None
    class_emb = class_embeddings(embedder, source.classes, source.templates or DEFAULT_TEMPLATES)
    return float(((image_emb @ class_emb.T).argmax(axis=1) == np.array(labels)).mean())
