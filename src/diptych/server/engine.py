"""Model and index behind queues: what all routes ask. Shapes: N inputs, E embedding."""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.bundle.folder import Bundle
from diptych.core.errors import ImageError
from diptych.images.pool import DecodePool
from diptych.index.entry import Entry, Found
from diptych.index.filters import Filter
from diptych.index.protocol import Index
from diptych.inference.embedder import Embedder
from diptych.inference.explain import explain
from diptych.inference.loaded import LoadedBundle
from diptych.server.batching import Batcher
from diptych.server.counts import Counts
from diptych.server.limits import Limits
from diptych.server.problems import Problem
from diptych.server.shown import ShownPictures, heat_picture

T = TypeVar("T")

_DECODE_S = 10.0
"""Seconds that one picture may take to decode, at most."""


@dataclass(frozen=True)
class _Asked:
    """One search."""

    vector: Float32[ndarray, " E"]
    top: int
    chosen: Filter | None


class Engine:
    """Texts, pictures and searches each have a queue and a thread of their own, so that none waits behind another kind."""

    def __init__(self, clip: LoadedBundle, index: Index | None, limits: Limits) -> None:
        self.clip, self.index, self.limits, self.counts = clip, index, limits, Counts()
        self.is_ready = False
        self._decode_pool = DecodePool(timeout_s=min(limits.deadline_s, _DECODE_S), max_pixels=limits.pixels)
        self.embedder = Embedder(clip.bundle, batch_size=limits.batch, decode_pool=self._decode_pool)
        self.embedder.on_cut = self.counts.cut.inc
        self._threads = {name: ThreadPoolExecutor(1, name) for name in ("texts", "images", "index")}
        self._threads["pictures"] = ThreadPoolExecutor(2, "pictures")
        self.texts = self._batcher("texts", "texts", self._embed_texts)
        self.images = self._batcher("images", "images", self._embed_images, batch=max(1, limits.batch // 4))
        self.searches = self._batcher("searches", "index", self._search)
        # With the pictures' thread: an explanation listens to the attention of whatever goes through the tower.
        self.heats = self._batcher("heats", "images", self._explain, batch=1, waiting=32)
        self._shown = ShownPictures(self._decode_pool)

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

    async def start(self) -> None:
        """Take requests, after the model has seen a first text: what is set up once, nobody waits for."""
        for batcher in self._batchers:
            batcher.start()
        await self.embed_texts(["a photo"])
        self.is_ready = True

    async def stop(self) -> None:
        """Take no more."""
        self.is_ready = False
        for batcher in self._batchers:
            await batcher.stop()
        for thread in self._threads.values():
            thread.shutdown(wait=True, cancel_futures=True)
        self._decode_pool.close()

    async def embed_texts(self, texts: Sequence[str]) -> Float32[ndarray, "N E"]:
        """Unit embeddings, one row a text."""
        self._check_number("texts", len(texts), self.limits.texts)
        for text in texts:
            if len(text) > self.limits.text_chars:
                raise Problem(422, f"a text has {len(text)} characters; at most {self.limits.text_chars}")
        return _stacked(await self._await(self.texts, texts), self.clip.bundle)

    async def embed_images(self, images: Sequence[bytes]) -> Float32[ndarray, "N E"]:
        """Unit embeddings, one row a picture.

        Raises:
            ImageError: one of them cannot be read; its number is told.
        """
        self._check_number("images", len(images), self.limits.images)
        rows = await self._await(self.images, images)
        for number, row in enumerate(rows):
            if isinstance(row, ImageError):
                raise ImageError(f"number {number + 1}: {str(row).partition(': ')[2] or row}")
        return _stacked(rows, self.clip.bundle)

    async def search(self, vector: Float32[ndarray, " E"], *, top: int, chosen: Filter | None) -> list[Found]:
        """The nearest of the index."""
        self.held_index()
        (found,) = await self._await(self.searches, [_Asked(vector, top, chosen)])
        answer: list[Found] = found
        return answer

    async def explain(self, content: bytes, text: str) -> bytes:
        """A PNG of the picture as the model sees it, under the heat of a text."""
        (png,) = await self._await(self.heats, [(content, text)])
        drawn: bytes = png
        return drawn

    async def of_index(self, read: Callable[[Index], T]) -> T:
        """What is read of the index, by the thread that reads it."""
        index = self.held_index()
        loop = asyncio.get_running_loop()
        return await self._in_time(loop.run_in_executor(self._threads["index"], read, index))

    async def picture(self, entry: Entry, width_px: int | None) -> tuple[bytes, str]:
        """A picture of the index, or a small one, and its media type."""
        loop = asyncio.get_running_loop()
        return await self._in_time(loop.run_in_executor(self._threads["pictures"], self._shown.get, entry, width_px))

    def held_index(self) -> Index:
        """The index.

        Raises:
            Problem: the server has none.
        """
        if self.index is None:
            raise Problem(404, "this server has no index; start it with --index")
        return self.index

    async def _await(self, batcher: Batcher[Any, Any], items: Sequence[Any]) -> list[Any]:
        return await batcher.submit(items, timeout_s=self.limits.deadline_s)

    async def _in_time(self, coming: Awaitable[T]) -> T:
        try:
            return await asyncio.wait_for(coming, self.limits.deadline_s)
        except TimeoutError:
            raise Problem(503, "it took too long", headers={"Retry-After": "1"}) from None

    def _check_number(self, what: str, number: int, most: int) -> None:
        if number > most:
            raise Problem(422, f"{number} {what} in one request; at most {most}")

    def _embed_texts(self, texts: list[str]) -> list[Float32[ndarray, " E"]]:
        return list(self.embedder.encode_texts(texts))

    def _embed_images(self, images: list[bytes]) -> list[Float32[ndarray, " E"] | ImageError]:
        broken = dict[int, ImageError]()
        emb = self.embedder.encode_images(images, on_error=broken.__setitem__)
        return [broken.get(row, emb[row]) for row in range(len(images))]

    def _search(self, asked: list[_Asked]) -> list[list[Found]]:
        """Searches that want the same number under the same filter go through the index together."""
        index, found = self.held_index(), dict[int, list[Found]]()
        groups: dict[tuple[int, str], list[int]] = defaultdict(list)
        for number, one in enumerate(asked):
            groups[one.top, repr(one.chosen)].append(number)
        for numbers in groups.values():
            first = asked[numbers[0]]
            vectors = np.stack([asked[number].vector for number in numbers])
            found |= dict(zip(numbers, index.search(vectors, top=first.top, chosen=first.chosen), strict=True))
        return [found[number] for number in range(len(asked))]

    def _explain(self, asked: list[tuple[bytes, str]]) -> list[bytes]:
        return [heat_picture(explain(self.embedder, content, [text])) for content, text in asked]


def _stacked(rows: Sequence[Float32[ndarray, " E"]], bundle: Bundle) -> Float32[ndarray, "N E"]:
    return np.stack(rows) if rows else np.empty((0, bundle.config.embed_dim), dtype=np.float32)
