"""Runs the model and the index for the routes, with a queue for each kind of work. Shapes: N inputs, E embedding."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal, TypeAlias, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from diptych.core.errors import ImageError
from diptych.images.pool import DecodePool
from diptych.index.entry import Entry, SearchHit
from diptych.index.filters import Filter
from diptych.index.protocol import Index
from diptych.inference.embedder import Embedder
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.server.batching import Batcher
from diptych.server.limits import Limits
from diptych.server.metrics import Counts
from diptych.server.problems import Problem, too_late
from diptych.server.readiness import IndexCheck
from diptych.server.thumbnails import PictureReader, read_original, render_heat_map
from diptych.server.workers import Workers

T = TypeVar("T")

_DECODE_S = 10.0
"""Maximum time in seconds to decode one image."""
_CHECK_S = 5.0
"""Maximum time in seconds that the index may take to respond to `/readyz`."""
_DECODERS = 3
"""Number of images that are decoded at the same time."""


_Page: TypeAlias = tuple[int, int, Filter | None]
"""Parameters of a search: the `top` nearest entries without the first `skip`, among those that the filter selects."""


class Engine:
    """The model and the index of a server. Texts, images and searches have separate queues and threads.

    Args:
        clip: the model.
        index: the index to search; None for a server without an index.
        limits: limits of requests and queues.
    """

    def __init__(self, clip: LoadedBundle, index: Index | None, limits: Limits) -> None:
        self.clip, self.index, self.limits, self.counts = clip, index, limits, Counts()
        self._is_started = False
        self._decode_pool = DecodePool(_DECODERS, timeout_s=min(limits.deadline_s, _DECODE_S), max_pixels=limits.pixels)
        self.embedder = Embedder(clip.bundle, batch_size=limits.batch, decode_pool=self._decode_pool)
        self.embedder.on_cut = self.counts.cut.inc
        nums = {"texts": 1, "images": 1, "index": 1, "decode": _DECODERS, "pictures": 2, "bodies": 2, "readiness": 1}
        max_waiting = {"decode": limits.waiting_images}
        self._threads = {
            name: Workers(name, num=num, waiting=max_waiting.get(name, limits.waiting)) for name, num in nums.items()
        }
        for name, workers in self._threads.items():
            self.counts.busy.labels(name).set_function(partial(getattr, workers, "busy_s"))
        self.texts = self._batcher("texts", "texts", self._embed_texts)
        self.images = self._batcher(
            "images", "images", self._embed_images, batch=max(1, limits.batch // 4), waiting=limits.waiting_images
        )
        self.searches = self._batcher("searches", "index", self._search)
        # Heat maps share the thread of the images, so that the two do not compete for the same cores.
        self.heat_maps = self._batcher("heats", "images", self._explain, batch=1, waiting=32)
        self._batchers = self.texts, self.images, self.searches, self.heat_maps
        self._pictures = PictureReader(self._decode_pool)
        self._index_check = None
        if index is not None:
            limit_s = min(limits.deadline_s, _CHECK_S)
            self._index_check = IndexCheck(index, executor=self._threads["readiness"], limit_s=limit_s)

    def _batcher(
        self,
        name: str,
        thread: str,
        run: Callable[[list[Any]], Sequence[Any]],
        *,
        batch: int | None = None,
        waiting: int | None = None,
    ) -> Batcher[Any, Any]:
        limits = self.limits
        batcher = Batcher(
            run,
            executor=self._threads[thread],
            batch=batch or limits.batch,
            waiting=waiting or limits.waiting,
            window_s=limits.window_ms / 1000 if (batch or 2) > 2 else 0,
            observe=self.counts.batch.labels(name).observe,
        )
        self.counts.waiting.labels(name).set_function(lambda: len(batcher))
        return batcher

    async def unready_reason(self) -> str | None:
        """The reason why the server cannot answer requests in time; None if it can."""
        if not self._is_started:
            return "the server is starting or going down"
        for name, workers in self._threads.items():
            if workers.busy_s > self.limits.deadline_s:
                return f"a thread for {name} has been in one call for {workers.busy_s:.0f} s"
        if not all(batcher.is_running for batcher in self._batchers):
            return "a queue has ended"
        return None if self._index_check is None else await self._index_check.fault()

    async def start(self) -> None:
        """Start the queues and warm up the model, so that the first request does not wait for the setup."""
        for batcher in self._batchers:
            batcher.start()
        await asyncio.get_running_loop().run_in_executor(self._threads["decode"], self._decode_pool.start)
        await self.texts.submit(["a photo"])
        self._is_started = True

    async def stop(self) -> None:
        """Stop the queues and threads. It does not wait for calls that are still running."""
        self._is_started = False
        for batcher in self._batchers:
            await batcher.stop()
        for workers in self._threads.values():
            workers.shutdown()
        self._decode_pool.close()

    async def embed_texts(self, texts: Sequence[str]) -> Float32[ndarray, "N E"]:
        """The L2-normalized embeddings of texts, in their order.

        Raises:
            Problem: there are too many texts, or one is too long (422), or the request timed out (503).
            Overloaded: the queue is full (429).
        """
        self._check_number("texts", len(texts), self.limits.max_texts)
        for text in texts:
            if len(text) > self.limits.text_chars:
                max_chars = self.limits.text_chars
                raise Problem(
                    422,
                    f"a text has {len(text)} characters; the limit is {max_chars}, and the model reads only the first words",
                )
        return _stacked(await self._await(self.texts, texts), self.embedder.dim)

    async def embed_images(self, images: Sequence[bytes]) -> Float32[ndarray, "N E"]:
        """The L2-normalized embeddings of encoded images, in their order.

        Raises:
            Problem: there are too many images, or one cannot be read (422; the problem contains its position), or the request
                timed out (503).
            Overloaded: a queue is full (429).
        """
        self._check_number("images", len(images), self.limits.max_images)
        rows = await self._await(self.images, await self._decoded(images))
        return _stacked(rows, self.embedder.dim)

    async def _decoded(self, images: Sequence[bytes]) -> list[UInt8[ndarray, "3 H W"]]:
        """The model's input for each image. Images are decoded before they enter the queue, so that a slow one delays no batch.

        Raises:
            Problem: an image cannot be read (422). The problem contains its position.
        """
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._threads["decode"], self.embedder.pixels, image) for image in images]
        return _checked(await asyncio.gather(*jobs, return_exceptions=True))

    async def search(
        self, vector: Float32[ndarray, " E"], *, top: int, skip: int = 0, selected: Filter | None
    ) -> list[SearchHit]:
        """The nearest entries of the index, in descending order of similarity.

        Args:
            vector: the L2-normalized embedding of the query.
            top: rank of the last entry to return.
            skip: number of entries to skip at the beginning.
            selected: filter that selects the entries to search; None for all.

        Raises:
            Problem: the server has no index (404), or the request timed out (503).
            Overloaded: the queue is full (429).
        """
        self.require_index()
        (hits,) = await self._await(self.searches, [(vector, (top, skip, selected))])
        return hits

    @property
    def has_heat_maps(self) -> bool:
        """Whether the server can draw heat maps: True for a bundle, False for an ONNX export."""
        return self.embedder.towers.engine == "PyTorch"

    async def explain(self, entries: Sequence[Entry], text: str) -> bytes:
        """A PNG of an indexed image with a heat map that shows which parts match a text.

        Args:
            entries: files with the content of the image; they have the same digest.
            text: the text.

        Raises:
            Problem: the model is an ONNX export (404), no file has the indexed content any more (410), or the request timed out
                (503).
        """
        if not self.has_heat_maps:
            raise Problem(404, "this server has no heat maps: they need a bundle, and its model is an ONNX export")
        content = await self.run_in_thread("pictures", partial(read_original, entries))
        (pixels,) = await self._decoded([content])
        (png,) = await self._await(self.heat_maps, [(pixels, text)])
        return png

    async def read_index(self, read: Callable[[Index], T]) -> T:
        """The result of a function that reads the index. It runs in the thread of the index.

        Raises:
            Problem: the server has no index (404), or the call took longer than the deadline (503).
        """
        index = self.require_index()
        return await self.run_in_thread("index", partial(read, index))

    async def picture(self, entries: Sequence[Entry], width_px: int | None) -> tuple[bytes, str]:
        """The content and the media type of an indexed image, or of its thumbnail. See `PictureReader.get`."""
        return await self.run_in_thread("pictures", partial(self._pictures.get, entries, width_px))

    async def run_in_thread(self, name: Literal["bodies", "index", "pictures"], call: Callable[[], T]) -> T:
        """The result of a blocking call.

        Args:
            name: the threads that run the call.
            call: the function to call.

        Raises:
            Problem: the call took longer than the deadline (503). Its result is dropped.
        """
        future = asyncio.get_running_loop().run_in_executor(self._threads[name], call)
        try:
            return await asyncio.wait_for(future, self.limits.deadline_s)
        except TimeoutError:
            raise too_late() from None

    def require_index(self) -> Index:
        """The index.

        Raises:
            Problem: the server has no index (404).
        """
        if self.index is None:
            raise Problem(404, "this server has no index; start it with --index")
        return self.index

    async def _await(self, batcher: Batcher[Any, Any], items: Sequence[Any]) -> list[Any]:
        return _checked(await batcher.submit(items, timeout_s=self.limits.deadline_s))

    def _check_number(self, kind: str, num: int, max_num: int) -> None:
        if num > max_num:
            raise Problem(422, f"{num} {kind} in one request; at most {max_num}: split them over several requests")

    def _embed_texts(self, texts: list[str]) -> list[Float32[ndarray, " E"]]:
        return list(self.embedder.encode_texts(texts))

    def _embed_images(self, pixels: list[UInt8[ndarray, "3 H W"]]) -> list[Float32[ndarray, " E"]]:
        return list(self.embedder.encode_pixels(pixels))

    def _search(self, jobs: list[tuple[Float32[ndarray, " E"], _Page]]) -> list[list[SearchHit] | Exception]:
        """The hits of each query. Queries with the same parameters are searched together, and fail together."""
        index, results = self.require_index(), dict[int, list[SearchHit] | Exception]()
        groups: dict[_Page, list[int]] = defaultdict(list)
        for number, (_, page) in enumerate(jobs):
            groups[page].append(number)
        for (top, skip, selected), numbers in groups.items():
            vectors = np.stack([jobs[number][0] for number in numbers])
            try:
                results |= dict(zip(numbers, index.search(vectors, top=top, skip=skip, selected=selected), strict=True))
            except Exception as error:
                results |= dict.fromkeys(numbers, error)
        return [results[number] for number in range(len(jobs))]

    def _explain(self, jobs: list[tuple[UInt8[ndarray, "3 H W"], str]]) -> list[bytes]:
        from diptych.inference.explain import explain_pixels  # noqa: PLC0415  (imports PyTorch)

        explained = (explain_pixels(self.embedder, pixels, [text]) for pixels, text in jobs)
        return [render_heat_map(explanation.picture, explanation.heat[0]) for explanation in explained]


def _checked(results: Sequence[Any]) -> list[Any]:
    """The results, if none of them is an exception. Otherwise the first exception is raised.

    Raises:
        Problem: an image cannot be read (422). The problem contains its position.
    """
    for number, result in enumerate(results):
        if isinstance(result, ImageError):
            reason = str(result).partition(": ")[2] or str(result)
            raise Problem(422, f"a picture cannot be used: number {number + 1}: {reason}", image=number, reason=reason)
        if isinstance(result, BaseException):
            raise result
    return list(results)


def _stacked(rows: Sequence[Float32[ndarray, " E"]], dim: int) -> Float32[ndarray, "N E"]:
    return np.stack(rows) if rows else np.empty((0, dim), dtype=np.float32)
