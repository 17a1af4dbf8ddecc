"""Captions in training: words that are left out, and sides that forbid a mirror image."""

import re

import numpy as np

_SIDE = re.compile(
    r"\b(?:(?:left|right)(?:s|y|most|wards?|hand(?:ed)?|ies|ists?)?"
    r"|links|rechts|linke[nmrs]?|rechte[nmrs]?|gauche|droite|izquierd[ao]s?|derech[ao]s?"
    r"|sinistr[ao]|destr[ao]|esquerd[ao]s?|direit[ao]s?)\b|[左右]",
    re.IGNORECASE,
)


def names_side(caption: str) -> bool:
    """Whether a caption may say which side something is on.

    Known are words of English, German, French, Spanish, Italian, Portuguese and Chinese.
    Such a caption does not fit the mirror image, and swapping words does not mend it: "all right" is no direction.

    >>> [names_side(text) for text in ("the LEFTMOST dog", "a right-hand glove", "all right", "a bright kite, upright")]
    [True, True, True, False]
    """
    return _SIDE.search(caption) is not None


def drop_words(caption: str, share: float, generator: np.random.Generator) -> str:
    """The caption without some of its words, each left out with the chance `share` (Wei & Zou 2019, random deletion).

    At least one word stays; a caption that loses none comes back as it was, to the last space.
    """
    words = caption.split()
    stays = generator.random(len(words)) >= share
    if stays.all():
        return caption
    if not stays.any():
        stays[generator.integers(len(words))] = True
    return " ".join(word for word, stay in zip(words, stays, strict=True) if stay)
