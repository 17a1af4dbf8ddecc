"""A look at a validation for people: how alike partners and strangers are, and which captions some pictures get."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image

from diptych.core.sample import ImageInput
from diptych.evaluation.encoded import EncodedPairs
from diptych.images.decode import decode
from diptych.images.sheet import SheetRow, contact_sheet

_MOST = 512
_PICTURES = 8


@dataclass(frozen=True)
class Glimpse:
    """Some pictures and their texts."""

    partners: Float32[ndarray, " P"]
    """Cosines of pictures and their own captions."""
    others: Float32[ndarray, " Q"]
    """Cosines of pictures and other pictures' captions."""
    best: tuple[tuple[ImageInput, str, float], ...]
    """Pictures, each with the caption of all that it is most like, and their cosine."""

    def sheet(self) -> Image.Image:
        """The pictures over their captions."""
        tiles = [(decode(image), f"{cosine:.2f} {caption}") for image, caption, cosine in self.best]
        return contact_sheet([SheetRow("Most similar of all captions", tiles)], columns=4, tile_px=160, caption_lines=3)


def glimpse(pairs: EncodedPairs, chosen: Int64[ndarray, " I"]) -> Glimpse:
    """Look at the first few hundred pictures of a validation.

    Args:
        pairs: all that was encoded.
        chosen: of each picture, one of its captions.
    """
    cosine = pairs.image_emb[:_MOST] @ pairs.text_emb[chosen[:_MOST]].T
    own = np.eye(len(cosine), dtype=bool)
    with_all = pairs.image_emb[:_PICTURES] @ pairs.text_emb.T
    source, few = pairs.images.source, pairs.images.rows[:_PICTURES]
    best = tuple(
        (source[sample].image, pairs.captions[int(row.argmax())], float(row.max()))
        for sample, row in zip(few, with_all, strict=True)
    )
    return Glimpse(cosine[own], cosine[~own], best)
