"""A bundle ready for use: what `diptych.load` returns. Shapes: N inputs, E embedding."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from jaxtyping import Float32
from numpy import ndarray

from diptych.bundle.choice import open_bundle
from diptych.bundle.folder import Bundle
from diptych.core.device import choose_device
from diptych.core.sample import ImageInput
from diptych.images.transforms import Pixels
from diptych.inference import rank
from diptych.inference.classify import DEFAULT_TEMPLATES, Classification, classify
from diptych.inference.embedder import Embedder
from diptych.inference.similarity import Similarity, similarity
from diptych.models.config import Activation


class LoadedBundle:
    """A trained model and the four things it is for. Images are paths, bytes, PIL images or uint8 arrays."""

    def __init__(self, bundle: Bundle, *, path: Path | None = None, batch_size: int = 64) -> None:
        self.bundle = bundle
        self.path = path
        self.embedder = Embedder(bundle, batch_size=batch_size)

    def encode_images(self, images: Iterable[ImageInput]) -> Float32[ndarray, "N E"]:
        """Unit embeddings of the images."""
        return self.embedder.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> Float32[ndarray, "N E"]:
        """Unit embeddings of the texts."""
        return self.embedder.encode_texts(texts)

    def similarity(self, images: Sequence[ImageInput], texts: Sequence[str]) -> Similarity:
        """How alike each image and each text are, as cosines and probabilities."""
        return similarity(self.embedder, images, texts)

    def classify(
        self, images: Sequence[ImageInput], classes: Sequence[str], *, templates: Sequence[str] = DEFAULT_TEMPLATES
    ) -> list[Classification]:
        """Each image's classes, the likeliest first, from nothing but their names."""
        return classify(self.embedder, images, classes, templates=templates)

    def rank_images(
        self, text: str, images: str | Path | Sequence[ImageInput], *, top: int | None = None
    ) -> rank.Ranking:
        """The images of a folder or a list that fit a text best."""
        return rank.rank_images(self.embedder, text, images, top=top)

    def rank_texts(self, image: ImageInput, texts: Sequence[str], *, top: int | None = None) -> rank.Ranking:
        """The texts that fit an image best."""
        return rank.rank_texts(self.embedder, image, texts, top=top)


def load(
    path: str | Path,
    *,
    device: str = "auto",
    batch_size: int = 64,
    activation: Activation | None = None,
    preset: str | None = None,
    image_px: Pixels | None = None,
) -> LoadedBundle:
    """A model, ready for use.

    Args:
        path: a bundle folder; or what `diptych import` reads: a model folder of open_clip's or Hugging Face's, a file of
            weights in OpenAI's naming, `hf:` and a hub id.
        device: `cpu`, `cuda`, `mps`, or `auto` for the fastest that is there.
        batch_size: images or texts that are encoded at once.
        activation: what a bare file of weights was trained with, if it does not say.
        preset: the architecture of a bare file of weights, where its tensors do not tell.
        image_px: pictures of another size than the model's; position embeddings are resized.

    Raises:
        BundleError: nothing of the kind is there, it is damaged, or it has something that Diptych has not.
        ConfigError: the machine has no such device, or an argument does not go with the model.
    """
    bundle = open_bundle(path, activation=activation, preset=preset, image_px=image_px)
    bundle.model.to(choose_device(device))
    return LoadedBundle(bundle, path=Path(path), batch_size=batch_size)
