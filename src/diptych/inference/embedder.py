"""Encoding of images and texts with a model. Shapes: N inputs, B texts of a batch, H W pixels, E embedding."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from threading import Semaphore
from typing import Any, NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float32, Int64, UInt8
from numpy import ndarray
from PIL import Image

from diptych.core.errors import ConfigError, DataError, DiptychWarning, ImageError
from diptych.core.lists import check_list, one_behind
from diptych.core.precision import Precision
from diptych.core.remote import is_remote, read_remote
from diptych.core.sample import ImageInput
from diptych.images.decode import decode, describe, file_content
from diptych.images.pool import DecodePool
from diptych.images.transforms import evaluation_pixels
from diptych.inference.towers import THIS_PROCESS, Device, Model, RankGroup
from diptych.tokenizers.protocol import check_texts

T = TypeVar("T")

_MAX_URL_BYTES = 256 * 2**20
"""Maximum size of an image that is read from a URL."""


class Embedder:
    """Encodes images and texts with the towers, tokenizer and image transform of a bundle or an ONNX folder.

    Images are decoded while others are encoded: on a CPU in two threads; on a CUDA GPU, from the second batch on, in one
    process per core, because the GPU encodes images faster than Python threads decode them.
    """

    def __init__(
        self,
        bundle: Model,
        *,
        batch_size: int = 64,
        urls: bool = False,
        decode_pool: DecodePool | None = None,
        precision: Precision | None = None,
    ) -> None:
        """Create an embedder for a model.

        Args:
            bundle: the model with its tokenizer and image transform: a bundle or an ONNX folder.
            batch_size: number of images or texts per batch.
            urls: whether an image may be a URL.
            decode_pool: decodes image files in separate processes with limits of time and memory. If None, some or all images
                are decoded in this process, which is only safe for images that you trust.
            precision: data type of the computation. The default is bf16 on a CUDA GPU, or fp16 if it does not support bf16,
                and fp32 on other devices. It has no effect on a model whose weights are not float32, which uses their dtype,
                or on an ONNX folder.

        Raises:
            ConfigError: `batch_size` is below 1.
        """
        if batch_size < 1:
            raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
        self.bundle = bundle
        self.batch_size = batch_size
        self.urls = urls
        self.decode_pool = decode_pool
        self.towers = bundle.towers(precision)
        self._has_warned = False
        self.on_cut: Callable[[int], object] = self._warn_once
        """Called with the number of texts that were truncated to the context length. The default emits a warning once."""

    @property
    def device(self) -> Device:
        """The device that computes the embeddings."""
        return self.towers.device

    @property
    def dtype(self) -> Any:
        """The `torch.dtype` of the computation of a bundle; for an ONNX folder the name of its data type."""
        return getattr(self.towers, "dtype", self.towers.dtype_name)

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""
        return self.bundle.config.embed_dim

    @property
    def num_decoders(self) -> int:
        """Number of images that are decoded at the same time."""
        return self.towers.num_decoders

    @property
    def metrics(self) -> Mapping[str, Any]:
        """Metrics that are stored in the bundle."""
        return self.bundle.metrics

    @property
    def logit_scale(self) -> float:
        """Factor of the cosine similarities before a softmax."""
        return self.bundle.logit_scale

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
        for running in one_behind(map(self._start, self._pixel_batches(images, on_error))):
            rows.append(self._result(running))
            for _ in range(running.num):
                advance()
        return np.concatenate(rows) if rows else self._empty()

    def pixels(self, image: ImageInput) -> UInt8[ndarray, "3 H W"]:
        """The transformed image as uint8 pixels, the input of `encode_pixels`.

        Raises:
            ImageError: the image cannot be read.
        """
        return self._pixels(image, self.decode_pool)

    def _pixels(self, image: ImageInput, pool: DecodePool | None) -> UInt8[ndarray, "3 H W"]:
        fetched = self._fetch(image)
        if pool is None or not isinstance(fetched, str | Path | bytes):
            return self._evaluation_pixels(decode(fetched))
        image_px, config = self.bundle.config.image.image_px, self.bundle.config.pixels
        try:
            return pool.pixels(file_content(fetched), image_px=image_px, config=config)
        except ImageError as error:
            raise ImageError(f"{describe(fetched)}: {str(error).partition(': ')[2] or error}") from None

    def _evaluation_pixels(self, decoded: Image.Image) -> UInt8[ndarray, "3 H W"]:
        config = self.bundle.config
        return evaluation_pixels(decoded, image_px=config.image.image_px, config=config.pixels)

    def encode_texts(
        self, texts: Sequence[str], *, advance: Callable[[], object] = lambda: None, ranks: RankGroup = THIS_PROCESS
    ) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length, one row per text.

        Repeated texts are encoded once. Texts are sorted by length, so that a batch has few different lengths. See also
        `diptych.models.towers.ModelTowers.encode_texts`.

        Args:
            texts: the texts. Longer texts than the context length are truncated (see `on_cut`).
            advance: called once per text that this rank encodes.
            ranks: the ranks that share the batches. All of them must call this method with the same texts.

        Raises:
            DiptychError: `texts` is a single string, or one of its items is not a string.
        """
        check_list(texts, "texts")
        check_texts(texts)
        row_of = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        if len(row_of) < len(texts):
            distinct = self.encode_texts(tuple(row_of), ranks=ranks)
            for _ in texts:
                advance()
            return distinct[[row_of[text] for text in texts]]
        encoded = self.bundle.tokenizer.encode(texts)
        if encoded.num_cut and ranks.rank == 0:
            self.on_cut(encoded.num_cut)

        def encode_share() -> list[tuple[Int64[ndarray, " B"], Float32[ndarray, "B E"]]]:
            share = list[tuple[Int64[ndarray, " B"], Float32[ndarray, "B E"]]]()
            batches = self.towers.encode_texts(
                encoded, batch_size=self.batch_size, rank=ranks.rank, num_ranks=ranks.size
            )
            for rows, emb in batches:
                share.append((rows, emb))
                for _ in rows:
                    advance()
            return share

        out = np.empty((len(texts), self.dim), dtype=np.float32)
        for share in ranks.run_on_all(encode_share):
            for rows, emb in share:
                out[rows] = emb
        return out

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
        num_threads = self.num_decoders
        slots = Semaphore(2 * num_threads)

        def copied(own_pool: DecodePool | None) -> Iterator[_Unread]:
            for number, image in enumerate(images):
                if isinstance(image, Image.Image | np.ndarray):
                    slots.acquire()
                    yield _Unread(_copy_image(image), None)
                else:  # Starting processes does not pay off for a single batch.
                    yield _Unread(image, own_pool if own_pool and number >= self.batch_size else self.decode_pool)

        def read(item: _Unread) -> UInt8[ndarray, "3 H W"] | ImageError:
            if not isinstance(item.image, Image.Image | ImageError):
                return self._pixels_or_error(item.image, item.pool)
            slots.release()
            return item.image if isinstance(item.image, ImageError) else self._evaluation_pixels(item.image)

        with ExitStack() as stack:
            own_pool = None
            if self.decode_pool is None and self.towers.decodes_in_processes:
                own_pool = stack.enter_context(DecodePool(num_threads))
            threads = stack.enter_context(ThreadPoolExecutor(num_threads))
            yield from _read_ahead(threads, read, copied(own_pool), self.batch_size)

    def _pixels_or_error(self, image: ImageInput, pool: DecodePool | None) -> UInt8[ndarray, "3 H W"] | ImageError:
        try:
            return self._pixels(image, pool)
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
        return self._result(self._start(list(pixels))) if pixels else self._empty()

    def _start(self, batch: list[UInt8[ndarray, "3 H W"] | None]) -> "_Running":
        """Queue the computation of a batch on the device."""
        readable = [row for row, pixels in enumerate(batch) if pixels is not None]
        images = [pixels for pixels in batch if pixels is not None]
        return _Running(len(batch), readable, self.towers.start_images(images) if images else None)

    def _result(self, running: "_Running") -> Float32[ndarray, "N E"]:
        """Wait for the embeddings of a batch; those of images that cannot be read are NaN."""
        out = np.full((running.num, self.dim), np.nan, dtype=np.float32)
        if running.wait is not None:
            out[running.readable] = running.wait()
        return out

    def _empty(self) -> Float32[ndarray, "N E"]:
        return np.empty((0, self.dim), dtype=np.float32)


class _Unread(NamedTuple):
    """An image that a thread will read, and the pool of processes that decodes it; None if the thread decodes it."""

    image: ImageInput | ImageError
    pool: DecodePool | None


class _Running(NamedTuple):
    """A batch of images that the device may still be encoding."""

    num: int
    readable: list[int]
    wait: Callable[[], Float32[ndarray, "B E"]] | None
    """Waits for the embeddings of the readable images; None if there is none."""


def _copy_image(image: Image.Image | ndarray) -> Image.Image | ImageError:
    """A copy of the image in RGB and upright, or the error if it cannot be decoded."""
    try:
        return decode(image)
    except ImageError as error:
        return error


def _read_ahead(
    pool: ThreadPoolExecutor,
    read: Callable[[_Unread], T],
    items: Iterable[_Unread],
    size: int,
) -> Iterator[list[T]]:
    """Yield lists of `size` results of `read`. The next list is computed in `pool` while the caller uses the current one."""
    source = iter(items)
    ahead = [pool.submit(read, item) for item in islice(source, size)]
    while ahead:
        following = [pool.submit(read, item) for item in islice(source, size)]
        yield [future.result() for future in ahead]
        ahead = following
