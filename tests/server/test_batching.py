"""The queue before the model: what comes together goes together, and nobody waits without end."""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from diptych.server.batching import Batcher
from diptych.server.problems import Overloaded, Problem


def run_with(
    run: Callable[[list[int]], Sequence[int | Exception]],
    scene: Callable[[Batcher[int, int]], object],
    *,
    batch: int = 4,
    waiting: int = 100,
    window_s: float = 0.0,
) -> list[int]:
    """Play a scene before a batcher; the sizes of its batches."""
    sizes: list[int] = []

    async def play() -> None:
        with ThreadPoolExecutor(1) as executor:
            batcher = Batcher(
                run, executor=executor, batch=batch, waiting=waiting, window_s=window_s, observe=sizes.append
            )
            batcher.start()
            try:
                await scene(batcher)  # type: ignore[misc]
            finally:
                await batcher.stop()

    asyncio.run(play())
    return sizes


def doubled(items: list[int]) -> list[int]:
    return [2 * item for item in items]


def test_each_gets_its_own_in_order() -> None:
    async def scene(batcher: Batcher[int, int]) -> None:
        asked = [[1], [2, 3], [], [4, 5, 6, 7, 8, 9], [10]]
        found = await asyncio.gather(*(batcher.submit(items, timeout_s=5) for items in asked))
        assert found == [doubled(items) for items in asked]
        assert len(batcher) == 0

    assert run_with(doubled, scene) == [4, 4, 2]


def test_the_first_waits_a_moment_for_others() -> None:
    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([1], timeout_s=5))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(batcher.submit([2], timeout_s=5))
        assert list(await asyncio.gather(first, second)) == [[2], [4]]

    assert run_with(doubled, scene, window_s=0.4) == [2]


def test_who_comes_when_too_many_wait_is_sent_away() -> None:
    held = threading.Event()

    def slow(items: list[int]) -> list[int]:
        held.wait(10)
        return doubled(items)

    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([0], timeout_s=10))
        await asyncio.sleep(0.1)  # It is being computed, and waits no more.
        second = asyncio.ensure_future(batcher.submit([1, 2, 3], timeout_s=10))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit([4, 5], timeout_s=10)
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1  # type: ignore[index]
        held.set()
        assert list(await asyncio.gather(first, second)) == [[0], [2, 4, 6]]
        assert await batcher.submit([4, 5], timeout_s=10) == [8, 10]

    run_with(slow, scene, waiting=4)


def test_what_comes_too_late_is_not_computed() -> None:
    computed: list[int] = []

    def slow(items: list[int]) -> list[int]:
        computed.extend(items)
        time.sleep(0.3)
        return doubled(items)

    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([1], timeout_s=5))
        await asyncio.sleep(0.1)
        with pytest.raises(Problem) as late:
            await batcher.submit([2], timeout_s=0.05)
        assert late.value.status == 503
        assert await first == [2]
        assert await batcher.submit([3], timeout_s=5) == [6]

    run_with(slow, scene)
    assert computed == [1, 3]


def test_only_the_request_that_fails_fails() -> None:
    calls: list[list[int]] = []

    def fails_on_13(items: list[int]) -> list[int]:
        calls.append(items)
        if 13 in items:
            raise MemoryError("unlucky")
        return doubled(items)

    async def scene(batcher: Batcher[int, int]) -> None:
        asked = [[1, 2], [13], [3], [14, 13], [4]]
        found = await asyncio.gather(*(batcher.submit(items, timeout_s=5) for items in asked), return_exceptions=True)
        assert [isinstance(one, MemoryError) for one in found] == [False, True, False, True, False]
        assert (found[0], found[2], found[4]) == ([2, 4], [6], [8])
        assert await batcher.submit([1], timeout_s=5) == [2]

    run_with(fails_on_13, scene, batch=8)
    assert calls == [[1, 2, 13, 3, 14, 13, 4], [1, 2], [13], [3], [14, 13], [4], [1]]


def test_an_exception_can_be_one_items_result() -> None:
    def odd_ones_fail(items: list[int]) -> list[int | Exception]:
        return [ValueError("odd") if item % 2 else item for item in items]

    async def scene(batcher: Batcher[int, int]) -> None:
        found = await batcher.submit([1, 2], timeout_s=5)
        assert isinstance(found[0], ValueError)
        assert found[1] == 2

    assert run_with(odd_ones_fail, scene) == [2]


def test_wrong_number_of_results_is_a_failure() -> None:
    async def scene(batcher: Batcher[int, int]) -> None:
        with pytest.raises(RuntimeError, match="1 results for 2 items"):
            await batcher.submit([1, 2], timeout_s=5)

    run_with(lambda items: items[:1], scene)


def test_a_call_that_does_not_return_is_abandoned() -> None:
    """Requests in the batch, and behind it, are answered at their deadline; canceled ones leave the queue."""
    held = threading.Event()

    def stuck(items: list[int]) -> list[int]:
        if 0 in items:
            held.wait(20)
        return doubled(items)

    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([0], timeout_s=0.2))
        await asyncio.sleep(0.05)
        behind = [asyncio.ensure_future(batcher.submit([1, 2, 3, 4, 5], timeout_s=0.1)) for _ in range(3)]
        gone = asyncio.ensure_future(batcher.submit([6], timeout_s=20))
        await asyncio.sleep(0)
        gone.cancel()
        late = await asyncio.gather(first, *behind, return_exceptions=True)
        assert not held.is_set()
        assert [isinstance(one, Problem) and one.status for one in late] == [503] * 4
        assert len(batcher) == 0
        held.set()
        assert await batcher.submit([7], timeout_s=10) == [14]

    run_with(stuck, scene)


def test_who_waits_at_the_end_is_told() -> None:
    def slow(items: list[int]) -> list[int]:
        time.sleep(0.2)
        return doubled(items)

    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([1], timeout_s=5))
        await asyncio.sleep(0.05)
        second = asyncio.ensure_future(batcher.submit([2], timeout_s=5))
        await asyncio.sleep(0)
        await batcher.stop()
        with pytest.raises(Problem) as told:
            await second
        assert told.value.status == 503
        first.cancel()

    run_with(slow, scene)
