"""The interface between tasks and models, which are local or on a server. Shapes: N inputs, E embedding."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ImageError
from diptych.core.sample import ImageInput


@runtime_checkable
class Encoder(Protocol):
    """Protocol of objects that compute embeddings: `Embedder` for a loaded bundle, `diptych.Client` for a server."""

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""
        ...

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities before a softmax."""
        ...

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics that are stored in the bundle."""
        ...

    def encode_images(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[int, ImageError], None] | None = None,
        advance: Callable[[], object] = ...,
    ) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length, one row per image.

        Args:
            images: the images.
            on_error: called with (index, error) for each image that cannot be read; its row is then NaN.
            advance: called once per image.

        Raises:
            ImageError: an image cannot be read and `on_error` is None.
        """
        ...

    def encode_texts(self, texts: Sequence[str], *, advance: Callable[[], object] = ...) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length, one row per text; `advance` is called once per text."""
        ...
