"""Two and three processes against one: losses, their gradients, and the exchanges they are made of."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, multiprocessing

from diptych.device.distributed import ALONE, all_ranks
from diptych.losses import tiles
from tests.distributed.workers import CASES, NUM, outcome, small_tiles, work
from tests.losses.makers import as_on_a_gpu

Results = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[2, 3])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each rank found: one start for all tests of this file."""
    folder = tmp_path_factory.mktemp(f"ranks-{request.param}")
    multiprocessing.spawn(work, (request.param, folder), nprocs=request.param)  # type: ignore[attr-defined, no-untyped-call]
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.fixture
def _small_tiles() -> Iterator[None]:
    before = tiles.TILE_ROWS, tiles.TILE_COLUMNS
    small_tiles()
    yield
    tiles.TILE_ROWS, tiles.TILE_COLUMNS = before


@pytest.mark.usefixtures("_small_tiles")
@pytest.mark.parametrize("name", list(CASES))
def test_many_ranks_equal_one(results: Results, name: str) -> None:
    _check(results, name)


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_may_have_different_cards(results: Results, name: str) -> None:
    with as_on_a_gpu(NUM // 4):
        _check([found["different cards"] for found in results], name)


def _check(results: Results, name: str) -> None:
    loss, *grads = outcome(CASES[name], slice(0, NUM), ranks=ALONE)
    images, texts, *scalars = zip(*(found[name][1:] for found in results), strict=True)
    for found in results:
        assert torch.equal(found[name][0], results[0][name][0])
        assert float(found[name][0]) == pytest.approx(float(loss), rel=1e-6)
    joint = [torch.cat(images), torch.cat(texts), *(torch.stack(parts).sum(dim=0) for parts in scalars)]
    assert len(joint) == len(grads) == 2 + len(CASES[name].scalars)
    # A logit is the scale times a cosine, so its rounding error, which the softmax keeps, grows with the scale.
    scale = CASES[name].scalars[0]
    limit = scale * torch.finfo(torch.float32).eps if CASES[name].dtype is torch.float32 else 4e-3
    for ours, exact in zip(joint, grads, strict=True):
        assert _difference(ours, exact) <= limit


def test_unless_asked_a_rank_works_alone(results: Results) -> None:
    alone = outcome(CASES["sigmoid, groups"], slice(0, NUM), ranks=all_ranks())  # There are no others here.
    for found in results:
        for ours, exact in zip(found["alone"], alone, strict=True):
            assert _difference(ours, exact) <= 1e-6


def test_exchanges(results: Results) -> None:
    size = len(results)
    ours = [torch.tensor([[0.0, 2.0], [1.0, 3.0]]) + 10 * rank for rank in range(size)]
    numbers = torch.arange(2.0 * size)
    for rank, found in enumerate(result["exchanges"] for result in results):
        assert found["ranks"] == (rank, size)
        assert torch.equal(found["gather_rows"], torch.cat(ours))
        assert torch.equal(found["ring_shift"], ours[rank - 1])
        total = size * numbers + size * (size - 1) / 2
        assert torch.equal(found["sum"], total)
        assert torch.equal(found["scatter_sum"], total[2 * rank : 2 * rank + 2])
        assert torch.equal(found["max"], numbers + size - 1)
        assert found["gather_objects"] == [{"rank": other} for other in range(size)]
        assert found["unchanged"]


def test_alone_every_exchange_is_the_identity() -> None:
    assert all_ranks() == ALONE
    tensor = torch.arange(6.0).view(3, 2)
    for exchange in (ALONE.gather_rows, ALONE.scatter_sum, ALONE.sum, ALONE.max, ALONE.ring_shift):
        assert torch.equal(exchange(tensor), tensor)
    assert ALONE.gather_objects("ours") == ["ours"]
    assert ALONE.rows(5) == slice(0, 5)


def _difference(ours: Tensor, exact: Tensor) -> float:
    """The largest, relative to the largest number."""
    return float((ours - exact).abs().max() / exact.abs().max())
