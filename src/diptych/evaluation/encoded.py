"""A source's images and captions as embeddings: what every evaluation is measured on.

Shapes: I images, X texts, E embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image

from diptych.core.digests import FileDigests
from diptych.core.errors import DataError, ImageError, NotFiniteError
from diptych.core.progress import Track, silently
from diptych.core.sample import ImageInput
from diptych.data.sources.copies import merge_copies
from diptych.data.sources.identity import image_digest, split_hash
from diptych.data.sources.protocol import Source
from diptych.evaluation.cache import EmbeddingCache, combined_hash, ids_hash, tower_hash
from diptych.images.decode import decode
from diptych.images.transforms import size_name
from diptych.inference.embedder import Embedder

Captions: TypeAlias = Literal["all", "first"]
"""Which captions of an image are measured: all of them, or the first alone (the one-caption protocol)."""

_NOT_FINITE = (
    "the weights give {num} of {total} {what} embeddings that are not numbers: they have diverged or are damaged"
)


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """The readable images of a source."""

    source: Source
    rows: tuple[int, ...]
    """Of each image, which sample of the source it is."""
    emb: Float32[ndarray, "I E"]
    skipped: tuple[tuple[str, str], ...]
    """(key, reason) of the samples whose image could not be read."""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Of each image, its sample's key."""
        return tuple(self.source.key(row) for row in self.rows)

    @cached_property
    def labels(self) -> tuple[int | None, ...]:
        """Of each image, its sample's label."""
        return tuple(self.source.label(row) for row in self.rows)

    def picture(self, number: int) -> Image.Image:
        """One of them, for people."""
        return decode(self.source[self.rows[number]].image)


@dataclass(frozen=True, kw_only=True)
class EncodedPairs:
    """The readable images of a source with their captions."""

    images: EncodedImages
    captions: tuple[str, ...]
    text_emb: Float32[ndarray, "X E"]
    image_of_text: Int64[ndarray, " X"]
    """For each caption the row of its image."""
    chosen: Captions
    """Which captions of each image these are."""

    @property
    def image_emb(self) -> Float32[ndarray, "I E"]:
        """Of the images, by row."""
        return self.images.emb


class SourceEncoder:
    """Encodes whole sources, telling how far it is, and no source twice where there is a cache."""

    def __init__(self, embedder: Embedder, *, cache: EmbeddingCache | None = None, track: Track = silently) -> None:
        self.embedder = embedder
        self.track = track
        self._cache = cache
        self._tower_hashes: dict[str, str] = {}

    def encode_images(
        self, source: Source, *, change: Callable[[ImageInput], ImageInput] | None = None, change_name: str = ""
    ) -> EncodedImages:
        """The images of a source.

        Args:
            source: whose images.
            change: what is done to each picture before.
            change_name: tells this change from any other, for the cache.

        Raises:
            DataError: no image can be read.
            NotFiniteError: an embedding is not a number.
        """
        reasons: dict[int, str] = {}

        def compute() -> Float32[ndarray, "N E"]:
            with self.track("images", len(source)) as advance:
                return self._encode_all(source, reasons, change, advance)

        emb = self._cached(self._image_key(source, change_name), compute)
        readable = (emb != 0).any(axis=1)
        if not readable.any():
            first = reasons.get(0) or "unreadable"
            raise DataError(f"none of {len(source)} images can be read; the first: {first}")
        rows = tuple(np.flatnonzero(readable).tolist())
        broken = np.flatnonzero(~np.isfinite(emb[readable]).all(axis=1))
        if len(broken):
            raise NotFiniteError(_NOT_FINITE.format(num=len(broken), total=len(rows), what="image"))
        skipped = tuple(
            (source.key(i), reasons.get(i, "could not be read")) for i in np.flatnonzero(~readable).tolist()
        )
        return EncodedImages(source=source, rows=rows, emb=emb[readable], skipped=skipped)

    def encode_texts(self, texts: Sequence[str]) -> Float32[ndarray, "X E"]:
        """Unit embeddings of texts."""

        def compute() -> Float32[ndarray, "N E"]:
            with self.track("texts", len(texts)) as advance:
                return self.embedder.encode_texts(texts, advance=advance)

        if self._cache is None:
            return compute()
        encoded = self.embedder.bundle.tokenizer.encode(texts)
        tower = self._tower_hash("text")
        return self._cached(f"text-{tower}-{ids_hash(encoded.ids, encoded.lengths)}", compute)

    def encode_pairs(self, source: Source, *, captions: Captions = "all") -> EncodedPairs:
        """The images of a source and their captions.

        Samples whose pictures are equal to the byte count as one image with all their captions.

        Raises:
            DataError: no image can be read, or one has no caption.
            NotFiniteError: an embedding is not a number.
        """
        source = merge_copies(source)
        images = self.encode_images(source)
        texts, owners = list[str](), list[int]()
        for number, row in enumerate(images.rows):
            own = source.captions(row)
            if not own:
                raise DataError(f"{source.key(row)} has no caption; retrieval needs one of each image")
            kept = own if captions == "all" else own[:1]
            texts += kept
            owners += [number] * len(kept)
        text_emb = self.encode_texts(texts)
        broken = np.flatnonzero(~np.isfinite(text_emb).all(axis=1))
        if len(broken):
            raise NotFiniteError(_NOT_FINITE.format(num=len(broken), total=len(texts), what="text"))
        return EncodedPairs(
            images=images,
            captions=tuple(texts),
            text_emb=text_emb,
            image_of_text=np.array(owners, dtype=np.int64),
            chosen=captions,
        )

    def protocol(self, images: EncodedImages, *, split: str) -> dict[str, str | int]:
        """What every figure on these images depends on, beside its own settings."""
        config = self.embedder.bundle.config
        return {
            "split": split,
            "split_hash": split_hash(images.source),
            "images": len(images.rows),
            "skipped_images": len(images.skipped),
            "transform": f"{config.pixels.interpolation} short side, centre crop",
            "image_px": size_name(config.image.image_px),
            "precision": str(next(self.embedder.bundle.model.parameters()).dtype).removeprefix("torch."),
            "device": self.embedder.device.type,
        }

    def _encode_all(
        self,
        source: Source,
        reasons: dict[int, str],
        change: Callable[[ImageInput], ImageInput] | None,
        advance: Callable[[], object],
    ) -> Float32[ndarray, "N E"]:
        """A row for each sample; of what cannot be read, one of zeros. Pictures are asked for as they are encoded."""

        def pictures() -> Iterator[ImageInput]:
            for i in range(len(source)):
                try:
                    image = source[i].image
                    yield image if change is None else change(image)
                except ImageError as error:  # A tar that has gone, say, or a picture that a change wants decoded.
                    reasons[i] = str(error)
                    yield b""
                advance()

        def note(position: int, error: ImageError) -> None:
            reasons.setdefault(position, str(error))

        emb = self.embedder.encode_images(pictures(), on_error=note)
        emb[list(reasons)] = 0  # No embedding of unit length is.
        return emb

    def _image_key(self, source: Source, change_name: str) -> str:
        if self._cache is None:
            return ""
        hashes: list[bytes | str] = []
        with closing(FileDigests()) as digests:
            for i in range(len(source)):
                try:
                    hashes.append(image_digest(source[i].image, digests))
                except (ImageError, OSError, ValueError):
                    hashes.append(f"unreadable {source.key(i)}")
        return f"image-{self._tower_hash('image')}-{combined_hash([change_name, *hashes])}"

    def _tower_hash(self, kind: Literal["image", "text"]) -> str:
        if kind not in self._tower_hashes:
            model = self.embedder.bundle.model
            config = model.config
            if kind == "image":
                self._tower_hashes[kind] = tower_hash(model.image_tower, config.image, config.pixels)
            else:
                self._tower_hashes[kind] = tower_hash(model.text_tower, config.text)
        return self._tower_hashes[kind]

    def _cached(self, key: str, compute: Callable[[], Float32[ndarray, "N E"]]) -> Float32[ndarray, "N E"]:
        return compute() if self._cache is None else self._cache.get(key, compute)
