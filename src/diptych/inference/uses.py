"""The tasks of a CLIP model as methods: similarity, zero-shot classification, and ranking of images and of texts."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from diptych.core.deprecation import renamed_names
from diptych.core.progress import Track
from diptych.core.sample import ImageInput
from diptych.inference.classify import DEFAULT_TEMPLATES, Classification, classify
from diptych.inference.encoder import Encoder
from diptych.inference.inputs import Images, OnError
from diptych.inference.query import Query
from diptych.inference.rank import Ranking, rank_images, rank_texts
from diptych.inference.similarity import Similarity, similarity


class ClipTasks(ABC):
    """Base class of `LoadedBundle` and `diptych.Client`: tasks that need only an encoder.

    Images are paths, bytes, PIL images or uint8 arrays in any iterable, or the path of a folder.
    """

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """The encoder that computes the embeddings."""

    @property
    @abstractmethod
    def track(self) -> Track:
        """Reports progress (`diptych.core.progress`)."""

    def similarity(
        self, images: Images, texts: Sequence[str | Query], *, on_error: OnError | None = None
    ) -> Similarity:
        """Cosine similarities and probabilities of all pairs of an image and a text; see `diptych.inference.similarity`."""
        return similarity(self.encoder, images, texts, on_error=on_error, track=self.track)

    def classify(
        self,
        images: Images,
        classes: Sequence[str],
        *,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        threshold: float | Literal["auto"] | None = None,
        on_error: OnError | None = None,
    ) -> list[Classification]:
        """Zero-shot classification: the classes of each image, most probable first; see `diptych.inference.classify`."""
        return classify(
            self.encoder, images, classes, templates=templates, threshold=threshold, on_error=on_error, track=self.track
        )

    def rank_images(self, text: str | Query, images: Images, *, top: int | None = None) -> Ranking:
        """The images, most similar to the text first; see `diptych.inference.rank`."""
        return rank_images(self.encoder, text, images, top=top, track=self.track)

    def rank_texts(self, image: ImageInput | Query, texts: Sequence[str], *, top: int | None = None) -> Ranking:
        """The texts, most similar to the image first; see `diptych.inference.rank`."""
        return rank_texts(self.encoder, image, texts, top=top, track=self.track)


if not TYPE_CHECKING:
    __getattr__ = renamed_names(__name__, {"FourUses": "ClipTasks"})
