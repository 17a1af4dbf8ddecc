"""A model that is loaded for inference. Shapes: N inputs, Q queries, E embedding."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.deprecation import RenamedAttribute
from diptych.core.errors import ConfigError
from diptych.core.progress import Track, silently
from diptych.core.sample import ImageInput
from diptych.inference.embedder import Embedder
from diptych.inference.query import Query, query_embeddings
from diptych.inference.towers import Model
from diptych.inference.uses import ClipTasks


class LoadedBundle(ClipTasks):
    """A trained model with methods for embeddings, similarity, classification and ranking. `diptych.load` returns it.

    Images are paths, bytes, PIL images or uint8 arrays in any iterable, or the path of a folder.
    """

    def __init__(
        self,
        bundle: Model,
        *,
        path: Path | None = None,
        batch_size: int = 64,
        urls: bool = False,
        track: Track = silently,
        identities: tuple[str, ...] | None = None,
    ) -> None:
        """Prepare a model for use; `diptych.load` calls this.

        Args:
            bundle: the model: a bundle or an ONNX folder.
            path: where it was loaded from.
            batch_size: number of images or texts per batch.
            urls: whether an image may be a URL.
            track: reports progress.
            identities: the identities of the model before its weights were converted; None if they were not converted.
        """
        self.bundle = bundle
        self.path = path
        self.embedder = Embedder(bundle, batch_size=batch_size, urls=urls, precision="fp32")
        self._track = track
        self._identities = identities

    @property
    def encoder(self) -> Embedder:
        """The encoder that computes the embeddings; the same as `embedder`."""
        return self.embedder

    @property
    def track(self) -> Track:
        """Reports progress (`diptych.core.progress`)."""
        return self._track

    @property
    def identity(self) -> str:
        """Hash of config, weights and tokenizer (`bundle.identity.model_identity`).

        The argument `precision` of `load` does not change it. An fp16 or int8 ONNX folder adds a suffix, such as
        `-int8-0123abcd`.
        """
        return self.identities[0]

    @property
    def identities(self) -> tuple[str, ...]:
        """The identity, then the identity of the same model in indexes of earlier versions."""
        variant = self.bundle.variant
        return (f"{self.base_identities[0]}-{variant}",) if variant else self.base_identities

    @cached_property
    def base_identities(self) -> tuple[str, ...]:
        """Like `identities`, without a precision suffix. If two models share one, their embeddings can be compared."""
        return self._identities or self.bundle.identities()

    def encode_images(self, images: Iterable[ImageInput]) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length, one row per image; see `Embedder.encode_images`."""
        return self.embedder.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length, one row per text; see `Embedder.encode_texts`."""
        return self.embedder.encode_texts(texts)

    def encode_queries(self, queries: Sequence[str | Query]) -> Float32[ndarray, "Q E"]:
        """Embeddings of unit length, one row per query. A query is a text or a weighted sum (`diptych.parse_query`)."""
        return query_embeddings(self.embedder, queries)

    def min_cosine_to_fp32(self, images: Sequence[ImageInput]) -> float:
        """The minimum over the images of the cosine similarity between their embeddings in this precision and in float32.

        The bundle is loaded again in float32 for the comparison.

        Raises:
            ConfigError: the bundle was not loaded from a path, or it is an ONNX export.
        """
        if self.bundle.variant:
            raise ConfigError(
                "an ONNX export was compared with float32 when it was made; its model card has the result"
            )
        if self.path is None:
            raise ConfigError("the bundle has no path, so it cannot be loaded again in float32")
        from diptych.inference.loaded import load  # noqa: PLC0415  (`loaded` imports this module)

        full = load(self.path, device=self.embedder.device.type, batch_size=self.embedder.batch_size)
        cosines = np.einsum("ne,ne->n", self.encode_images(images), full.encode_images(images))
        return float(cosines.min())

    agreement = RenamedAttribute("min_cosine_to_fp32")
