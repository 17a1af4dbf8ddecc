"""Evaluate a model on images with disturbances of increasing strength. Shapes: H W pixels of the model's input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

from diptych.core.deprecation import RenamedAttribute
from diptych.core.sample import ImageInput
from diptych.data.sources.protocol import Source
from diptych.evaluation.disturbances import DISTURBANCES, STRENGTHS
from diptych.evaluation.encoded import EncodedImages, SourceEncoder
from diptych.evaluation.retrieval import retrieval_ranks
from diptych.evaluation.zero_shot import check_labels, own_templates, prompt_hash
from diptych.images.decode import decode
from diptych.images.sheet import SheetRow, contact_sheet
from diptych.images.transforms import evaluation_pixels
from diptych.inference.classify import class_embeddings


@dataclass(frozen=True, kw_only=True)
class Robustness:
    """One metric under every disturbance, in [0, 1]."""

    measure: str
    """Name of the metric."""
    clean: float
    """The metric without disturbance."""
    disturbed: dict[str, list[float]]
    """For each disturbance, the metric at each strength from 1 to 5."""
    protocol: dict[str, str | int]
    """How the metric was measured."""
    example: UInt8[ndarray, "H W 3"]
    """An image of the data, at the model's input size."""

    figures = RenamedAttribute("metrics")

    def metrics(self) -> dict[str, Any]:
        """Return all fields except the example."""
        return {"measure": self.measure, "clean": self.clean, "disturbed": self.disturbed, "protocol": self.protocol}

    def sheet(self) -> Image.Image:
        """Return a picture of the example under every disturbance at every strength."""
        rows = [
            SheetRow(name, [(Image.fromarray(disturb(self.example, s)), f"strength {s}") for s in STRENGTHS])
            for name, disturb in DISTURBANCES.items()
        ]
        return contact_sheet(rows, tile_px=120)


def evaluate_robustness(
    encoder: SourceEncoder,
    source: Source,
    *,
    split: str,
    templates: Sequence[str] = (),
    disturbances: Sequence[str] = tuple(DISTURBANCES),
) -> Robustness:
    """Measure zero-shot accuracy of labeled data, or mean R@1 of captioned data, on images disturbed after the crop.

    Args:
        encoder: the model.
        source: labeled or captioned samples.
        split: name of the split, for the protocol.
        templates: texts with `{}` for the class name; by default the source's own, or "a photo of a {}".
        disturbances: names of disturbances; see `DISTURBANCES`.

    Raises:
        DataError: no image can be read, or labels or captions are missing.
    """
    measure, score, meta = _measure(encoder, source, templates)
    images = encoder.encode_images(source)

    def disturbed(name: str, strength: int) -> EncodedImages:
        change = _change(encoder, name, strength)
        return encoder.encode_images(source, change=change, change_name=f"{name} {strength}")

    return Robustness(
        measure=measure,
        clean=score(images),
        disturbed={name: [score(disturbed(name, s)) for s in STRENGTHS] for name in disturbances},
        protocol={**encoder.protocol(images, split=split), **meta},
        example=_input_pixels(encoder, source[images.rows[0]].image),
    )


def _measure(
    encoder: SourceEncoder, source: Source, templates: Sequence[str]
) -> tuple[str, Callable[[EncodedImages], float], dict[str, str | int]]:
    """Return the name of the metric, a function that computes it from embeddings, and its part of the protocol."""
    if source.classes:
        check_labels(source)
        templates = templates or own_templates(source)
        class_emb = class_embeddings(encoder, source.classes, templates)

        def accuracy(images: EncodedImages) -> float:
            return float(((images.emb @ class_emb.T).argmax(axis=1) == np.array(images.labels)).mean())

        meta: dict[str, str | int] = {
            "templates": len(templates),
            "prompt_hash": prompt_hash(source.classes, templates),
        }
        return "zero-shot top 1", accuracy, meta
    pairs = encoder.encode_pairs(source)

    device = torch.device(str(encoder.embedder.device))

    def mean_r1(images: EncodedImages) -> float:
        both = retrieval_ranks(images.emb, pairs.text_emb, pairs.image_of_text, device=device)
        return float(np.mean([ranks.found_at(1).mean() for ranks in both]))

    return "mean R@1 of both directions", mean_r1, {"texts": len(pairs.captions)}


def _change(encoder: SourceEncoder, name: str, strength: int) -> Callable[[ImageInput], ImageInput]:
    return lambda image: DISTURBANCES[name](_input_pixels(encoder, image), strength)


def _input_pixels(encoder: SourceEncoder, image: ImageInput) -> UInt8[ndarray, "H W 3"]:
    """Return the image resized and cropped to the model's input; encoding the result does not resize or crop it again."""
    config = encoder.embedder.bundle.config
    pixels = evaluation_pixels(decode(image), image_px=config.image.image_px, config=config.pixels)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
