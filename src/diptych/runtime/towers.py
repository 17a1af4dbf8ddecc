"""The interface between the embedder and the graphs of an ONNX folder: pixels or token ids in, embeddings out.

Shapes: B inputs of a batch, H W pixels, E embedding.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray

from diptych.core.precision import GraphPrecision
from diptych.images.transforms import PixelConfig
from diptych.runtime.sessions import OnnxDevice, Sessions
from diptych.tokenizers.protocol import Encoded

_DTYPES: dict[GraphPrecision, str] = {"fp32": "float32", "fp16": "float16", "int8": "int8"}


class OnnxTowers:
    """The two graphs of an ONNX folder, as an implementation of `diptych.inference.towers.Towers`."""

    engine = "ONNX Runtime"

    def __init__(self, sessions: Sessions, *, pixels: PixelConfig, precision: GraphPrecision) -> None:
        self.sessions = sessions
        self._table = normalization_table(pixels)
        self.dtype_name = _DTYPES[precision]
        """Data type of the weights, such as "float32" or "int8"."""

    @property
    def device(self) -> OnnxDevice:
        """The device that computes."""
        return self.sessions.device

    @property
    def num_decoders(self) -> int:
        """Number of images to decode at the same time while others are encoded."""
        return 2

    @property
    def decodes_in_processes(self) -> bool:
        """Whether to decode images in separate processes: True on a GPU."""
        return self.device.type == "cuda"

    def open(self) -> None:
        """Read both graphs now instead of when they are first used; see `Sessions.open`."""
        self.sessions.open()

    def start_images(self, pixels: Sequence[UInt8[ndarray, "3 H W"]]) -> Callable[[], Float32[ndarray, "B E"]]:
        """Return a function that computes the embeddings of a batch of at least one image. They have unit length."""
        normalized = normalize(pixels, self._table)
        return lambda: self.sessions.encode_pixels(normalized)

    def encode_texts(
        self, encoded: Encoded, *, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[tuple[Int64[ndarray, " B"], Float32[ndarray, "B E"]]]:
        """Yield the row indices and the embeddings, which have unit length, of each batch of texts of this rank.

        Texts are sorted by length to reduce padding.

        Args:
            encoded: the texts.
            batch_size: number of texts per batch.
            rank: index of this process among those that share the batches.
            num_ranks: number of processes that share the batches.
        """
        ids, lengths = encoded.ids, encoded.lengths
        by_length = np.argsort(lengths, kind="stable")
        for start in range(rank * batch_size, len(ids), num_ranks * batch_size):
            rows = by_length[start : start + batch_size]
            longest = int(lengths[rows].max())
            mask = (np.arange(longest) < lengths[rows, None]).astype(np.int64)
            yield rows, self.sessions.encode_ids(ids[rows, :longest], mask)


def normalization_table(config: PixelConfig) -> Float32[ndarray, "3 256"]:
    """Return `(byte / 255 - mean) / std` for each channel and byte, in float32 with the rounding of `images.tensors.normalize`.

    >>> normalization_table(PixelConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 0.5, 0.25)))[:, 255].tolist()
    [1.0, 2.0, 4.0]
    """
    scaled = np.arange(256, dtype=np.float32) / np.float32(255)
    mean, std = (np.asarray(values, dtype=np.float32)[:, None] for values in (config.mean, config.std))
    return (scaled - mean) / std


def normalize(
    pixels: Sequence[UInt8[ndarray, "3 H W"]], table: Float32[ndarray, "3 256"]
) -> Float32[ndarray, "B 3 H W"]:
    """Return a batch of at least one image with each byte replaced by its value in a `normalization_table`.

    >>> table = normalization_table(PixelConfig(mean=(0.0, 0.0, 0.0), std=(1.0, 0.5, 0.25)))
    >>> normalize([np.full((3, 1, 1), 255, dtype=np.uint8)], table).ravel().tolist()
    [1.0, 2.0, 4.0]
    """
    normalized = np.empty((len(pixels), *pixels[0].shape), dtype=np.float32)
    for out, image in zip(normalized, pixels, strict=True):
        for channel, values, of_channel in zip(out, image, table, strict=True):
            np.take(of_channel, values, out=channel)
    return normalized
