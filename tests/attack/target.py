"""What is attacked, and what a part of the attack found."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.index import build_signs
from diptych.index.open_index import open_index
from diptych.inference.loaded import load
from diptych.search.collection import open_or_create, update

NUM_INDEXED = 300


@dataclass
class Outcome:
    """What a part of the attack did, in a line, and what it broke."""

    summary: str = ""
    failures: list[str] = field(default_factory=list)


def make_index(place: Path, bundle: Path, folder: Path) -> None:
    """An index of small pictures, with sign bits."""
    build_signs.MIN_SPEEDUP = 0  # So few are faster without.
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(NUM_INDEXED):
        pixels = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((40, 40)).save(folder / f"{number:03d}.png")
        if number % 3 == 0:
            (folder / f"{number:03d}.txt").write_text(f"caption {number}\n")
    clip = load(bundle, device="cpu", progress=False)
    with open_or_create(place, clip) as index:
        update(index, clip, [folder])
    with open_index(place) as index, index.writing():
        index.build("signs")
