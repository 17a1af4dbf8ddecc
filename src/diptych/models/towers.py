"""The interface between the embedder and the towers of a PyTorch model: pixels or token ids in, NumPy arrays out.

Shapes: B inputs of a batch, H W pixels, E embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from diptych.core.lists import one_behind
from diptych.core.precision import Precision
from diptych.device.forks import before_computing
from diptych.device.hardware import decodes_in_processes, num_decoders
from diptych.device.precision import DTYPES, resolve_precision
from diptych.images.tensors import normalize
from diptych.models.clip import CLIP
from diptych.models.prefix_tree import plan_sharing, prefix_tree
from diptych.tokenizers.protocol import Encoded

_NODES_PER_BATCH = 4096
"""Approximate number of nodes of a prefix tree: large enough for efficient matmuls, small enough to fit in the cache."""


class ModelTowers:
    """The towers of a `CLIP` model on the device of its weights; implements `diptych.inference.towers.Towers`."""

    engine = "PyTorch"

    def __init__(self, model: CLIP, precision: Precision | None = None) -> None:
        """Prepare a model for use.

        Args:
            model: the model.
            precision: data type of the computation. The default is bf16 on a CUDA GPU, or fp16 if it does not support bf16,
                and fp32 on other devices. It has no effect on a model whose weights are not float32, which uses their dtype.
        """
        self.model = model
        weights = next(model.parameters())
        self.device = weights.device
        self.dtype = (
            DTYPES[precision or resolve_precision("auto", self.device)]
            if weights.dtype == torch.float32
            else weights.dtype
        )
        """The dtype of the computation."""
        self._is_cast = self.dtype != weights.dtype
        before_computing(self.device)  # Loading has already started PyTorch's CPU threads or a CUDA context.

    @property
    def dtype_name(self) -> str:
        """Data type of the computation, such as "float32"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def num_decoders(self) -> int:
        """Number of images to decode at the same time while others are encoded."""
        return num_decoders(self.device)

    @property
    def decodes_in_processes(self) -> bool:
        """Whether to decode images in separate processes: True on a CUDA GPU."""
        return decodes_in_processes(self.device)

    def open(self) -> None:
        """Do nothing: the weights are in memory already."""

    def start_images(self, pixels: Sequence[UInt8[ndarray, "3 H W"]]) -> Callable[[], Float32[ndarray, "B E"]]:
        """Queue a batch of at least one image; return a function that waits for its embeddings, which have unit length."""
        before_computing(self.device)
        is_pinned = self.device.type == "cuda"
        stacked = torch.empty((len(pixels), *pixels[0].shape), dtype=torch.uint8, pin_memory=is_pinned)
        np.stack(pixels, out=stacked.numpy())
        stacked = stacked.to(self.device, non_blocking=is_pinned)
        with torch.inference_mode(), self._autocast():
            emb = self.model.encode_image(normalize(stacked, self.model.config.pixels))
        return lambda: _array(emb)

    def encode_texts(
        self, encoded: Encoded, *, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[tuple[Int64[ndarray, " B"], Float32[ndarray, "B E"]]]:
        """Yield the row indices and the embeddings, which have unit length, of each batch of texts of this rank.

        Texts are sorted by length, so that a batch has few different lengths (`packing.py`). If common prefixes make up enough
        of the tokens, as in prompts for many classes, each prefix is encoded once (`prefix_tree.py`).

        Args:
            encoded: the texts.
            batch_size: number of texts per batch.
            rank: index of this process among those that share the batches.
            num_ranks: number of processes that share the batches.
        """
        before_computing(self.device)
        batches = self._start_texts(encoded, batch_size=batch_size, rank=rank, num_ranks=num_ranks)
        for rows, emb in one_behind(batches):
            yield rows, _array(emb)

    def _start_texts(
        self, encoded: Encoded, *, batch_size: int, rank: int, num_ranks: int
    ) -> Iterator[tuple[Int64[ndarray, " B"], Tensor]]:
        ids, lengths = encoded.ids, encoded.lengths
        sharing = plan_sharing(ids, lengths) if self.model.text_tower.supports_prefix_sharing else None
        if sharing is not None:
            order, new = sharing
            batches = np.split(order, np.flatnonzero(np.diff(new.cumsum() // _NODES_PER_BATCH)) + 1)
            for rows in batches[rank::num_ranks]:
                with torch.inference_mode(), self._autocast():
                    emb = self.model.encode_text_tree(prefix_tree(ids[rows], lengths[rows], self.device))
                yield rows, emb
            return
        by_length = np.argsort(lengths, kind="stable")
        for start in range(rank * batch_size, len(ids), num_ranks * batch_size):
            rows = by_length[start : start + batch_size]
            trimmed = torch.from_numpy(ids[rows])[:, : int(lengths[rows].max())]
            with torch.inference_mode(), self._autocast():
                emb = self.model.encode_text(trimmed.to(self.device), torch.from_numpy(lengths[rows]))
            yield rows, emb

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.dtype) if self._is_cast else nullcontext()


def _array(emb: Tensor) -> Float32[ndarray, "B E"]:
    array: Float32[ndarray, "B E"] = emb.float().cpu().numpy()
    return array
