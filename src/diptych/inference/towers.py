"""Interfaces that PyTorch models and ONNX folders implement, so that the embedder can use either of them.

Shapes: N inputs, B inputs of a batch, H W pixels, E embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar, runtime_checkable

from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray

from diptych.core.precision import Precision
from diptych.models.config import CLIPConfig
from diptych.tokenizers.protocol import Encoded, Tokenizer

Result = TypeVar("Result")


@runtime_checkable
class Device(Protocol):
    """A device. `str(device)` may also contain an index, as in "cuda:1"."""

    @property
    def type(self) -> str:
        """The kind of device, such as "cpu" or "cuda"."""
        ...


@runtime_checkable
class Towers(Protocol):
    """The two towers of a loaded model. Threads can share them."""

    @property
    def device(self) -> Device:
        """The device that computes the embeddings."""
        ...

    @property
    def dtype_name(self) -> str:
        """Data type of the computation, or of the weights of an ONNX graph, such as "int8". Embeddings are always float32."""
        ...

    @property
    def engine(self) -> str:
        """The library that computes, such as "PyTorch"."""
        ...

    @property
    def num_decoders(self) -> int:
        """Number of images to decode at the same time while others are encoded."""
        ...

    @property
    def decodes_in_processes(self) -> bool:
        """Whether to decode images in separate processes, because the device encodes faster than threads can decode."""
        ...

    def open(self) -> None:
        """Read what is otherwise read when it is first used.

        Raises:
            BundleError: a file of the model cannot be used.
        """
        ...

    def start_images(self, pixels: Sequence[UInt8[ndarray, "3 H W"]]) -> Callable[[], Float32[ndarray, "B E"]]:
        """Queue a batch of at least one image; return a function that waits for its embeddings, which have unit length."""
        ...

    def encode_texts(
        self, encoded: Encoded, *, batch_size: int, rank: int = 0, num_ranks: int = 1
    ) -> Iterator[tuple[Int64[ndarray, " B"], Float32[ndarray, "B E"]]]:
        """Yield the row indices and the embeddings, which have unit length, of each batch of texts.

        Args:
            encoded: the texts.
            batch_size: number of texts per batch.
            rank: index of this process among those that share the batches.
            num_ranks: number of processes that share the batches.
        """
        ...


@runtime_checkable
class Model(Protocol):
    """A model with everything that inference needs: a bundle or an ONNX folder."""

    @property
    def config(self) -> CLIPConfig:
        """The architecture and the image transform."""
        ...

    @property
    def tokenizer(self) -> Tokenizer:
        """Converts texts to ids."""
        ...

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics, each with the protocol by which it was measured."""
        ...

    @property
    def origin(self) -> dict[str, Any]:
        """How the model was made."""
        ...

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities before a softmax."""
        ...

    def identities(self) -> tuple[str, ...]:
        """A hash that identifies the model, then its identity in indexes of earlier versions."""
        ...

    @property
    def variant(self) -> str:
        """Distinguishes the embeddings of files in a lower precision, as in "int8-0123abcd"; "" if they are as trained."""
        ...

    def towers(self, precision: Precision | None = None) -> Towers:
        """The towers of this model. `precision` sets the data type of the computation; ONNX folders ignore it."""
        ...


@runtime_checkable
class RankGroup(Protocol):
    """The processes that share the batches of a call; see `diptych.device.distributed.Ranks`."""

    @property
    def rank(self) -> int:
        """Index of this process, from 0."""
        ...

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def run_on_all(self, action: Callable[[], Result]) -> list[Result]:
        """Run the action on every rank and return the results of all, in order of rank."""
        ...


class _ThisProcess(NamedTuple):
    rank: int = 0
    size: int = 1

    def run_on_all(self, action: Callable[[], Result]) -> list[Result]:
        return [action()]


THIS_PROCESS: RankGroup = _ThisProcess()
"""A group of one process."""
