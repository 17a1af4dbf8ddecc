"""What training does to a caption: mirrored along with its picture, now and then without some of its words."""

import re

import numpy as np


def mirror_words(caption: str) -> str:
    """The caption of the mirror image.

    >>> mirror_words("A man on the left, turned right")
    'A man on the right, turned left'
    """
    swap = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
    return re.sub(r"\b([Ll]eft|[Rr]ight)\b", lambda match: swap[match[0]], caption)


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
