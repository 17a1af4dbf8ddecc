"""Encode the images and captions of a source; all evaluations start from these embeddings.

Shapes: I images, X texts, E embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
from jaxtyping import Float32, Int64
from numpy import ndarray
from PIL import Image

from diptych.bundle.folder import Bundle
from diptych.core.deprecation import RenamedAttribute
from diptych.core.digests import FileDigests
from diptych.core.errors import DataError, ImageError, NotFiniteError
from diptych.core.progress import Track, silently
from diptych.core.sample import ImageInput
from diptych.data.sources.copies import merge_copies
from diptych.data.sources.identity import image_digest, split_hash
from diptych.data.sources.protocol import Source
from diptych.device.distributed import ALONE, Ranks
from diptych.evaluation.cache import EmbeddingCache, combined_hash, ids_hash, tower_hash
from diptych.images.decode import decode
from diptych.images.transforms import size_name, transform_name
from diptych.inference.embedder import Embedder

Captions: TypeAlias = Literal["all", "first"]
"""The captions of an image that are used: all of them, or only the first (the one-caption protocol)."""

_NOT_FINITE = (
    "{num} of {total} {what} embeddings are not finite numbers: the training of this model has diverged, or its weights are "
    "damaged"
)


@dataclass(frozen=True, kw_only=True)
class EncodedImages:
    """The embeddings of the readable images of a source."""

    source: Source
    rows: tuple[int, ...]
    """For each image, the index of its sample in the source."""
    emb: Float32[ndarray, "I E"]
    """Unit embeddings."""
    skipped: tuple[tuple[str, str], ...]
    """(key, reason) of each sample whose image could not be read."""

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """The key of each image's sample."""
        return tuple(self.source.key(row) for row in self.rows)

    @cached_property
    def labels(self) -> tuple[int | None, ...]:
        """The label of each image's sample; None if it has none."""
        return tuple(self.source.label(row) for row in self.rows)

    def picture(self, number: int) -> Image.Image:
        """Return the decoded image at a position in `rows`."""
        return decode(self.source[self.rows[number]].image)


@dataclass(frozen=True, kw_only=True)
class EncodedPairs:
    """The embeddings of the readable images of a source and of their captions."""

    images: EncodedImages
    captions: tuple[str, ...]
    text_emb: Float32[ndarray, "X E"]
    """Unit embeddings of the captions."""
    image_of_text: Int64[ndarray, " X"]
    """For each caption, the row of its image in `image_emb`."""
    selected: Captions
    """Whether `captions` are all captions of each image or only the first."""

    chosen = RenamedAttribute("selected")

    @property
    def image_emb(self) -> Float32[ndarray, "I E"]:
        """Unit embeddings of the images."""
        return self.images.emb


class SourceEncoder:
    """Encodes whole sources with a model.

    Args:
        embedder: the model.
        cache: stores embeddings, so that the same data is not encoded again.
        track: reports progress.
        ranks: the ranks that share the encoding. All of them must call the same methods with the same arguments, and all get
            the same results. With several ranks, `cache` must be None.
    """

    def __init__(
        self,
        embedder: Embedder,
        *,
        cache: EmbeddingCache | None = None,
        track: Track = silently,
        ranks: Ranks = ALONE,
    ) -> None:
        assert cache is None or ranks.size == 1
        self.embedder = embedder
        self.ranks = ranks
        self.track = track
        self._cache = cache
        self._tower_hashes: dict[str, str] = {}

    def encode_images(
        self, source: Source, *, change: Callable[[ImageInput], ImageInput] | None = None, change_name: str = ""
    ) -> EncodedImages:
        """Encode the images of a source. Images that cannot be read are skipped.

        Args:
            source: the samples.
            change: a function that is applied to each image first.
            change_name: unique name of this function, for the key of the cache.

        Raises:
            DataError: no image can be read.
            NotFiniteError: an embedding is NaN or infinite.
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
        """Return the unit embeddings of texts."""

        def compute() -> Float32[ndarray, "N E"]:
            with self.track("texts", len(texts)) as advance:
                return self.embedder.encode_texts(texts, advance=advance, ranks=self.ranks)

        if self._cache is None:
            return compute()
        encoded = self.embedder.bundle.tokenizer.encode(texts)
        tower = self._tower_hash("text")
        return self._cached(f"text-{tower}-{ids_hash(encoded.ids, encoded.lengths)}", compute)

    def encode_pairs(self, source: Source, *, captions: Captions = "all") -> EncodedPairs:
        """Encode the images of a source and their captions.

        Samples with byte-identical images count as one image that has all their captions.

        Args:
            source: the samples.
            captions: use all captions of each image, or only the first.

        Raises:
            DataError: no image can be read, or one has no caption.
            NotFiniteError: an embedding is NaN or infinite.
        """
        source = merge_copies(source)
        images = self.encode_images(source)
        texts, owners = list[str](), list[int]()
        for number, row in enumerate(images.rows):
            own = source.captions(row)
            if not own:
                raise DataError(f"{source.key(row)} has no caption; retrieval needs at least one for each image")
            used = own if captions == "all" else own[:1]
            texts += used
            owners += [number] * len(used)
        text_emb = self.encode_texts(texts)
        broken = np.flatnonzero(~np.isfinite(text_emb).all(axis=1))
        if len(broken):
            raise NotFiniteError(_NOT_FINITE.format(num=len(broken), total=len(texts), what="text"))
        return EncodedPairs(
            images=images,
            captions=tuple(texts),
            text_emb=text_emb,
            image_of_text=np.array(owners, dtype=np.int64),
            selected=captions,
        )

    def protocol(self, images: EncodedImages, *, split: str) -> dict[str, str | int]:
        """Return the part of an evaluation's protocol that describes the data and the model's input.

        Args:
            images: the encoded images.
            split: name of the split.
        """
        config = self.embedder.bundle.config
        return {
            "split": split,
            "split_hash": split_hash(images.source),
            "images": len(images.rows),
            "skipped_images": len(images.skipped),
            "transform": transform_name(config.pixels),
            "image_px": size_name(config.image.image_px),
            "precision": self.embedder.towers.dtype_name,
            "device": self.embedder.device.type,
            **({} if self.embedder.towers.engine == "PyTorch" else {"engine": self.embedder.towers.engine}),
        }

    def _encode_all(
        self,
        source: Source,
        reasons: dict[int, str],
        change: Callable[[ImageInput], ImageInput] | None,
        advance: Callable[[], object],
    ) -> Float32[ndarray, "N E"]:
        """Return one embedding per sample; a row of zeros if its image cannot be read."""
        parts = self.ranks.run_on_all(lambda: self._encode_rows(source, self._rows(len(source)), change, advance))
        for _, part_reasons in parts:
            reasons.update(part_reasons)
        emb = np.concatenate([part_emb for part_emb, _ in parts])
        emb[list(reasons)] = 0  # Marks unreadable images: a unit embedding is never all zeros.
        return emb

    def _rows(self, num: int) -> range:
        """The samples that this rank encodes: whole batches, so that the embeddings do not depend on the number of ranks."""
        size = self.embedder.batch_size
        share = -(-num // (size * self.ranks.size)) * size
        return range(num)[self.ranks.rows(share)]

    def _encode_rows(
        self,
        source: Source,
        rows: range,
        change: Callable[[ImageInput], ImageInput] | None,
        advance: Callable[[], object],
    ) -> tuple[Float32[ndarray, "N E"], dict[int, str]]:
        """Return the embeddings of some samples, and why images cannot be read. Images are loaded lazily."""
        reasons = dict[int, str]()

        def pictures() -> Iterator[ImageInput]:
            for i in rows:
                try:
                    image = source[i].image
                    yield image if change is None else change(image)
                except ImageError as error:  # For example a missing tar file, or an image that `change` cannot decode.
                    reasons[i] = str(error)
                    yield b""
                advance()

        def record_error(position: int, error: ImageError) -> None:
            reasons.setdefault(rows[position], str(error))

        return self.embedder.encode_images(pictures(), on_error=record_error), reasons

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
            self._tower_hashes[kind] = _tower_hash(self.embedder, kind)
        return self._tower_hashes[kind]

    def _cached(self, key: str, compute: Callable[[], Float32[ndarray, "N E"]]) -> Float32[ndarray, "N E"]:
        return compute() if self._cache is None else self._cache.get(key, compute)


def _tower_hash(embedder: Embedder, kind: Literal["image", "text"]) -> str:
    """A hash of everything in the model that determines the embeddings of images or of texts."""
    bundle, towers = embedder.bundle, embedder.towers
    if not isinstance(bundle, Bundle):
        return f"{towers.engine}-{bundle.identities()[0]}-{bundle.variant}".replace(" ", "-")
    model, config = bundle.model, bundle.config
    if kind == "image":
        hidden = *_hidden(config.image), *_hidden(config.pixels)
        found = tower_hash(model.image_tower, config.image, config.pixels, *hidden)
    else:
        found = tower_hash(model.text_tower, config.text, *_hidden(config.text))
    weights = str(next(model.parameters()).dtype).removeprefix("torch.")
    return found if towers.dtype_name == weights else f"{found}-{towers.dtype_name}"


def _hidden(config: object) -> list[tuple[str, object]]:
    """Return changed settings that `repr` omits, because they were added after the first release."""
    assert is_dataclass(config)
    left_out = [(field, getattr(config, field.name)) for field in fields(config) if not field.repr]
    return [(field.name, value) for field, value in left_out if value != field.default]
