"""A bundle ready for use: what `diptych.load` returns. Shapes: N inputs, Q queries, E embedding."""

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
from diptych.core.device import choose_device, cpu_has, has_fast_int8
from diptych.core.errors import ConfigError
from diptych.core.progress import Track, bar, silently
from diptych.core.sample import ImageInput
from diptych.images.transforms import Pixels
from diptych.inference.embedder import Embedder
from diptych.inference.query import Query, query_embeddings
from diptych.inference.uses import FourUses
from diptych.models.clip import CLIP
from diptych.models.config import Activation
from diptych.models.int8 import to_int8
from diptych.models.vision_transformer import VisionTransformer

Precision: TypeAlias = Literal["fp32", "bf16", "fp16", "int8"]
"""What a model computes in."""


class LoadedBundle(FourUses):
    """A trained model and the four things it is for.

    Images are paths, bytes, PIL images or uint8 arrays, given one by one, or a folder of them. Work of more than two seconds
    shows a bar on a terminal.
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
        self.embedder = Embedder(bundle, batch_size=batch_size, urls=urls)
        self._track = track
        self._identities = identities

    @property
    def encoder(self) -> Embedder:
        """What makes the embeddings."""
        return self.embedder

    @property
    def track(self) -> Track:
        """Who is told how far the work is."""
        return self._track

    @property
    def identity(self) -> str:
        """What tells the model from any other, whatever precision it computes in (`bundle.identity.model_identity`)."""
        return self.identities[0]

    @cached_property
    def identities(self) -> tuple[str, ...]:
        """The identity, then the one that an earlier Diptych gave the same model and that its indexes hold."""
        return self._identities or identities_of(self.bundle)

    def encode_images(self, images: Iterable[ImageInput]) -> Float32[ndarray, "N E"]:
        """Unit embeddings of the images."""
        return self.embedder.encode_images(images)

    def encode_texts(self, texts: Sequence[str]) -> Float32[ndarray, "N E"]:
        """Unit embeddings of the texts."""
        return self.embedder.encode_texts(texts)

    def encode_queries(self, queries: Sequence[str | Query]) -> Float32[ndarray, "Q E"]:
        """Unit embeddings of queries, each a text or a weighted sum (`diptych.parse_query`)."""
        return query_embeddings(self.embedder, queries)

    def agreement(self, images: Sequence[ImageInput]) -> float:
        """The smallest cosine between an image's embedding here and in float32: what a lower precision costs.

        Raises:
            ConfigError: the bundle has no place from which it could be loaded anew.
        """
        if self.path is None:
            raise ConfigError("a bundle without a place cannot be compared with itself in float32")
        full = load(self.path, device=self.embedder.device.type, batch_size=self.embedder.batch_size)
        cosines = np.einsum("ne,ne->n", self.encode_images(images), full.encode_images(images))
        return float(cosines.min())


def load(
    path: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "fp32",
    batch_size: int = 64,
    urls: bool = False,
    progress: bool = True,
    activation: Activation | None = None,
    preset: str | None = None,
    image_px: Pixels | None = None,
) -> LoadedBundle:
    """A model, ready for use.

    Args:
        path: a bundle folder; or what `diptych import` reads: a model folder of open_clip's or Hugging Face's, a file of
            weights in OpenAI's naming, `hf:` and a hub id.
        device: `cpu`, `cuda`, `mps`, or `auto` for the fastest that is there.
        precision: what it computes in: `fp32`; `bf16` or `fp16` where the device has them; `int8` on CPUs with instructions for
            it, whose cost `LoadedBundle.agreement` tells.
        batch_size: images or texts that are encoded at once.
        urls: whether an image may be a URL (http, s3, whatever fsspec knows). Off, for who names images may not be who pays.
        progress: whether work of more than two seconds shows a bar, on a terminal.
        activation: what a bare file of weights was trained with, if it does not say.
        preset: the architecture of a bare file of weights, where its tensors do not tell.
        image_px: pictures of another size than the model's; position embeddings are resized.

    Raises:
        BundleError: nothing of the kind is there, it is damaged, or it has something that Diptych has not.
        ConfigError: the machine has no such device or precision, or an argument does not go with the model.
    """
    chosen = choose_device(device)
    _check_precision(precision, chosen)
    bundle = open_bundle(path, activation=activation, preset=preset, image_px=image_px)
    identities = None
    if precision != "fp32":
        identities = identities_of(bundle)  # Of the weights as they are.
        _convert(bundle.model, precision)
    bundle.model.to(chosen)
    track = bar if progress else silently
    return LoadedBundle(bundle, path=Path(path), batch_size=batch_size, urls=urls, track=track, identities=identities)


def identities_of(bundle: Bundle) -> tuple[str, ...]:
    """The identity of a bundle's model, then its older names."""
    return bundle.identity, sampled_identity(bundle.model)


def _check_precision(precision: Precision, device: torch.device) -> None:
    """Refuse what the device would compute more slowly than float32, or not at all."""
    lacking = None
    if device.type == "cpu":
        lacking = {
            "int8": None if has_fast_int8() else "int8 on a CPU needs VNNI instructions",
            "bf16": None if cpu_has("avx512_bf16", "amx_bf16") else "bf16 on a CPU needs AVX512-BF16 or AMX",
            "fp16": None if cpu_has("avx512_fp16", "amx_fp16") else "fp16 on a CPU needs AVX512-FP16 or AMX",
        }.get(precision)
    elif precision == "int8":
        lacking = f"int8 is for CPUs, and the device is {device}"
    elif precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        lacking = "this GPU has no bf16; it has fp16"
    if lacking:
        raise ConfigError(f"{lacking}; without, fp32 is faster")


def _convert(model: CLIP, precision: Precision) -> None:
    if precision != "int8":
        model.convert({"bf16": torch.bfloat16, "fp16": torch.float16}[precision])
        return
    if not isinstance(model.image_tower, VisionTransformer):
        raise ConfigError("int8 is for vision transformers; this image tower is a ResNet")
    to_int8(model)
