"""What the four uses ask of a model, be it here or on a server. Shapes: N inputs, E embedding."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ImageError
from diptych.core.sample import ImageInput


@runtime_checkable
class Encoder(Protocol):
    """Makes unit embeddings: `Embedder` of a bundle that was loaded, `Client` of one behind an address."""

    @property
    def dim(self) -> int:
        """Numbers of an embedding."""
        ...

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        ...

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the bundle knows of itself."""
        ...

    def encode_images(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[int, ImageError], None] | None = None,
        advance: Callable[[], object] = ...,
    ) -> Float32[ndarray, "N E"]:
        """One row an image, NaN for those that `on_error` is told of; `advance` is called once for each."""
        ...

    def encode_texts(self, texts: Sequence[str], *, advance: Callable[[], object] = ...) -> Float32[ndarray, "N E"]:
        """One row a text; `advance` is called once for each."""
        ...
