"""The one way from pictures and texts to embeddings. Shapes: N inputs, E embedding."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from threading import Semaphore
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray
from PIL import Image
from torch import Tensor

from diptych.bundle.folder import Bundle
from diptych.core.errors import ConfigError, DataError, DiptychError, DiptychWarning, ImageError
from diptych.core.forks import before_computing
from diptych.core.lists import check_list
from diptych.core.remote import is_remote, read_remote
from diptych.core.sample import ImageInput
from diptych.images.decode import decode, describe, file_content
from diptych.images.pool import DecodePool
from diptych.images.tensors import normalize
from diptych.images.transforms import evaluation_pixels
from diptych.models.prefix_tree import plan_sharing, prefix_tree
from diptych.tokenizers.protocol import Encoded, check_texts

T = TypeVar("T")

_MAX_URL_BYTES = 256 * 2**20
_THREADS = 2
"""Threads that decode while a batch is encoded."""
_NODES = 4096
"""New nodes of a tree, about: enough to fill the products, few enough for its activations to stay in the cache."""


class Embedder:
    """Encodes with a bundle's model, tokenizer and image transform. Pictures are decoded while others are encoded."""

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_size: int = 64,
        urls: bool = False,
        decode_pool: DecodePool | None = None,
    ) -> None:
        """Make an embedder of a bundle.

        Args:
            bundle: the model.
            batch_size: images or texts that are encoded at once.
            urls: whether an image may be a URL.
            decode_pool: decodes encoded pictures and files within its limits of time and memory; None decodes them in this
                process, which is meant for pictures that you trust.

        Raises:
            ConfigError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        self.bundle = bundle
        self.batch_size = batch_size
        self.urls = urls
        self.decode_pool = decode_pool
        self.device = next(bundle.model.parameters()).device
        before_computing(self.device)  # Loading has already used torch: threads on a CPU, a context on a GPU.
        self._has_reported_cut = False
        self.on_cut: Callable[[int], object] = self._report_cut
        """Told how many texts were too long and lost their tail; by default a warning says so, once."""

    @property
    def dim(self) -> int:
        """Numbers of an embedding."""
        return self.bundle.config.embed_dim

    @property
    def metrics(self) -> Mapping[str, Any]:
        """What the bundle knows of itself."""
        return self.bundle.metrics

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self.bundle.model.logit_scale.item())

    def encode_images(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[int, ImageError], None] | None = None,
        advance: Callable[[], object] = lambda: None,
    ) -> Float32[ndarray, "N E"]:
        """Unit embeddings of the images, in order; memory is bounded however many there are.

        Args:
            images: paths, bytes, PIL images or uint8 arrays; URLs, if the embedder may read them.
            on_error: called with (position, error) for an image that cannot be read, whose row is then NaN.
            advance: called once for each image.

        Raises:
            ImageError: an image cannot be read and there is no `on_error`.
            DiptychError: `images` is a single image.
        """
        check_list(images, "images")
        rows = []
        for pixels in self._pixel_batches(images, on_error):
            rows.append(self._encode_pixels(pixels))
            for _ in pixels:
                advance()
        return np.concatenate(rows) if rows else self._nothing()

    def pixels(self, image: ImageInput) -> UInt8[ndarray, "3 H W"]:
        """The model's input for one image, not yet normalized.

        Raises:
            ImageError: the image cannot be read.
        """
        fetched = self._fetched(image)
        if self.decode_pool is None or not isinstance(fetched, str | Path | bytes):
            return self._evaluation_pixels(decode(fetched))
        image_px, config = self.bundle.config.image.image_px, self.bundle.config.pixels
        try:
            return self.decode_pool.pixels(file_content(fetched), image_px=image_px, config=config)
        except ImageError as error:
            raise ImageError(f"{describe(fetched)}: {str(error).partition(': ')[2] or error}") from None

    def _evaluation_pixels(self, decoded: Image.Image) -> UInt8[ndarray, "3 H W"]:
        config = self.bundle.config
        return evaluation_pixels(decoded, image_px=config.image.image_px, config=config.pixels)

    def encode_texts(
        self, texts: Sequence[str], *, advance: Callable[[], object] = lambda: None
    ) -> Float32[ndarray, "N E"]:
        """Unit embeddings of the texts, in order; `advance` is called once for each.

        Of equal texts one is computed. Texts of like length share a batch, which then has few runs (`models/packing.py`). Where
        many begin alike, as prompts do, each beginning is computed once (`models/prefix_tree.py`).

        Raises:
            DiptychError: `texts` is a single string, or one of its items is not a string.
        """
        check_list(texts, "texts")
        check_texts(texts)
        before_computing(self.device)
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        if len(row_of) < len(texts):
            distinct = self.encode_texts(tuple(row_of))
            for _ in texts:
                advance()
            return distinct[[row_of[text] for text in texts]]
        encoded = self.bundle.tokenizer.encode(texts)
        if encoded.num_cut:
            self.on_cut(encoded.num_cut)
        out = np.empty((len(texts), self.dim), dtype=np.float32)
        with torch.inference_mode():
            for rows, emb in self._encode_encoded(encoded):
                out[rows] = emb.float().cpu().numpy()
                for _ in rows:
                    advance()
        return out

    def _encode_encoded(self, encoded: Encoded) -> Iterator[tuple[Int64[ndarray, " B"], Tensor]]:
        """Batch by batch: which texts, and their embeddings."""
        model, ids, lengths = self.bundle.model, encoded.ids, encoded.lengths
        sharing = plan_sharing(ids, lengths) if model.text_tower.supports_prefix_sharing else None
        if sharing is not None:
            order, new = sharing
            for rows in np.split(order, np.flatnonzero(np.diff(new.cumsum() // _NODES)) + 1):
                yield rows, model.encode_text_tree(prefix_tree(ids[rows], lengths[rows], self.device))
            return
        by_length = np.argsort(lengths, kind="stable")
        for start in range(0, len(ids), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            kept = torch.from_numpy(ids[rows])[:, : int(lengths[rows].max())]
            yield rows, model.encode_text(kept.to(self.device), torch.from_numpy(lengths[rows]))

    def _report_cut(self, num_cut: int) -> None:
        """Once for each embedder: which of them it is changes nothing in what to do."""
        if not self._has_reported_cut:
            self._has_reported_cut = True
            length = self.bundle.tokenizer.context_length
            text = f"texts longer than {length} tokens, which lost their tail: {num_cut}"
            warnings.warn(text, DiptychWarning, stacklevel=3)

    def _pixel_batches(
        self, images: Iterable[ImageInput], on_error: Callable[[int, ImageError], None] | None
    ) -> Iterator[list[UInt8[ndarray, "3 H W"] | None]]:
        position = 0
        for chunk in self._read(images):
            batch: list[UInt8[ndarray, "3 H W"] | None] = []
            for result in chunk:
                if isinstance(result, ImageError):
                    if on_error is None:
                        raise result
                    on_error(position, result)
                batch.append(None if isinstance(result, ImageError) else result)
                position += 1
            yield batch

    def _read(self, images: Iterable[ImageInput]) -> Iterator[list[UInt8[ndarray, "3 H W"] | ImageError]]:
        """Batches of pixels, with an error in place of an image that cannot be read."""
        # The caller may reuse, change or close a PIL image or an array afterwards. It is therefore copied in this thread,
        # before the next item is requested. The number of copies that wait for a thread is bounded.
        slots = Semaphore(2 * _THREADS)

        def owned() -> Iterator[ImageInput | ImageError]:
            for image in images:
                if isinstance(image, Image.Image | np.ndarray):
                    slots.acquire()
                    yield _copied(image)
                else:
                    yield image

        def read(item: ImageInput | ImageError) -> UInt8[ndarray, "3 H W"] | ImageError:
            if not isinstance(item, Image.Image | ImageError):
                return self._pixels_or_error(item)
            slots.release()
            return item if isinstance(item, ImageError) else self._evaluation_pixels(item)

        with ThreadPoolExecutor(_THREADS) as pool:
            yield from _read_ahead(pool, read, owned(), self.batch_size)

    def _pixels_or_error(self, image: ImageInput) -> UInt8[ndarray, "3 H W"] | ImageError:
        try:
            return self.pixels(image)
        except ImageError as error:
            return error

    def _fetched(self, image: ImageInput) -> ImageInput:
        """What a URL leads to, where URLs are read."""
        if not (self.urls and isinstance(image, str) and is_remote(image)):
            return image
        try:
            return read_remote(image, max_bytes=_MAX_URL_BYTES)
        except DataError as error:
            raise ImageError(str(error)) from None

    def encode_pixels(self, pixels: Sequence[UInt8[ndarray, "3 H W"]]) -> Float32[ndarray, "N E"]:
        """Unit embeddings of a batch that `pixels` has prepared, in order."""
        return self._encode_pixels(list(pixels)) if pixels else self._nothing()

    def _encode_pixels(self, batch: list[UInt8[ndarray, "3 H W"] | None]) -> Float32[ndarray, "N E"]:
        before_computing(self.device)
        out = np.full((len(batch), self.bundle.config.embed_dim), np.nan, dtype=np.float32)
        good = [row for row, pixels in enumerate(batch) if pixels is not None]
        if good:
            stacked = torch.from_numpy(np.stack([pixels for pixels in batch if pixels is not None])).to(self.device)
            with torch.inference_mode():
                emb = self.bundle.model.encode_image(normalize(stacked, self.bundle.config.pixels))
            out[good] = emb.float().cpu().numpy()
        return out

    def _nothing(self) -> Float32[ndarray, "N E"]:
        return np.empty((0, self.dim), dtype=np.float32)


def check_not_empty(items: Sequence[object], what: str) -> None:
    """Refuse an empty list, and a single value in place of a list.

    Raises:
        DiptychError: the list is empty, or the value is not a list.
    """
    check_list(items, f"{what}s")
    if len(items) == 0:
        raise DiptychError(f"no {what} given; at least one is needed")


def _copied(image: Image.Image | ndarray) -> Image.Image | ImageError:
    """The upright picture in RGB, or the error if it cannot be decoded."""
    try:
        return decode(image)
    except ImageError as error:
        return error


def _read_ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[ImageInput | ImageError], T],
    items: Iterable[ImageInput | ImageError],
    size: int,
) -> Iterator[list[T]]:
    """Chunks of results, the next one always under way while the last one is used."""
    source = iter(items)
    ahead = [pool.submit(read, item) for item in islice(source, size)]
    while ahead:
        following = [pool.submit(read, item) for item in islice(source, size)]
        yield [future.result() for future in ahead]
        ahead = following
