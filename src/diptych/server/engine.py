"""Model and index behind queues: what all routes ask. Shapes: N inputs, E embedding."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from diptych.bundle.folder import Bundle
from diptych.core.errors import ImageError
from diptych.images.pool import DecodePool
from diptych.index.entry import Entry, SearchHit
from diptych.index.filters import Filter
from diptych.index.protocol import Index
from diptych.inference.embedder import Embedder
from diptych.inference.explain import explain_pixels
from diptych.inference.loaded import LoadedBundle
from diptych.server.batching import Batcher
from diptych.server.limits import Limits
from diptych.server.metrics import Counts
from diptych.server.problems import Problem, too_late
from diptych.server.readiness import IndexCheck
from diptych.server.thumbnails import ShownPictures, heat_picture
from diptych.server.workers import Workers

T = TypeVar("T")

_DECODE_S = 10.0
"""Seconds that one picture may take to decode, at most."""
_CHECK_S = 5.0
"""Maximum seconds that the index may take to respond to `/readyz`."""
_DECODERS = 3
"""Pictures that are decoded at the same time."""


@dataclass(frozen=True)
class _Asked:
    """One search."""

    vector: Float32[ndarray, " E"]
    top: int
    skip: int
    selected: Filter | None


class Engine:
    """Texts, pictures and searches each have a queue and a thread of their own, so that none waits behind another kind."""

    def __init__(self, clip: LoadedBundle, index: Index | None, limits: Limits) -> None:
        self.clip, self.index, self.limits, self.counts = clip, index, limits, Counts()
        self._is_started = False
        self._decode_pool = DecodePool(_DECODERS, timeout_s=min(limits.deadline_s, _DECODE_S), max_pixels=limits.pixels)
        self.embedder = Embedder(clip.bundle, batch_size=limits.batch, decode_pool=self._decode_pool)
        self.embedder.on_cut = self.counts.cut.inc
        nums = {"texts": 1, "images": 1, "index": 1, "decode": _DECODERS, "pictures": 2, "bodies": 2, "readiness": 1}
        most = {"decode": limits.waiting_images}
        self._threads = {
            name: Workers(name, num=num, waiting=most.get(name, limits.waiting)) for name, num in nums.items()
        }
        for name, workers in self._threads.items():
            self.counts.busy.labels(name).set_function(partial(getattr, workers, "busy_s"))
        self.texts = self._batcher("texts", "texts", self._embed_texts)
        self.images = self._batcher(
            "images", "images", self._embed_images, batch=max(1, limits.batch // 4), waiting=limits.waiting_images
        )
        self.searches = self._batcher("searches", "index", self._search)
        # In the pictures' thread, so that the two do not compete for the same cores.
        self.heats = self._batcher("heats", "images", self._explain, batch=1, waiting=32)
        self._shown = ShownPictures(self._decode_pool)
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

    @property
    def _batchers(self) -> tuple[Batcher[Any, Any], ...]:
        return self.texts, self.images, self.searches, self.heats

    async def why_not_ready(self) -> str | None:
        """What keeps the server from answering requests in time; None if nothing does."""
        if not self._is_started:
            return "the server is starting or going down"
        for name, workers in self._threads.items():
            if workers.busy_s > self.limits.deadline_s:
                return f"a thread for {name} has been in one call for {workers.busy_s:.0f} s"
        if not all(batcher.is_running for batcher in self._batchers):
            return "a queue has ended"
        return None if self._index_check is None else await self._index_check.fault()

    async def start(self) -> None:
        """Take requests, after the model has embedded a first text: what is set up once, nobody waits for."""
        for batcher in self._batchers:
            batcher.start()
        await asyncio.get_running_loop().run_in_executor(self._threads["decode"], self._decode_pool.start)
        await self.texts.submit(["a photo"])
        self._is_started = True

    async def stop(self) -> None:
        """Take no more. Calls that are running are abandoned: none is waited for."""
        self._is_started = False
        for batcher in self._batchers:
            await batcher.stop()
        for workers in self._threads.values():
            workers.shutdown()
        self._decode_pool.close()

    async def embed_texts(self, texts: Sequence[str]) -> Float32[ndarray, "N E"]:
        """Unit embeddings, one row a text."""
        self._check_number("texts", len(texts), self.limits.max_texts)
        for text in texts:
            if len(text) > self.limits.text_chars:
                most = self.limits.text_chars
                raise Problem(
                    422,
                    f"a text has {len(text)} characters; the limit is {most}, and the model reads only the first words",
                )
        return _stacked(await self._await(self.texts, texts), self.clip.bundle)

    async def embed_images(self, images: Sequence[bytes]) -> Float32[ndarray, "N E"]:
        """Unit embeddings, one row a picture.

        Raises:
            Problem: a picture cannot be read (422). The problem contains its position.
        """
        self._check_number("images", len(images), self.limits.max_images)
        rows = await self._await(self.images, await self._decoded(images))
        return _stacked(rows, self.clip.bundle)

    async def _decoded(self, images: Sequence[bytes]) -> list[UInt8[ndarray, "3 H W"]]:
        """The model's input for each picture. Decoding comes before the queue, so that a slow picture delays no batch.

        Raises:
            Problem: a picture cannot be read (422). The problem contains its position.
        """
        loop = asyncio.get_running_loop()
        jobs = [loop.run_in_executor(self._threads["decode"], self.embedder.pixels, image) for image in images]
        return _checked(await asyncio.gather(*jobs, return_exceptions=True))

    async def search(
        self, vector: Float32[ndarray, " E"], *, top: int, skip: int = 0, selected: Filter | None
    ) -> list[SearchHit]:
        """The nearest of the index, without the first `skip` ones."""
        self.held_index()
        (found,) = await self._await(self.searches, [_Asked(vector, top, skip, selected)])
        answer: list[SearchHit] = found
        return answer

    async def explain(self, entries: Sequence[Entry], text: str) -> bytes:
        """A PNG of the heat map of a text over an indexed picture, with the pixels that were indexed."""
        content = await self.in_thread("pictures", partial(self._shown.original, entries))
        (pixels,) = await self._decoded([content])
        (png,) = await self._await(self.heats, [(pixels, text)])
        drawn: bytes = png
        return drawn

    async def of_index(self, read: Callable[[Index], T]) -> T:
        """What is read of the index, by the thread that reads it."""
        index = self.held_index()
        return await self.in_thread("index", partial(read, index))

    async def picture(self, entries: Sequence[Entry], width_px: int | None) -> tuple[bytes, str]:
        """A picture of the index, or a small one, and its media type."""
        return await self.in_thread("pictures", partial(self._shown.get, entries, width_px))

    async def in_thread(self, name: Literal["bodies", "index", "pictures"], call: Callable[[], T]) -> T:
        """The result of a blocking call, from a thread of the kind that is named.

        Raises:
            Problem: it took longer than the deadline (503); its result is dropped.
        """
        coming = asyncio.get_running_loop().run_in_executor(self._threads[name], call)
        try:
            return await asyncio.wait_for(coming, self.limits.deadline_s)
        except TimeoutError:
            raise too_late() from None

    def held_index(self) -> Index:
        """The index.

        Raises:
            Problem: the server has none.
        """
        if self.index is None:
            raise Problem(404, "this server has no index; start it with --index")
        return self.index

    async def _await(self, batcher: Batcher[Any, Any], items: Sequence[Any]) -> list[Any]:
        return _checked(await batcher.submit(items, timeout_s=self.limits.deadline_s))

    def _check_number(self, what: str, number: int, most: int) -> None:
        if number > most:
            raise Problem(422, f"{number} {what} in one request; at most {most}: split them over several requests")

    def _embed_texts(self, texts: list[str]) -> list[Float32[ndarray, " E"]]:
        return list(self.embedder.encode_texts(texts))

    def _embed_images(self, pixels: list[UInt8[ndarray, "3 H W"]]) -> list[Float32[ndarray, " E"]]:
        return list(self.embedder.encode_pixels(pixels))

    def _search(self, asked: list[_Asked]) -> list[list[SearchHit] | Exception]:
        """Searches that want the same page under the same filter go through the index together, and fail together."""
        index, found = self.held_index(), dict[int, list[SearchHit] | Exception]()
        groups: dict[tuple[int, int, Filter | None], list[int]] = defaultdict(list)
        for number, one in enumerate(asked):
            groups[one.top, one.skip, one.selected].append(number)
        for (top, skip, selected), numbers in groups.items():
            vectors = np.stack([asked[number].vector for number in numbers])
            try:
                found |= dict(zip(numbers, index.search(vectors, top=top, skip=skip, selected=selected), strict=True))
            except Exception as error:
                found |= dict.fromkeys(numbers, error)
        return [found[number] for number in range(len(asked))]

    def _explain(self, asked: list[tuple[UInt8[ndarray, "3 H W"], str]]) -> list[bytes]:
        return [heat_picture(explain_pixels(self.embedder, pixels, [text])) for pixels, text in asked]


def _checked(results: Sequence[Any]) -> list[Any]:
    """The results, if none of them is an exception. The problem of an unusable picture contains its position."""
    for number, result in enumerate(results):
        if isinstance(result, ImageError):
            reason = str(result).partition(": ")[2] or str(result)
            raise Problem(422, f"a picture cannot be used: number {number + 1}: {reason}", image=number, reason=reason)
        if isinstance(result, BaseException):
            raise result
    return list(results)


def _stacked(rows: Sequence[Float32[ndarray, " E"]], bundle: Bundle) -> Float32[ndarray, "N E"]:
    return np.stack(rows) if rows else np.empty((0, bundle.config.embed_dim), dtype=np.float32)
