"""`shapes`: synthetic images of colored shapes, drawn on the fly as a pure function of (seed, split, number).

There are six colors and three shapes. Three of the eighteen pairs occur only in the split `novel`, which tests whether a model
generalizes to unseen combinations.
"""

import colorsys
import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from PIL import Image, ImageDraw

from diptych.core.errors import DataError
from diptych.core.randomness import keyed_generator
from diptych.core.sample import Sample
from diptych.data.sources.protocol import Source

COLOURS = {
    "red": (220, 40, 40),
    "blue": (45, 85, 225),
    "green": (45, 165, 65),
    "yellow": (240, 210, 40),
    "purple": (140, 50, 175),
    "orange": (245, 135, 25),
}
SHAPES = ("circle", "square", "triangle")
NOVEL = frozenset({("red", "square"), ("blue", "triangle"), ("yellow", "circle")})
CLASSES = tuple(f"{color} {shape}" for color in COLOURS for shape in SHAPES)
NOVEL_CLASSES = tuple(f"{color} {shape}" for color, shape in sorted(NOVEL))
BACKGROUNDS = {"white": (240, 240, 238), "black": (22, 22, 25), "gray": (128, 128, 130), **COLOURS}
SIZES = {"small": (0.22, 0.28), "large": (0.37, 0.45)}
"""Range of the radius, relative to the side of the image, for each word. No word describes the sizes in between."""
MAX_TURN = math.radians(20)
"""Maximum rotation in radians. With arbitrary rotations, training takes several times longer without a better example."""
_UPRIGHT = {"circle": 0.0, "square": math.pi / 4, "triangle": -math.pi / 2}

Split: TypeAlias = Literal["train", "val", "novel"]
SPLIT_SIZES: dict[Split, int] = {"train": 6000, "val": 900, "novel": 180}
CANVAS_PX = 64


@dataclass(frozen=True, slots=True)
class Scene:
    """The content of one image."""

    color: str
    shape: str
    size: str | None
    radius: float
    background: str


class ShapesSource(Source):
    """Drawn images with captions from "a red circle" to "a small red circle on a blue background".

    >>> source = ShapesSource(num_train=4)
    >>> len(source[0].captions), source[0].image.size
    (3, (64, 64))
    """

    classes = CLASSES
    is_decoded = True
    templates = ("a {}", "a small {}", "a large {}")

    def __init__(self, *, num_train: int = SPLIT_SIZES["train"], seed: int = 0) -> None:
        self.sizes = {**SPLIT_SIZES, "train": num_train}
        self.seed = seed
        self._drawn: dict[int, Image.Image] = {}  # A cache: drawing is the most expensive step for a tiny model.

    def __len__(self) -> int:
        return sum(self.sizes.values())

    def __getitem__(self, index: int) -> Sample:
        scene, generator = self._scene(index)
        if index not in self._drawn:
            self._drawn[index] = _draw(scene, generator)
        return Sample(key=self.key(index), image=self._drawn[index], captions=_captions(scene), label=self.label(index))

    def captions(self, index: int) -> tuple[str, ...]:
        """Return the captions without drawing the image."""
        return _captions(self._scene(index)[0])

    def key(self, index: int) -> str:
        """Return the split and the number within it, as in `train-000042`."""
        split, number = self._locate(index)
        return f"{split}-{number:06d}"

    def split(self, index: int) -> str:
        """Return the split: `train` and `val` contain fifteen pairs of color and shape, `novel` the other three."""
        return self._locate(index)[0]

    def label(self, index: int) -> int:
        """Return the index of the pair of color and shape in `CLASSES`."""
        split, number = self._locate(index)
        pairs = _pairs(split)
        color, shape = pairs[number % len(pairs)]
        return CLASSES.index(f"{color} {shape}")

    def _scene(self, index: int) -> tuple[Scene, np.random.Generator]:
        split, number = self._locate(index)
        generator = keyed_generator(self.seed, "shapes", split, number)
        return _scene(split, number, generator), generator

    def _locate(self, index: int) -> tuple[Split, int]:
        if not 0 <= index < len(self):
            raise IndexError(index)
        for split, size in self.sizes.items():
            if index < size:
                return split, index
            index -= size
        raise AssertionError("the sizes add up to the length")


def read_shapes(location: str) -> ShapesSource:
    """Return the source `shapes` or `shapes:N`, where N is the number of training images.

    Raises:
        DataError: N is not an integer of at least 1.
    """
    if location and (not location.isdigit() or int(location) < 1):
        raise DataError(
            f"shapes:{location}: after the colon comes the number of training pictures, such as shapes:6000"
        )
    return ShapesSource(num_train=int(location)) if location else ShapesSource()


def _pairs(split: Split) -> list[tuple[str, str]]:
    return [(c, s) for c in COLOURS for s in SHAPES if ((c, s) in NOVEL) == (split == "novel")]


def _scene(split: Split, number: int, generator: np.random.Generator) -> Scene:
    pairs = _pairs(split)
    color, shape = pairs[number % len(pairs)]
    radius = float(generator.uniform(0.22, 0.45))
    size = next((word for word, (low, high) in SIZES.items() if low <= radius <= high), None)
    background = str(generator.choice([name for name in BACKGROUNDS if name != color]))
    return Scene(color, shape, size, radius, background)


def _captions(scene: Scene) -> tuple[str, ...]:
    plain = f"{scene.color} {scene.shape}"
    sized = f"{scene.size} {plain}" if scene.size else plain
    on = f"on a {scene.background} background".replace("a orange", "an orange")
    article = "an" if plain.startswith("o") else "a"
    sized_article = "a" if scene.size else article
    texts = (f"{article} {plain}", f"{sized_article} {sized}", f"{sized_article} {sized} {on}")
    return tuple(dict.fromkeys(texts))


def _draw(scene: Scene, generator: np.random.Generator) -> Image.Image:
    scale = 2  # Drawing at twice the size gives smooth edges.
    side = CANVAS_PX * scale
    canvas = Image.new("RGB", (side, side), _vary(BACKGROUNDS[scene.background], generator))
    reach = scene.radius * side
    center = generator.uniform(reach, side - reach, size=2)
    angle = _UPRIGHT[scene.shape] + float(generator.uniform(-MAX_TURN, MAX_TURN))
    corners = _outline(scene.shape, reach, angle) + center
    ImageDraw.Draw(canvas).polygon(
        [(float(x), float(y)) for x, y in corners], fill=_vary(COLOURS[scene.color], generator)
    )
    small = canvas.resize((CANVAS_PX, CANVAS_PX), Image.Resampling.BOX)
    noise = generator.normal(0, generator.uniform(0, 12), size=(CANVAS_PX, CANVAS_PX, 3))
    return Image.fromarray((np.asarray(small) + noise).clip(0, 255).astype(np.uint8))


def _outline(shape: str, reach: float, angle: float) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
    num_corners = {"circle": 64, "square": 4, "triangle": 3}[shape]
    angles = angle + np.arange(num_corners) * 2 * math.pi / num_corners
    return reach * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _vary(color: tuple[int, int, int], generator: np.random.Generator) -> tuple[int, int, int]:
    """Return the color with small random changes of brightness and hue."""
    hue, saturation, value = colorsys.rgb_to_hsv(*(channel / 255 for channel in color))
    hue = (hue + float(generator.uniform(-0.015, 0.015))) % 1
    value = min(1.0, max(0.0, value * float(generator.uniform(0.85, 1.1))))
    red, green, blue = (round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, saturation, value))
    return red, green, blue
