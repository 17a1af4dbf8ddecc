"""The rows of each training step, as a pure function of (seed, step) that does not depend on the number of workers or ranks.

A row is a sample, or one image-caption pair with `caption: all`. The order of an epoch is computed in three steps: select the
rows, shuffle them, and arrange rows that are positives of each other.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diptych.core.randomness import keyed_generator, keyed_permutation
from diptych.device.distributed import ALONE, Ranks

Arrangement: TypeAlias = Literal["any", "apart", "together"]
"""How the rows of a positive group are arranged. `any`: at random. `apart`: at most one per batch, or evenly spread if the
group has more rows than the epoch has steps. `together`: up to eight of them next to each other."""

_CLUSTER_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Description of the rows of an epoch and of the constraints on their order."""

    num: int
    block_ends: NDArray[np.int64] | None = None
    """End row of each block of rows that are fastest to read together, such as those of one tar."""
    blocks_at_once: int = 16
    """Number of blocks that are shuffled together; the next ones start when all of these are used up."""
    parts: tuple[tuple[int, float], ...] = ()
    """For a mixture: (end row, share of an epoch) of each part."""
    positive_groups: NDArray[np.int64] | None = None
    """Group id of each row; rows of the same group are positives of each other."""
    arrangement: Arrangement = "any"


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Return the number of full batches in an epoch; the remaining rows are not used in that epoch."""
    return num_rows // batch_size


class BatchSampler:
    """Infinite iterator over the rows of each batch, starting at `first_step`.

    >>> order = BatchSampler(Rows(num=10), batch_size=4, seed=0)
    >>> epochs, rows = order.batch(5)
    >>> epochs.tolist(), len(rows)
    ([2, 2, 2, 2], 4)
    """

    def __init__(self, rows: Rows, *, batch_size: int, seed: int, first_step: int = 0, ranks: Ranks = ALONE) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.first_step = first_step
        self.ranks = ranks
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        """Yield this rank's part of each batch as a list of (epoch, row)."""
        own = self.ranks.rows(self.batch_size // self.ranks.size)
        step = self.first_step
        while True:
            epochs, rows = self.batch(step)
            yield list(zip(epochs[own].tolist(), rows[own].tolist(), strict=True))
            step += 1

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (passes, rows) of a step's batch: how often each row was used before, and its row number.

        Without a mixture, `passes` equals the epoch. In a mixture, each part repeats its own rows at its own rate.

        Args:
            step: the training step, counted from 0.
        """
        epoch, position = divmod(step, steps_per_epoch(self.rows.num, self.batch_size))
        if epoch not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k == epoch - 1}
            self._epochs[epoch] = self._epoch(epoch)
        passes, rows = self._epochs[epoch]
        selected = slice(position * self.batch_size, (position + 1) * self.batch_size)
        return passes[selected], rows[selected]

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return (passes, rows) of an epoch, in its order."""
        passes, rows = _shuffled(self.rows, self.seed, epoch)
        if self.rows.positive_groups is None or self.rows.arrangement == "any":
            return passes, rows
        positions = np.arange(len(rows))
        window = _window_size(self.rows, self.batch_size)
        arrange = _separate_positives if self.rows.arrangement == "apart" else _cluster_positives
        arranged = [
            part[arrange(self.rows.positive_groups[rows[part]], self.batch_size, (self.seed, "arrange", epoch, number))]
            for number, part in enumerate(np.split(positions, range(window, len(positions), window)))
        ]
        order = np.concatenate(arranged)
        return passes[order], rows[order]


def _shuffled(rows: Rows, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not rows.parts:
        order = _shuffled_part(np.arange(rows.num), rows, (seed, "order", epoch))
        return np.full(len(order), epoch), order
    positions, passes, numbers, start = [], [], [], 0
    for part, ((end, _), drawn) in enumerate(zip(rows.parts, _drawn(rows), strict=True)):
        seen, selected = _next_of_part(end - start, drawn, epoch, (seed, "part", part))
        mixed = _shuffled_part(np.arange(drawn), rows, (seed, "order", epoch, part), blocks_of=start + selected)
        # Spread each part evenly over the epoch, so that every batch contains about its share.
        positions.append(
            (np.arange(drawn) + keyed_generator(seed, "spread", epoch, part).random(drawn)) / max(drawn, 1)
        )
        passes.append(seen[mixed])
        numbers.append(start + selected[mixed])
        start = end
    order = np.argsort(np.concatenate(positions), kind="stable")
    return np.concatenate(passes)[order], np.concatenate(numbers)[order]


def _drawn(rows: Rows) -> list[int]:
    """Return the number of rows that each part contributes to an epoch, rounded so that they sum to `rows.num`."""
    sizes = np.diff([end for end, _ in rows.parts], prepend=0)
    shares = np.array([share for _, share in rows.parts]) * (sizes > 0)
    ends = np.round(np.cumsum(shares) / shares.sum() * rows.num).astype(int)
    return np.diff(ends, prepend=0).tolist()


def _next_of_part(
    size: int, drawn: int, epoch: int, key: tuple[int | str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return (passes, numbers) of the rows that an epoch takes from a part, which repeats from epoch to epoch.

    The first is the pass over the part that each row belongs to, the second its number within the part.
    """
    if not drawn:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    first, last = epoch * drawn // size, ((epoch + 1) * drawn - 1) // size
    rounds = np.concatenate([keyed_permutation(size, *key, number) for number in range(first, last + 1)])
    begin = epoch * drawn - first * size
    seen = np.repeat(np.arange(first, last + 1), size)
    return seen[begin : begin + drawn], rounds[begin : begin + drawn]


def _shuffled_part(
    order: NDArray[np.int64], rows: Rows, key: tuple[int | str, ...], *, blocks_of: NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Shuffled; where there are more blocks than may be read at once, a few of them at a time."""
    shuffled = order[keyed_permutation(len(order), *key)]
    if rows.block_ends is None or len(rows.block_ends) <= rows.blocks_at_once:
        return shuffled
    numbers = shuffled if blocks_of is None else blocks_of[shuffled]
    blocks = np.searchsorted(rows.block_ends, numbers, side="right")
    turn_of_block = np.argsort(keyed_permutation(len(rows.block_ends), *key, "blocks")) // rows.blocks_at_once
    return shuffled[np.argsort(turn_of_block[blocks], kind="stable")]


def _window_size(rows: Rows, batch_size: int) -> int:
    """Return the number of rows that are arranged together: all, or about as many as `blocks_at_once` blocks contain."""
    if rows.block_ends is None or len(rows.block_ends) <= rows.blocks_at_once:
        return max(rows.num, 1)
    of_blocks = rows.num * rows.blocks_at_once // len(rows.block_ends)
    return max(1, of_blocks // batch_size) * batch_size


def _separate_positives(groups: NDArray[np.int64], batch_size: int, key: tuple[int | str, ...]) -> NDArray[np.int64]:
    """Return an order of the rows in which no batch contains two rows of a group, if no group is larger than `num_batches`.

    The rows are sorted by group and dealt in rounds, one row per batch and round, with a new order of the batches in each
    round. Rows of a group are neighbors, so they go to different batches. If a group continues in the next round, the batches
    that already have one of its rows are avoided.
    """
    num_batches = len(groups) // batch_size
    if num_batches < 2:
        return np.arange(len(groups))
    whole = num_batches * batch_size  # The remaining rows fill no batch and keep their order.
    by_group = _sort_by_group(groups[:whole])
    dealt = np.empty((num_batches, batch_size), dtype=np.int64)
    last_group, counts = -1, np.zeros(num_batches, dtype=np.int64)  # Rows of the last group in each batch.
    for number in range(batch_size):
        rows = by_group[number * num_batches : (number + 1) * num_batches]
        num_shared = int((groups[rows] == last_group).sum())
        fullest = np.flatnonzero(counts > counts.min())
        batches = _move_back(keyed_permutation(num_batches, *key, number), num_shared, fullest)
        dealt[batches, number] = rows
        if groups[rows[-1]] != last_group:
            last_group, counts = int(groups[rows[-1]]), np.zeros_like(counts)
        counts[batches[groups[rows] == last_group]] += 1
    return np.concatenate([dealt.reshape(-1), np.arange(whole, len(groups))])


def _move_back(batches: NDArray[np.int64], num_first: int, taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return `batches` with those in `taken` swapped out of the first `num_first` positions, as far as others are left."""
    is_taken = np.isin(batches, taken)
    wrong = np.flatnonzero(is_taken[:num_first])
    free = num_first + np.flatnonzero(~is_taken[num_first:])
    count = min(len(wrong), len(free))
    batches = batches.copy()
    batches[wrong[:count]], batches[free[:count]] = batches[free[:count]], batches[wrong[:count]]
    return batches


def _cluster_positives(groups: NDArray[np.int64], _batch_size: int, _key: tuple[int | str, ...]) -> NDArray[np.int64]:
    """Return an order of the rows in which up to eight rows of a group are neighbors."""
    by_group = _sort_by_group(groups)
    starts = np.flatnonzero(np.diff(groups[by_group], prepend=-1) != 0)
    lengths = np.diff(starts, append=len(by_group))
    in_group = np.arange(len(by_group)) - np.repeat(starts, lengths)
    # Each cluster takes the position of its first row.
    first_of_cluster = np.arange(len(by_group)) - in_group % _CLUSTER_SIZE
    return by_group[np.argsort(by_group[first_of_cluster], kind="stable")]


def _sort_by_group(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the row numbers sorted by group; groups are ordered by their first row."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(first[inverse], kind="stable")
