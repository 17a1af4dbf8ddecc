"""Load a model folder with the library that wrote it, to compare its embeddings with Diptych's.

Shapes: N inputs, E embedding.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from diptych.bundle.open_bundle import ExportFormat
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json
from diptych.models.third_party import import_transformers, make_torchvision_importable
from diptych.tokenizers.protocol import Tokenizer

Embeddings: TypeAlias = Float32[ndarray, "N E"]

PEERS: dict[ExportFormat, tuple[str, str]] = {
    "hugging-face": ("transformers", "transformers"),
    "open-clip": ("open_clip", "open_clip_torch"),
}
"""Module and package of the library of each format."""


@runtime_checkable
class Peer(Protocol):
    """A model in the library that wrote its files."""

    @property
    def logit_scale(self) -> float:
        """Factor by which cosine similarities are multiplied."""
        ...

    @property
    def has_own_tokenizer(self) -> bool:
        """Whether the library tokenizes the texts; otherwise its text tower gets Diptych's token ids."""
        ...

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        """Return embeddings of unit length, computed with the library's own image transform."""
        ...

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        """Return embeddings of unit length."""
        ...


def missing_package(kind: ExportFormat) -> str | None:
    """Return the package to install before a folder can be compared; None if it is installed."""
    module, package = PEERS[kind]
    return None if find_spec(module) is not None else package


def load_peer(kind: ExportFormat, folder: Path, tokenizer: Tokenizer) -> Peer:
    """Return the model in a folder, loaded by the library of its format, on the CPU in float32. No code in the folder is run.

    Args:
        kind: format of the folder.
        folder: the folder.
        tokenizer: used if the folder has no tokenizer that the library can read.

    Raises:
        BundleError: the library cannot load the folder.
    """
    assert kind in get_args(ExportFormat)
    peer = _HuggingFacePeer if kind == "hugging-face" else _OpenClipPeer
    try:
        return peer(folder, tokenizer)
    except Exception as error:  # The exception classes depend on the library.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{PEERS[kind][0]} cannot load the model ({reason:.200})") from None


def peer_name(kind: ExportFormat) -> str:
    """Return the name and version of the library of a format."""
    module, package = PEERS[kind]
    return f"{module} {version(package)}"


class _HuggingFacePeer:
    """A model in `transformers`."""

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        transformers = import_transformers()
        options = {"local_files_only": True, "trust_remote_code": False}
        with _without_progress():
            self._model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32, **options).eval()
        self._processor = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil", **options)
        self._ids = tokenizer
        self._tokenizer: Any = None
        names = ("tokenizer.json", "vocab.json", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
        if any((folder / name).is_file() for name in names):
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(folder, **options)
        self._is_siglip = str(_model_type(folder)).startswith("siglip")

    @property
    def logit_scale(self) -> float:
        return float(self._model.logit_scale.detach().exp())

    @property
    def has_own_tokenizer(self) -> bool:
        return self._tokenizer is not None

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        pixels = torch.as_tensor(np.asarray(self._processor(list(images), return_tensors="np")["pixel_values"]))
        with torch.inference_mode():
            return _unit(self._model.get_image_features(pixel_values=pixels))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        with torch.inference_mode():
            return _unit(self._model.get_text_features(**self._inputs(texts)))

    def _inputs(self, texts: Sequence[str]) -> dict[str, Tensor]:
        if self._tokenizer is None:
            encoded = self._ids.encode(list(texts))
            return {"input_ids": torch.as_tensor(encoded.ids).long()}
        length = self._model.config.text_config.max_position_embeddings
        if (
            self._is_siglip
        ):  # Padding is attended to. Not every version of `transformers` lowercases, as big_vision does.
            lower = [text.lower() for text in texts]
            found = self._tokenizer(
                lower, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            )
            return {"input_ids": found["input_ids"]}
        found = self._tokenizer(list(texts), padding=True, truncation=True, max_length=length, return_tensors="pt")
        return {name: found[name] for name in ("input_ids", "attention_mask")}


class _OpenClipPeer:
    """A model in open_clip."""

    has_own_tokenizer = True

    def __init__(self, folder: Path, tokenizer: Tokenizer) -> None:
        open_clip, name = _import("open_clip"), f"local-dir:{folder}"
        self._model, self._transform = open_clip.create_model_from_pretrained(name, precision="fp32", device="cpu")
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    @property
    def logit_scale(self) -> float:
        return float(self._model.logit_scale.detach().exp())

    def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
        with torch.inference_mode():
            return _unit(self._model.encode_image(torch.stack([self._transform(image) for image in images])))

    def encode_texts(self, texts: Sequence[str]) -> Embeddings:
        with torch.inference_mode():
            return _unit(self._model.encode_text(self._tokenizer(list(texts))))


@contextmanager
def _without_progress() -> Iterator[None]:
    """Suppress the progress bars and warnings of `transformers`."""
    logging = import_module("transformers.utils.logging")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        logging.enable_progress_bar()


def _unit(features: Any) -> Embeddings:
    """Return features scaled to unit length. `transformers` 5 returns features in an object."""
    tensor = features if isinstance(features, Tensor) else features.pooler_output
    unit: Embeddings = functional.normalize(tensor.float(), dim=-1).numpy()
    return unit


def _model_type(folder: Path) -> object:
    try:
        content = read_json(folder / "config.json")
    except ConfigError:
        return None
    return content.get("model_type") if isinstance(content, dict) else None


def _import(module: str) -> Any:
    """Import a library that imports torchvision."""
    make_torchvision_importable()
    return import_module(module)
