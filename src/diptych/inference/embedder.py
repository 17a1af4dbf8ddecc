"""Encoding of images and texts with a bundle. Shapes: N inputs, B texts of a batch, H W pixels, E embedding."""

import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from itertools import islice
from pathlib import Path
from threading import Semaphore
from typing import Any, NamedTuple, TypeVar

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
from diptych.device.distributed import ALONE, Ranks
from diptych.device.forks import before_computing
from diptych.device.hardware import decodes_in_processes, num_decoders
from diptych.device.precision import DTYPES, Precision, resolve_precision
from diptych.images.decode import decode, describe, file_content
from diptych.images.pool import DecodePool
from diptych.images.tensors import normalize
from diptych.images.transforms import evaluation_pixels
from diptych.models.prefix_tree import plan_sharing, prefix_tree
from diptych.tokenizers.protocol import Encoded, check_texts

T = TypeVar("T")
Item = TypeVar("Item")

_MAX_URL_BYTES = 256 * 2**20
"""Maximum size of an image that is read from a URL."""
_NODES_PER_BATCH = 4096
"""Approximate number of nodes of a prefix tree: large enough for efficient matmuls, small enough to fit in the cache."""


class Embedder:
    """Encodes images and texts with the model, tokenizer and image transform of a bundle.

    Images are decoded while others are encoded: on a CPU in two threads; on a CUDA GPU, from the second batch on, in one
    process per core, because the GPU encodes images faster than Python threads decode them.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        batch_size: int = 64,
        urls: bool = False,
        decode_pool: DecodePool | None = None,
        precision: Precision | None = None,
    ) -> None:
        """Create an embedder for a bundle.

        Args:
            bundle: the model with its tokenizer and image transform.
            batch_size: number of images or texts per batch.
            urls: whether an image may be a URL.
            decode_pool: decodes image files in separate processes with limits of time and memory. If None, some or all images
                are decoded in this process, which is only safe for images that you trust.
            precision: data type of the computation. The default is bf16 on a CUDA GPU, or fp16 if it does not support bf16,
                and fp32 on other devices. It has no effect on a model whose weights are not float32, which uses their dtype.

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
        weights = next(bundle.model.parameters()).dtype
        self.dtype = (
            DTYPES[precision or resolve_precision("auto", self.device)] if weights == torch.float32 else weights
        )
        """The dtype of the computation; embeddings are float32 in any case."""
        self._is_cast = self.dtype != weights
        before_computing(self.device)  # Loading has already started PyTorch's CPU threads or a CUDA context.
        self._has_warned = False
        self.on_cut: Callable[[int], object] = self._warn_once
        """Called with the number of texts that were truncated to the context length. The default emits a warning once."""

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""
        return self.bundle.config.embed_dim

    @property
    def num_decoders(self) -> int:
        """Number of images that are decoded at the same time."""
        return num_decoders(self.device)

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
        for running in _one_behind(map(self._start, self._pixel_batches(images, on_error))):
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
        self, texts: Sequence[str], *, advance: Callable[[], object] = lambda: None, ranks: Ranks = ALONE
    ) -> Float32[ndarray, "N E"]:
        """Embeddings of unit length, one row per text.

        Repeated texts are encoded once. Texts are sorted by length, so that a batch has few different lengths
        (`models/packing.py`). If common prefixes make up enough of the tokens, as in prompts for many classes, each prefix is
        encoded once (`models/prefix_tree.py`).

        Args:
            texts: the texts. Longer texts than the context length are truncated (see `on_cut`).
            advance: called once per text that this rank encodes.
            ranks: the ranks that share the batches. All of them must call this method with the same texts.

        Raises:
            DiptychError: `texts` is a single string, or one of its items is not a string.
        """
        check_list(texts, "texts")
        check_texts(texts)
        before_computing(self.device)
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
            with torch.inference_mode(), self._autocast():
                for rows, emb in _one_behind(self._encode_encoded(encoded, ranks)):
                    share.append((rows, emb.float().cpu().numpy()))
                    for _ in rows:
                        advance()
            return share

        out = np.empty((len(texts), self.dim), dtype=np.float32)
        for share in ranks.run_on_all(encode_share):
            for rows, emb in share:
                out[rows] = emb
        return out

    def _encode_encoded(self, encoded: Encoded, ranks: Ranks) -> Iterator[tuple[Int64[ndarray, " B"], Tensor]]:
        """Yield the row indices and the embeddings of each batch of this rank."""
        model, ids, lengths = self.bundle.model, encoded.ids, encoded.lengths
        sharing = plan_sharing(ids, lengths) if model.text_tower.supports_prefix_sharing else None
        if sharing is not None:
            order, new = sharing
            batches = np.split(order, np.flatnonzero(np.diff(new.cumsum() // _NODES_PER_BATCH)) + 1)
            for rows in batches[ranks.rank :: ranks.size]:
                yield rows, model.encode_text_tree(prefix_tree(ids[rows], lengths[rows], self.device))
            return
        by_length = np.argsort(lengths, kind="stable")
        size = self.batch_size
        for start in range(ranks.rank * size, len(ids), ranks.size * size):
            rows = by_length[start : start + size]
            trimmed = torch.from_numpy(ids[rows])[:, : int(lengths[rows].max())]
            yield rows, model.encode_text(trimmed.to(self.device), torch.from_numpy(lengths[rows]))

    def _autocast(self) -> AbstractContextManager[object]:
        return torch.autocast(self.device.type, dtype=self.dtype) if self._is_cast else nullcontext()

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
            if self.decode_pool is None and decodes_in_processes(self.device):
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
        before_computing(self.device)
        readable = [row for row, pixels in enumerate(batch) if pixels is not None]
        if not readable:
            return _Running(len(batch), readable, None)
        images = [pixels for pixels in batch if pixels is not None]
        is_pinned = self.device.type == "cuda"
        stacked = torch.empty((len(images), *images[0].shape), dtype=torch.uint8, pin_memory=is_pinned)
        np.stack(images, out=stacked.numpy())
        stacked = stacked.to(self.device, non_blocking=is_pinned)
        with torch.inference_mode(), self._autocast():
            return _Running(
                len(batch), readable, self.bundle.model.encode_image(normalize(stacked, self.bundle.config.pixels))
            )

    def _result(self, running: "_Running") -> Float32[ndarray, "N E"]:
        """Wait for the embeddings of a batch; those of images that cannot be read are NaN."""
        out = np.full((running.num, self.dim), np.nan, dtype=np.float32)
        if running.emb is not None:
            out[running.readable] = running.emb.float().cpu().numpy()
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
    emb: Tensor | None
    """Embeddings of the readable images; None if there is none."""


def _one_behind(items: Iterable[Item]) -> Iterator[Item]:
    """Yield each item after the next has been requested, so that a device has work while the caller waits for a result."""
    waiting = deque[Item]()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


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
