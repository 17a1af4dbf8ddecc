"""Compare a model with the library that wrote its files, and measure its speed. Shapes: N images, X texts, E embedding."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.bundle.card import describe_image_tower, describe_text_tower
from diptych.bundle.describe_text import describe_preparation
from diptych.bundle.folder import Bundle, is_bundle
from diptych.bundle.hub import PREFIX, cached_snapshot
from diptych.bundle.hub_files import BUNDLE, model_path
from diptych.bundle.known_models import resolve_name
from diptych.bundle.libraries import library_reasons
from diptych.bundle.licenses import LICENSE
from diptych.bundle.onnx_layout import is_onnx_folder
from diptych.bundle.open_bundle import ExportFormat, export_bundle, folder_kind
from diptych.core.errors import BundleError, ConfigError
from diptych.export.comparison import draw_images
from diptych.export.describe import describe_image_transform
from diptych.export.peers import PEERS, Peer, load_peer, missing_package, peer_name
from diptych.export.speed import LARGE_BATCH, MedianSpeed, median_speed
from diptych.images.transforms import size_name
from diptych.inference.loaded import load
from diptych.inference.loaded_bundle import LoadedBundle

LIMIT = 1e-4
"""Maximum difference that passes, for numbers of unit-length embeddings and for cosine similarities."""
SENTENCES = (
    "a dog in the snow",
    "Two CHILDREN on a swing, laughing!",
    "a red circle, a blue square and 3 yellow triangles next to each other on a white background",
    "ein Hund im Schnee",
    "雪の中の犬",
    "the café's menu: 1 espresso & 2 teas",
    "dog",
)
"""The texts to compare."""
_NUM_IMAGES = 4


@dataclass(frozen=True, kw_only=True)
class Parity:
    """Differences between the embeddings and similarities of a model and of its peer."""

    peer: str
    """Library and version of the peer."""
    source: str
    """Path or name of the files that the peer loaded."""
    image: float
    """Maximum difference between two numbers of the image embeddings."""
    text: float
    """Maximum difference between two numbers of the text embeddings."""
    score: float
    """Maximum difference between two cosine similarities of an image and a text."""
    logit_scale: float
    """Relative difference of the logit scale."""
    uses_own_tokenizer: bool
    """Whether the peer tokenized the texts; otherwise it used Diptych's token ids."""

    @property
    def passes(self) -> bool:
        """Whether all differences are at most `LIMIT`. False for NaN."""
        return all(value <= LIMIT for value in (self.image, self.text, self.score, self.logit_scale))


@dataclass(frozen=True, kw_only=True)
class ModelCheck:
    """The result of `diptych check-model`."""

    name: str
    """The model's name, as the user wrote it."""
    facts: dict[str, str]
    """Architecture, size and license."""
    text: list[str]
    """Text preparation in words, one step per element."""
    image: list[str]
    """Image transform in words, one step per element."""
    parity: Parity | None
    """The comparison with the peer; None if there was none."""
    not_compared: str | None
    """Why there was no comparison; None if there was one."""
    speed: MedianSpeed
    """Speed on the CPU of this machine."""


def check_model(name: str, *, against: str | None = None, progress: bool = True) -> ModelCheck:
    """Return the facts, the speed, and the differences from the peer of a model.

    The peer is the library that wrote the files: `transformers` for a Hugging Face folder, open_clip for its own folders. It
    loads the same files and encodes the same drawn images and fixed texts, including image transform and tokenization. For a
    bundle, the files are those from which it was imported or, if they no longer exist, an export in a temporary folder. An ONNX
    export is compared with its bundle.

    Args:
        name: anything that `diptych.load` accepts.
        against: another model to compare with: a Hugging Face or open_clip folder, a hub id, a short name or a bundle. None for
            the files from which the model was read.
        progress: whether a download shows a progress bar on a terminal.

    Raises:
        BundleError: there is no model, it is damaged, or it has features that Diptych does not support.
    """
    clip = load(name, device="cpu", batch_size=LARGE_BATCH, progress=progress)
    clip.embedder.on_cut = lambda _: None
    parity, reason = None, None
    try:
        with _peer_files(clip, against) as (kind, folder, source):
            parity = _compared(clip, kind, folder, source=source)
    except _NotComparedError as error:
        reason = str(error)
    config = clip.bundle.config
    return ModelCheck(
        name=name,
        facts=_facts(clip),
        text=describe_preparation(config.text),
        image=describe_image_transform(config),
        parity=parity,
        not_compared=reason,
        speed=median_speed(clip.embedder, clip.embedder.pixels(draw_images(1)[0])),
    )


class _NotComparedError(Exception):
    """Raised if there is nothing to compare a model with. The message states the reason and a remedy."""


def _facts(clip: LoadedBundle) -> dict[str, str]:
    config, bundle = clip.bundle.config, clip.bundle
    facts = {
        "image tower": f"{describe_image_tower(config.image)}; {size_name(config.image.image_px)} px",
        "text tower": describe_text_tower(config.text),
        "embedding": f"dimension {config.embed_dim}, logit scale {bundle.logit_scale:.2f}",
    }
    if isinstance(bundle, Bundle):
        facts["parameters"] = f"{sum(parameter.numel() for parameter in bundle.model.parameters()):,}"
    facts["license"] = str(bundle.origin.get(LICENSE, "not known"))
    return facts


@contextmanager
def _peer_files(clip: LoadedBundle, against: str | None) -> Iterator[tuple[ExportFormat | None, Path, str]]:
    """Yield the format, the folder and the name of the files to compare with. The format is None for a bundle."""
    if against is not None:
        folder = _folder_of(against)
        if folder is None:
            load(against, device="cpu")  # Downloads the model, or raises the error to show.
            folder = _folder_of(against)
        if folder is None or (folder_kind(folder) is None and not is_bundle(folder)):
            raise ConfigError(f"--against {against}: is not a Hugging Face folder, an open_clip folder or a bundle")
        yield folder_kind(folder), folder, against
        return
    own = None if clip.path is None else _folder_of(str(clip.path))
    if not isinstance(clip.bundle, Bundle):
        bundle = None if own is None else own / BUNDLE
        if bundle is None or not is_bundle(bundle):
            raise _NotComparedError("to compare an ONNX export, name its bundle with --against")
        yield None, bundle, str(bundle)
        return
    for folder, source in ((own, str(clip.path)), _origin(clip.bundle)):
        if folder is not None and folder_kind(folder) is not None:
            yield folder_kind(folder), folder, source
            return
    with tempfile.TemporaryDirectory(prefix="diptych-check-") as tmp:
        yield _exported(clip.bundle, Path(tmp) / "model"), Path(tmp) / "model", "an export of it"


def _origin(bundle: Bundle) -> tuple[Path | None, str]:
    name = str(bundle.origin.get("imported_from", ""))
    return (_folder_of(name) if name else None), name


def _folder_of(name: str) -> Path | None:
    """Return the local folder of a model; None for a file and for a missing model."""
    address = resolve_name(name)
    if address.startswith(PREFIX):
        snapshot = cached_snapshot(address)
        found = None if snapshot is None else model_path(snapshot, has_torch=True)
    else:
        found = Path(address)
    return found if found is not None and found.is_dir() else None


def _exported(bundle: Bundle, folder: Path) -> ExportFormat:
    """Export a bundle in a format that an installed library reads, and return the format."""
    reasons = library_reasons(bundle.config)
    possible: list[ExportFormat] = [kind for kind in PEERS if not reasons[kind]]
    if not possible:
        raise _NotComparedError(f"neither transformers nor open_clip supports {reasons['hugging-face'][0]}")
    installed = [kind for kind in possible if missing_package(kind) is None]
    if not installed:
        raise _NotComparedError(f"to compare it, install {PEERS[possible[0]][1]}: pip install {PEERS[possible[0]][1]}")
    export_bundle(bundle, installed[0], folder)
    return installed[0]


def _compared(clip: LoadedBundle, kind: ExportFormat | None, folder: Path, *, source: str) -> Parity:
    peer: Peer
    if kind is None:
        peer, name = _DiptychPeer(folder), "Diptych, PyTorch"
    elif is_onnx_folder(folder):
        raise _NotComparedError("an ONNX export is compared with a bundle; name it with --against")
    else:
        package = missing_package(kind)
        if package is not None:
            raise _NotComparedError(f"to compare it with {PEERS[kind][0]}: pip install {package}")
        try:
            peer, name = load_peer(kind, folder, clip.bundle.tokenizer), peer_name(kind)
        except BundleError as error:
            raise _NotComparedError(str(error)) from None
    images = draw_images(_NUM_IMAGES)
    our_images, our_texts = clip.encode_images(images), clip.encode_texts(SENTENCES)
    their_images, their_texts = peer.encode_images(images), peer.encode_texts(SENTENCES)
    if their_images.shape != our_images.shape or their_texts.shape != our_texts.shape:
        raise ConfigError(
            f"{source}: has embeddings of dimension {their_images.shape[1]}, but the model has {our_images.shape[1]}"
        )
    scale = clip.bundle.logit_scale
    return Parity(
        peer=name,
        source=source,
        image=_difference(our_images, their_images),
        text=_difference(our_texts, their_texts),
        score=_difference(our_images @ our_texts.T, their_images @ their_texts.T),
        logit_scale=abs(peer.logit_scale - scale) / scale,
        uses_own_tokenizer=peer.has_own_tokenizer,
    )


def _difference(ours: Float32[ndarray, "N E"], theirs: Float32[ndarray, "N E"]) -> float:
    return float(np.abs(ours - theirs).max())


class _DiptychPeer:
    """A bundle as the peer, for an ONNX export or with `against`."""

    has_own_tokenizer = True

    def __init__(self, folder: Path) -> None:
        self._clip = load(folder, device="cpu")
        self._clip.embedder.on_cut = lambda _: None
        self.logit_scale = self._clip.bundle.logit_scale

    def encode_images(self, images: Any) -> Float32[ndarray, "N E"]:
        return self._clip.encode_images(images)

    def encode_texts(self, texts: Any) -> Float32[ndarray, "X E"]:
        return self._clip.encode_texts(texts)
