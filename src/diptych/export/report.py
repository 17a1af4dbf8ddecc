"""The measurements of an ONNX export, and the limits of acceptance."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.core.errors import BundleError, ConfigError
from diptych.core.precision import GraphPrecision
from diptych.export.comparison import TowerComparison
from diptych.export.speed import Speed

MAX_DIFFERENCE = 1e-4
"""Maximum absolute difference between a number of an fp32 embedding and that of the model."""
MIN_COSINE = 0.99
"""Minimum cosine similarity of fp16 and int8 embeddings to those of the model."""


@dataclass(frozen=True, kw_only=True)
class OnnxReport:
    """The files of an ONNX export, its differences from the model, and its speed."""

    folder: Path
    """The folder that was written."""
    precision: GraphPrecision
    """Precision of the weights in the graphs."""
    opset: int
    """Version of the ONNX operators."""
    files: Mapping[str, int]
    """Size of each file in bytes, by its path within the folder."""
    images: TowerComparison
    """The image graph compared with the model."""
    texts: TowerComparison
    """The text graph compared with the model."""
    has_tokenizer: bool
    """Whether Hugging Face's format can express the tokenizer."""
    torch: Speed
    """Speed of the model in PyTorch."""
    onnxruntime: Speed
    """Speed of the graphs in ONNX Runtime."""

    @property
    def min_cosine(self) -> float:
        """Minimum cosine similarity to the embeddings of the model over all compared images and texts."""
        return lower_cosine(self.images, self.texts)


def lower_cosine(images: TowerComparison, texts: TowerComparison) -> float:
    """Return the smaller of the two minimum cosine similarities; NaN if one of them is NaN."""
    return float(np.minimum(images.min_cosine, texts.min_cosine))


def check_deviation(
    images: TowerComparison, texts: TowerComparison, *, precision: GraphPrecision, force: bool, folder: Path
) -> None:
    """Check that the embeddings of an export are close enough to those of its model.

    Args:
        images: the image graph compared with the model.
        texts: the text graph compared with the model.
        precision: precision of the weights in the graphs.
        force: whether to accept any deviation of fp16 or int8 except NaN.
        folder: the folder of the export, for the message.

    Raises:
        BundleError: an fp32 embedding differs by more than `MAX_DIFFERENCE`.
        ConfigError: the cosine similarity of a lower precision is not a number, or it is below `MIN_COSINE`, and `force` is
            False.
    """
    if precision == "fp32":
        if not all(tower.max_difference <= MAX_DIFFERENCE for tower in (images, texts)):  # False for NaN.
            raise BundleError(
                f"{folder}: the export was removed, because its embeddings differ from the model's by up to "
                f"{images.max_difference:.1e} for pictures and {texts.max_difference:.1e} for texts; "
                f"{MAX_DIFFERENCE:.0e} is allowed"
            )
    elif np.isnan(lower_cosine(images, texts)):
        raise ConfigError(f"the embeddings are not numbers (NaN) in {precision}; use another --precision")
    elif not (force or all(tower.min_cosine >= MIN_COSINE for tower in (images, texts))):
        raise ConfigError(
            f"{precision} loses too much: the smallest cosine to fp32 is {images.min_cosine:.5f} for pictures and "
            f"{texts.min_cosine:.5f} for texts, below {MIN_COSINE}; use another --precision, or --force to export it anyway"
        )
