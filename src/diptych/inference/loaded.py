"""Loading of bundles for inference (`diptych.load`). Shapes: N inputs, Q queries, E embedding."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from diptych.bundle.folder import Bundle
from diptych.bundle.identity import sampled_identity
from diptych.bundle.open_bundle import open_bundle
from diptych.core.deprecation import RenamedAttribute
from diptych.core.errors import ConfigError
from diptych.core.progress import Track, bar, silently
from diptych.core.sample import ImageInput
from diptych.cpu import linear
from diptych.device.hardware import choose_device, cpu_has, has_fast_int8
from diptych.device.precision import DTYPES, Precision, lacks_bf16
from diptych.images.transforms import Pixels
from diptych.inference.embedder import Embedder
from diptych.inference.query import Query, query_embeddings
from diptych.inference.uses import ClipTasks
from diptych.models.clip import CLIP
from diptych.models.config import Activation
from diptych.models.int8 import to_int8
from diptych.models.vision_transformer import VisionTransformer

InferencePrecision: TypeAlias = Precision | Literal["int8"]
"""Data type in which a model computes embeddings."""


class LoadedBundle(ClipTasks):
    """A trained model with methods for embeddings, similarity, classification and ranking. `diptych.load` returns it.

    Images are paths, bytes, PIL images or uint8 arrays in any iterable, or the path of a folder.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        path: Path | None = None,
        batch_size: int = 64,
        urls: bool = False,
        track: Track = silently,
        identities: tuple[str, ...] | None = None,
    ) -> None:
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
        """Hash of config, weights and tokenizer, independent of the precision (`bundle.identity.model_identity`)."""
        return self.identities[0]

    @cached_property
    def identities(self) -> tuple[str, ...]:
        """The identity, then the identity of the same model in indexes of earlier versions."""
        return self._identities or identities_of(self.bundle)

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
            ConfigError: the bundle was not loaded from a path.
        """
        if self.path is None:
            raise ConfigError("the bundle has no path, so it cannot be loaded again in float32")
        full = load(self.path, device=self.embedder.device.type, batch_size=self.embedder.batch_size)
        cosines = np.einsum("ne,ne->n", self.encode_images(images), full.encode_images(images))
        return float(cosines.min())

    agreement = RenamedAttribute("min_cosine_to_fp32")


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: InferencePrecision = "fp32",
    batch_size: int = 64,
    urls: bool = False,
    progress: bool = True,
    activation: Activation | None = None,
    preset: str | None = None,
    image_px: Pixels | None = None,
) -> LoadedBundle:
    """Load a model for inference.

    Args:
        path: a bundle folder, or anything that `diptych import` reads: a model folder of open_clip or Hugging Face, a file with
            weights in OpenAI's format, or `hf:` and a hub id.
        device: "cpu", "cuda", "mps", or "auto" for the fastest device that is available.
        precision: data type of the computation: "fp32"; "bf16" or "fp16" on devices that support it; "int8" on CPUs with
            instructions for it. `LoadedBundle.min_cosine_to_fp32` measures the loss of accuracy.
        batch_size: number of images or texts per batch.
        urls: whether an image may be a URL (http, s3 and other protocols of fsspec). False by default, because the URLs may
            come from somebody else and reading them can have costs.
        progress: whether operations of more than two seconds show a progress bar, if standard error is a terminal.
        activation: activation of the model, for a weights file that does not contain it.
        preset: architecture of the model, for a weights file whose tensors do not determine it.
        image_px: image size in pixels, if different from the model's. The position embeddings are resized.

    Returns:
        The loaded model.

    Raises:
        BundleError: there is no model at `path`, it is damaged, or it has features that Diptych does not support.
        ConfigError: the machine does not support the device or precision, or an argument does not match the model.
    """
    selected = choose_device(device)
    _check_precision(precision, selected)
    bundle = open_bundle(path, activation=activation, preset=preset, image_px=image_px)
    identities = None
    if precision != "fp32":
        identities = identities_of(bundle)  # Before the weights are converted.
        _convert(bundle.model, precision)
    bundle.model.to(selected)
    if precision == "fp32":
        linear.optimize(bundle.model)
    track = bar if progress else silently
    return LoadedBundle(bundle, path=Path(path), batch_size=batch_size, urls=urls, track=track, identities=identities)


def identities_of(bundle: Bundle) -> tuple[str, ...]:
    """The identity of the bundle's model, then its identity in indexes of earlier versions."""
    return bundle.identity, sampled_identity(bundle.model)


def _check_precision(precision: InferencePrecision, device: torch.device) -> None:
    """Raise a ConfigError if the device does not support the precision or is slower with it than in float32."""
    lacking = None
    if device.type == "cpu":
        lacking = {
            "int8": None if has_fast_int8() else "int8 on a CPU needs VNNI instructions",
            "bf16": None if cpu_has("avx512_bf16", "amx_bf16") else "bf16 on a CPU needs AVX512-BF16 or AMX",
            "fp16": None if cpu_has("avx512_fp16", "amx_fp16") else "fp16 on a CPU needs AVX512-FP16 or AMX",
        }.get(precision)
    elif precision == "int8":
        lacking = f"int8 is for CPUs, and the device is {device}"
    elif precision == "bf16" and lacks_bf16(device):
        lacking = "this GPU has no bf16; it has fp16"
    if lacking:
        raise ConfigError(f"{lacking}; fp32 is faster on this device")


def _convert(model: CLIP, precision: InferencePrecision) -> None:
    if precision != "int8":
        model.convert(DTYPES[precision])
        return
    if not isinstance(model.image_tower, VisionTransformer):
        raise ConfigError("int8 is for vision transformers; this image tower is a ResNet")
    to_int8(model)
