"""Caption handling in training: dropping words, and detecting words that rule out a horizontal flip."""

import re

import numpy as np

_SIDE = re.compile(
    r"\b(?:(?:left|right)(?:s|y|most|wards?|hand(?:ed)?|ies|ists?)?"
    r"|links|rechts|linke[nmrs]?|rechte[nmrs]?|gauche|droite|izquierd[ao]s?|derech[ao]s?"
    r"|sinistr[ao]|destr[ao]|esquerd[ao]s?|direit[ao]s?)\b|[左右]",
    re.IGNORECASE,
)


def names_side(caption: str) -> bool:
    """Return whether a caption contains a word such as "left" or "right".

    Words of English, German, French, Spanish, Italian, Portuguese and Chinese are detected. Such a caption may be wrong for
    the mirrored image. Swapping the words is not a reliable fix, since "all right" is not a direction.

    >>> [names_side(text) for text in ("the LEFTMOST dog", "a right-hand glove", "all right", "a bright kite, upright")]
    [True, True, True, False]
    """
    return _SIDE.search(caption) is not None


def drop_words(caption: str, share: float, generator: np.random.Generator) -> str:
    """Return the caption with each word removed with probability `share` (Wei & Zou 2019, random deletion).

    At least one word remains. If no word is removed, the caption is returned unchanged, including its whitespace.
    """
    words = caption.split()
    is_kept = generator.random(len(words)) >= share
    if is_kept.all():
        return caption
    if not is_kept.any():
        is_kept[generator.integers(len(words))] = True
    return " ".join(word for word, keep in zip(words, is_kept, strict=True) if keep)
