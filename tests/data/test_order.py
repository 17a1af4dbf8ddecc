"""The order of rows: everything once, the same for any number of ranks, local where it must be, groups where they should be."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.randomness import keyed_permutation
from diptych.data.batches.order import BatchSampler, Rows, steps_per_epoch
from diptych.data.batches.rows import RowTable
from diptych.data.open_source import open_source
from diptych.device.distributed import Ranks


def _epoch(order: BatchSampler, epoch: int) -> np.ndarray:
    """The rows of an epoch, one line a batch."""
    per_epoch = steps_per_epoch(order.rows.num, order.batch_size)
    return np.stack([order.batch(step)[1] for step in range(epoch * per_epoch, (epoch + 1) * per_epoch)])


@given(
    num=st.integers(2, 60),
    batch_size=st.integers(1, 12),
    seed=st.integers(0, 3),
    arrangement=st.sampled_from(["any", "apart", "together"]),
    counts=st.tuples(st.integers(1, 40), st.integers(0, 9)),
)
def test_an_epoch_shows_nothing_twice(
    num: int, batch_size: int, seed: int, arrangement: str, counts: tuple[int, int]
) -> None:
    generator = np.random.default_rng(seed)
    num_groups, num_blocks = counts
    batch_size, epoch = min(batch_size, num), seed
    rows = Rows(
        num=num,
        positive_groups=generator.integers(num_groups, size=num),
        arrangement=arrangement,  # type: ignore[arg-type]
        block_ends=np.linspace(0, num, num_blocks + 1).astype(int)[1:] if num_blocks else None,
        blocks_at_once=2,
    )
    seen = _epoch(BatchSampler(rows, batch_size=batch_size, seed=seed), epoch)
    assert seen.shape == (num // batch_size, batch_size)
    assert len(set(seen.flatten())) == seen.size
    assert set(seen.flatten()) <= set(range(num))


def test_the_plain_order_is_the_permutation_that_it_always_was() -> None:
    """Old runs go on as they began."""
    order = BatchSampler(Rows(num=50), batch_size=8, seed=3)
    assert _epoch(order, 2).flatten().tolist() == keyed_permutation(50, 3, "order", 2)[:48].tolist()


def test_epochs_and_seeds_differ_and_walks_agree() -> None:
    def walk(first_step: int, count: int, seed: int = 0) -> list[list[tuple[int, int]]]:
        return list(islice(BatchSampler(Rows(num=50), batch_size=8, seed=seed, first_step=first_step), count))

    assert walk(0, 20)[13:] == walk(13, 7)
    assert {index for row in walk(0, 6) for _, index in row} != {index for row in walk(6, 6) for _, index in row}
    assert walk(0, 1) != walk(0, 1, seed=1)


@pytest.mark.parametrize("world_size", [2, 4])
def test_ranks_have_parts_of_the_same_batch(world_size: int) -> None:
    whole = list(islice(BatchSampler(Rows(num=50), batch_size=8, seed=0), 9))
    ranks = [
        list(islice(BatchSampler(Rows(num=50), batch_size=8, seed=0, ranks=Ranks(rank, world_size)), 9))
        for rank in range(world_size)
    ]
    assert [[row for rank in ranks for row in rank[step]] for step in range(9)] == whole


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=30),
    batch_size=st.integers(2, 12),
    seed=st.integers(0, 9),
)
def test_groups_are_kept_apart_as_far_as_there_are_batches(sizes: list[int], batch_size: int, seed: int) -> None:
    groups = np.repeat(np.arange(len(sizes)), sizes)
    num_batches = len(groups) // batch_size
    if num_batches < 2:
        return
    order = BatchSampler(
        Rows(num=len(groups), positive_groups=groups, arrangement="apart"), batch_size=batch_size, seed=seed
    )
    for batch in _epoch(order, seed):
        counts = Counter(groups[batch].tolist())
        for group, count in counts.items():
            assert count <= -(-sizes[group] // num_batches), (group, sizes[group], num_batches)


def test_apart_still_mixes() -> None:
    """Five captions a picture: two pictures that meet in one batch do not meet in the next ones."""
    groups = np.repeat(np.arange(400), 5)
    batches = _epoch(
        BatchSampler(Rows(num=2000, positive_groups=groups, arrangement="apart"), batch_size=40, seed=0), 0
    )
    first = set(groups[batches[0]].tolist())
    meetings = [len(first & set(groups[batch].tolist())) for batch in batches[1:]]
    assert max(meetings) < 20  # By chance alone about 40 * 5 / 50 = 4.
    assert 2 < np.mean(meetings) < 6


def test_together_puts_a_handful_side_by_side() -> None:
    groups = np.random.default_rng(0).permutation(np.repeat(np.arange(60), 20))
    batches = _epoch(
        BatchSampler(Rows(num=1200, positive_groups=groups, arrangement="together"), batch_size=48, seed=0), 1
    )
    line = groups[batches.flatten()]
    handfuls = np.split(line, np.flatnonzero(np.diff(line)) + 1)
    assert np.mean([len(handful) for handful in handfuls]) > 6
    assert max(len(handful) for handful in handfuls) <= 24  # Eight, or a few handfuls that met by chance.
    assert min(len(set(groups[batch].tolist())) for batch in batches) >= 4


def test_few_blocks_are_read_at_a_time() -> None:
    ends = np.arange(1, 41) * 50
    rows = Rows(num=2000, block_ends=ends, blocks_at_once=4)
    blocks = np.searchsorted(ends, _epoch(BatchSampler(rows, batch_size=10, seed=0), 1).flatten(), side="right")
    for start in range(0, 2000, 200):
        assert len(set(blocks[start : start + 200].tolist())) == 4
    other = np.searchsorted(ends, _epoch(BatchSampler(rows, batch_size=10, seed=0), 2).flatten(), side="right")
    assert set(blocks[:200].tolist()) != set(other[:200].tolist())
    whole = BatchSampler(Rows(num=2000, block_ends=ends, blocks_at_once=40), batch_size=10, seed=0)
    assert len(set(np.searchsorted(ends, _epoch(whole, 0)[:20].flatten()).tolist())) > 30


def test_a_mixture_keeps_its_shares_and_shows_each_part_evenly() -> None:
    """Part 0 has 900 rows and a tenth of what is drawn, part 1 has 100 rows and nine tenths."""
    order = BatchSampler(Rows(num=1000, parts=((900, 0.1), (1000, 0.9))), batch_size=50, seed=0)
    times: Counter[int] = Counter()
    places: set[tuple[int, int]] = set()
    for step in range(9 * 20):
        passes, rows = order.batch(step)
        assert abs(int((rows < 900).sum()) - 5) <= 2
        times.update(rows.tolist())
        places.update(zip(passes.tolist(), rows.tolist(), strict=True))
    assert len(places) == 9 * 1000  # Each time that a row is seen, it is seen as in another epoch.
    assert {times[row] for row in range(900)} == {1}
    assert {times[row] for row in range(900, 1000)} == {81}


def test_known_groups_of_rows() -> None:
    source = open_source("shapes:18")
    by_class = RowTable(source, "random").positive_groups("class")
    assert len(set(by_class.tolist())) == len(source.classes)
    pairs = RowTable(source, "all")
    of_pictures = pairs.positive_groups("pair")
    assert [pairs[row][0] for row in range(len(pairs))] == of_pictures.tolist()
    by_caption = pairs.positive_groups("caption")
    assert len(set(by_caption.tolist())) < len(set(of_pictures.tolist()))
