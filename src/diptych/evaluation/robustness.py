"""The same evaluation under disturbances of growing strength."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import UInt8
from numpy import ndarray
from PIL import Image

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
    """One figure under every disturbance. Shares within [0, 1]."""

    measure: str
    """What the figure is."""
    clean: float
    disturbed: dict[str, list[float]]
    """By disturbance, the figure at each strength from 1 to 5."""
    protocol: dict[str, str | int]
    example: UInt8[ndarray, "H W 3"]
    """A picture as the model sees it."""

    def figures(self) -> dict[str, Any]:
        """All but the picture."""
        return {"measure": self.measure, "clean": self.clean, "disturbed": self.disturbed, "protocol": self.protocol}

    def sheet(self) -> Image.Image:
        """The example at every strength."""
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
    """Zero-shot accuracy of labelled data, mean R@1 of captioned data, with pictures disturbed after their crop.

    Without `templates`, classes are named by the source's own.

    Raises:
        DataError: no image can be read, or labels or captions lack.
    """
    measure, score, more = _measure(encoder, source, templates)
    images = encoder.encode_images(source)
    disturbed = {
        name: [
            score(
                encoder.encode_images(source, change=_change(encoder, name, strength), change_name=f"{name} {strength}")
            )
            for strength in STRENGTHS
        ]
        for name in disturbances
    }
    return Robustness(
        measure=measure,
        clean=score(images),
        disturbed=disturbed,
        protocol={**encoder.protocol(images, split=split), **more},
        example=_seen(encoder, source[images.rows[0]].image),
    )


def _measure(
    encoder: SourceEncoder, source: Source, templates: Sequence[str]
) -> tuple[str, Callable[[EncodedImages], float], dict[str, str | int]]:
    """What the figure is, how it follows from embeddings, and its own part of the protocol."""
    if source.classes:
        check_labels(source)
        templates = templates or own_templates(source)
        class_emb = class_embeddings(encoder, source.classes, templates)

        def accuracy(images: EncodedImages) -> float:
            return float(((images.emb @ class_emb.T).argmax(axis=1) == np.array(images.labels)).mean())

        more: dict[str, str | int] = {
            "templates": len(templates),
            "prompt_hash": prompt_hash(source.classes, templates),
        }
        return "zero-shot top 1", accuracy, more
    pairs = encoder.encode_pairs(source)

    def mean_r1(images: EncodedImages) -> float:
        both = retrieval_ranks(images.emb, pairs.text_emb, pairs.image_of_text, device=encoder.embedder.device)
        return float(np.mean([ranks.found_at(1).mean() for ranks in both]))

    return "mean R@1 of both directions", mean_r1, {"texts": len(pairs.captions)}


def _change(encoder: SourceEncoder, name: str, strength: int) -> Callable[[ImageInput], ImageInput]:
    return lambda image: DISTURBANCES[name](_seen(encoder, image), strength)


def _seen(encoder: SourceEncoder, image: ImageInput) -> UInt8[ndarray, "H W 3"]:
    """The pixels that the model gets, as a picture; encoding it changes nothing more."""
    config = encoder.embedder.bundle.config
    pixels = evaluation_pixels(decode(image), image_px=config.image.image_px, config=config.pixels)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
