"""Encoding of images and texts with a bundle. Shapes: N inputs, B texts of a batch, H W pixels, E embedding."""

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
from diptych.core.errors import ConfigError, DataError, DiptychWarning, ImageError
from diptych.core.lists import check_list
from diptych.core.remote import is_remote, read_remote
from diptych.core.sample import ImageInput
from diptych.device.forks import before_computing
from diptych.images.decode import decode, describe, file_content
from diptych.images.pool import DecodePool
from diptych.images.tensors import normalize
from diptych.images.transforms import evaluation_pixels
from diptych.models.prefix_tree import plan_sharing, prefix_tree
from diptych.tokenizers.protocol import Encoded, check_texts

T = TypeVar("T")

_MAX_URL_BYTES = 256 * 2**20
"""Maximum size of an image that is read from a URL."""
_THREADS = 2
"""Number of threads that decode images while a batch is encoded."""
_NODES_PER_BATCH = 4096
"""Approximate number of nodes of a prefix tree: large enough for efficient matmuls, small enough to fit in the cache."""


class Embedder:
    """Encodes images and texts with the model, tokenizer and image transform of a bundle.

    Images are decoded in threads while others are encoded.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_size: int = 64,
        urls: bool = False,
        decode_pool: DecodePool | None = None,
    ) -> None:
        """Create an embedder for a bundle.

        Args:
            bundle: the model with its tokenizer and image transform.
            batch_size: number of images or texts per batch.
            urls: whether an image may be a URL.
            decode_pool: decodes image files in separate processes with limits of time and memory. If None, images are decoded
                in this process, which is only safe for images that you trust.

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
        before_computing(self.device)  # Loading has already started PyTorch's CPU threads or a CUDA context.
        self._has_warned = False
        self.on_cut: Callable[[int], object] = self._warn_once
        """Called with the number of texts that were truncated to the context length. The default emits a warning once."""

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""
        return self.bundle.config.embed_dim

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics that are stored in the bundle."""
        return self.bundle.metrics

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities before a softmax."""
        return float(self.bundle.model.logit_scale.item())

    def encode_images(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[int, ImageError], None] | None = None,
        advance: Callable[[], object] = lambda: None,
    ) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length, one row per image.

        Images are read in batches, so that an iterator of any length needs little memory.

        Args:
            images: paths, bytes, PIL images or uint8 arrays; also URLs if the embedder was created with `urls`.
            on_error: called with (index, error) for each image that cannot be read; its row is then NaN.
            advance: called once per image.

        Raises:
            ImageError: an image cannot be read and `on_error` is None.
            DiptychError: `images` is a single image.
        """
        check_list(images, "images")
        rows = []
        for pixels in self._pixel_batches(images, on_error):
            rows.append(self._encode_pixels(pixels))
            for _ in pixels:
                advance()
        return np.concatenate(rows) if rows else self._empty()

    def pixels(self, image: ImageInput) -> UInt8[ndarray, "3 H W"]:
        """The transformed image as uint8 pixels, the input of `encode_pixels`.

        Raises:
            ImageError: the image cannot be read.
        """
        fetched = self._fetch(image)
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
        """Embeddings of unit length, one row per text.

        Repeated texts are encoded once. Texts are sorted by length, so that a batch has few different lengths
        (`models/packing.py`). If common prefixes make up enough of the tokens, as in prompts for many classes, each prefix is
        encoded once (`models/prefix_tree.py`).

        Args:
            texts: the texts. Longer texts than the context length are truncated (see `on_cut`).
            advance: called once per text.

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
        """Yield the row indices and the embeddings of each batch."""
        model, ids, lengths = self.bundle.model, encoded.ids, encoded.lengths
        sharing = plan_sharing(ids, lengths) if model.text_tower.supports_prefix_sharing else None
        if sharing is not None:
            order, new = sharing
            for rows in np.split(order, np.flatnonzero(np.diff(new.cumsum() // _NODES_PER_BATCH)) + 1):
                yield rows, model.encode_text_tree(prefix_tree(ids[rows], lengths[rows], self.device))
            return
        by_length = np.argsort(lengths, kind="stable")
        for start in range(0, len(ids), self.batch_size):
            rows = by_length[start : start + self.batch_size]
            trimmed = torch.from_numpy(ids[rows])[:, : int(lengths[rows].max())]
            yield rows, model.encode_text(trimmed.to(self.device), torch.from_numpy(lengths[rows]))

    def _warn_once(self, num_cut: int) -> None:
        if not self._has_warned:
            self._has_warned = True
            length = self.bundle.tokenizer.context_length
            text = f"texts longer than {length} tokens were truncated: {num_cut}"
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
        """Yield batches of pixels, with an error in place of each image that cannot be read."""
        # The caller may reuse, change or close a PIL image or an array afterwards. It is therefore copied in this thread,
        # before the next item is requested. The number of copies that wait for a thread is bounded.
        slots = Semaphore(2 * _THREADS)

        def copied() -> Iterator[ImageInput | ImageError]:
            for image in images:
                if isinstance(image, Image.Image | np.ndarray):
                    slots.acquire()
                    yield _copy_image(image)
                else:
                    yield image

        def read(item: ImageInput | ImageError) -> UInt8[ndarray, "3 H W"] | ImageError:
            if not isinstance(item, Image.Image | ImageError):
                return self._pixels_or_error(item)
            slots.release()
            return item if isinstance(item, ImageError) else self._evaluation_pixels(item)

        with ThreadPoolExecutor(_THREADS) as pool:
            yield from _read_ahead(pool, read, copied(), self.batch_size)

    def _pixels_or_error(self, image: ImageInput) -> UInt8[ndarray, "3 H W"] | ImageError:
        try:
            return self.pixels(image)
        except ImageError as error:
            return error

    def _fetch(self, image: ImageInput) -> ImageInput:
        """Download the image if it is a URL and URLs are enabled; otherwise return it unchanged."""
        if not (self.urls and isinstance(image, str) and is_remote(image)):
            return image
        try:
            return read_remote(image, max_bytes=_MAX_URL_BYTES)
        except DataError as error:
            raise ImageError(str(error)) from None

    def encode_pixels(self, pixels: Sequence[UInt8[ndarray, "3 H W"]]) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length of a batch of images that were transformed by `pixels`, one row per image."""
        return self._encode_pixels(list(pixels)) if pixels else self._empty()

    def _encode_pixels(self, batch: list[UInt8[ndarray, "3 H W"] | None]) -> Float32[ndarray, "N E"]:
        before_computing(self.device)
        out = np.full((len(batch), self.bundle.config.embed_dim), np.nan, dtype=np.float32)
        readable = [row for row, pixels in enumerate(batch) if pixels is not None]
        if readable:
            stacked = torch.from_numpy(np.stack([pixels for pixels in batch if pixels is not None])).to(self.device)
            with torch.inference_mode():
                emb = self.bundle.model.encode_image(normalize(stacked, self.bundle.config.pixels))
            out[readable] = emb.float().cpu().numpy()
        return out

    def _empty(self) -> Float32[ndarray, "N E"]:
        return np.empty((0, self.dim), dtype=np.float32)


def _copy_image(image: Image.Image | ndarray) -> Image.Image | ImageError:
    """A copy of the image in RGB and upright, or the error if it cannot be decoded."""
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
    """Yield lists of `size` results of `read`. The next list is computed in `pool` while the caller uses the current one."""
    source = iter(items)
    ahead = [pool.submit(read, item) for item in islice(source, size)]
    while ahead:
        following = [pool.submit(read, item) for item in islice(source, size)]
        yield [future.result() for future in ahead]
        ahead = following
