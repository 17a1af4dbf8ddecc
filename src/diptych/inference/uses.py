"""The four things that an encoder is for, as methods. Shapes are those of the functions behind them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Literal

from diptych.core.progress import Track
from diptych.core.sample import ImageInput
from diptych.inference.classify import DEFAULT_TEMPLATES, Classification, classify
from diptych.inference.encoder import Encoder
from diptych.inference.inputs import Images, OnError
from diptych.inference.query import Query
from diptych.inference.rank import Ranking, rank_images, rank_texts
from diptych.inference.similarity import Similarity, similarity


class FourUses(ABC):
    """What a bundle that was loaded and a server's client have in common.

    Images are paths, bytes, PIL images or uint8 arrays, given one by one, or a folder of them.
    """

    @property
    @abstractmethod
    def encoder(self) -> Encoder:
        """What makes the embeddings."""

    @property
    @abstractmethod
    def track(self) -> Track:
        """Who is told how far the work is."""

    def similarity(
        self, images: Images, texts: Sequence[str | Query], *, on_error: OnError | None = None
    ) -> Similarity:
        """How alike each image and each text are, as cosines and probabilities."""
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
        """Each image's classes, the likeliest first, from nothing but their names."""
        return classify(
            self.encoder,
            images,
            classes,
            templates=templates,
            threshold=threshold,
            on_error=on_error,
            track=self.track,
        )

    def rank_images(self, text: str | Query, images: Images, *, top: int | None = None) -> Ranking:
        """The images that fit a text best."""
        return rank_images(self.encoder, text, images, top=top, track=self.track)

    def rank_texts(self, image: ImageInput | Query, texts: Sequence[str], *, top: int | None = None) -> Ranking:
        """The texts that fit an image best."""
        return rank_texts(self.encoder, image, texts, top=top, track=self.track)
