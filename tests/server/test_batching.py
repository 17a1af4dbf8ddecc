"""The queue before the model: what comes together goes together, and nobody waits without end."""

import asyncio
import threading
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


class _Held:
    """Doubles numbers, the first time when it is told to."""

    def __init__(self) -> None:
        self.held, self.began = threading.Event(), threading.Event()
        self.computed: list[int] = []

    def __call__(self, items: list[int]) -> list[int]:
        self.computed.extend(items)
        self.began.set()
        assert self.held.wait(60)
        return doubled(items)

    async def has_begun(self) -> None:
        """Wait until the first call is under way."""
        assert await asyncio.to_thread(self.began.wait, 60)


def test_each_gets_its_own_in_order() -> None:
    async def scene(batcher: Batcher[int, int]) -> None:
        asked = [[1], [2, 3], [], [4, 5, 6, 7, 8, 9], [10]]
        found = await asyncio.gather(*(batcher.submit(items) for items in asked))
        assert found == [doubled(items) for items in asked]
        assert len(batcher) == 0

    assert run_with(doubled, scene) == [4, 4, 2]


def test_the_first_waits_a_moment_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """The moment ends here when the second request has come, and not by the clock."""
    waits: list[float] = []

    async def scene(batcher: Batcher[int, int]) -> None:
        is_waiting, has_come = asyncio.Event(), asyncio.Event()

        async def wait(seconds: float) -> None:
            waits.append(seconds)
            is_waiting.set()
            await has_come.wait()

        monkeypatch.setattr(asyncio, "sleep", wait)
        first = asyncio.ensure_future(batcher.submit([1]))
        await is_waiting.wait()
        second = asyncio.ensure_future(batcher.submit([2]))
        has_come.set()
        assert list(await asyncio.gather(first, second)) == [[2], [4]]

    assert run_with(doubled, scene, window_s=0.4) == [2]
    assert waits == [0.4]


def test_who_comes_when_too_many_wait_is_sent_away() -> None:
    slow = _Held()

    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([0]))
        await slow.has_begun()  # It is being computed, and waits no more.
        second = asyncio.ensure_future(batcher.submit([1, 2, 3]))
        await asyncio.sleep(0)
        with pytest.raises(Overloaded) as refused:
            await batcher.submit([4, 5])
        assert refused.value.status == 429
        assert int(refused.value.headers["Retry-After"]) >= 1  # type: ignore[index]
        slow.held.set()
        assert list(await asyncio.gather(first, second)) == [[0], [2, 4, 6]]
        assert await batcher.submit([4, 5]) == [8, 10]

    run_with(slow, scene, waiting=4)


def test_what_comes_too_late_is_not_computed() -> None:
    slow = _Held()

    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([1]))
        await slow.has_begun()
        with pytest.raises(Problem) as late:
            await batcher.submit([2], timeout_s=0.05)
        assert late.value.status == 503
        slow.held.set()
        assert await first == [2]
        assert await batcher.submit([3]) == [6]

    run_with(slow, scene)
    assert slow.computed == [1, 3]


def test_only_the_request_that_fails_fails() -> None:
    calls: list[list[int]] = []

    def fails_on_13(items: list[int]) -> list[int]:
        calls.append(items)
        if 13 in items:
            raise MemoryError("unlucky")
        return doubled(items)

    async def scene(batcher: Batcher[int, int]) -> None:
        asked = [[1, 2], [13], [3], [14, 13], [4]]
        found = await asyncio.gather(*(batcher.submit(items) for items in asked), return_exceptions=True)
        assert [isinstance(one, MemoryError) for one in found] == [False, True, False, True, False]
        assert (found[0], found[2], found[4]) == ([2, 4], [6], [8])
        assert await batcher.submit([1]) == [2]

    run_with(fails_on_13, scene, batch=8)
    assert calls == [[1, 2, 13, 3, 14, 13, 4], [1, 2], [13], [3], [14, 13], [4], [1]]


def test_an_exception_can_be_one_items_result() -> None:
    def odd_ones_fail(items: list[int]) -> list[int | Exception]:
        return [ValueError("odd") if item % 2 else item for item in items]

    async def scene(batcher: Batcher[int, int]) -> None:
        found = await batcher.submit([1, 2])
        assert isinstance(found[0], ValueError)
        assert found[1] == 2

    assert run_with(odd_ones_fail, scene) == [2]


def test_wrong_number_of_results_is_a_failure() -> None:
    async def scene(batcher: Batcher[int, int]) -> None:
        with pytest.raises(RuntimeError, match="1 results for 2 items"):
            await batcher.submit([1, 2])

    run_with(lambda items: items[:1], scene)


def test_a_call_that_does_not_return_is_abandoned() -> None:
    """Requests in the batch, and behind it, are answered at their deadline; canceled ones leave the queue."""
    stuck = _Held()

    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([0], timeout_s=0.2))
        await stuck.has_begun()
        behind = [asyncio.ensure_future(batcher.submit([1, 2, 3, 4, 5], timeout_s=0.1)) for _ in range(3)]
        gone = asyncio.ensure_future(batcher.submit([6]))
        await asyncio.sleep(0)
        gone.cancel()
        late = await asyncio.gather(first, *behind, return_exceptions=True)
        assert [isinstance(one, Problem) and one.status for one in late] == [503] * 4
        assert len(batcher) == 0
        stuck.held.set()
        assert await batcher.submit([7]) == [14]

    run_with(stuck, scene)


def test_who_waits_at_the_end_is_told() -> None:
    slow = _Held()

    async def scene(batcher: Batcher[int, int]) -> None:
        first = asyncio.ensure_future(batcher.submit([1]))
        await slow.has_begun()
        second = asyncio.ensure_future(batcher.submit([2]))
        await asyncio.sleep(0)
        await batcher.stop()
        slow.held.set()
        with pytest.raises(Problem) as told:
            await second
        assert told.value.status == 503
        first.cancel()

    run_with(slow, scene)
