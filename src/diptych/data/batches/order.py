"""Which rows each step sees: a pure function of (seed, step), whatever the number of workers and of ranks.

A row is a sample, or one pair of image and caption where an epoch has all of them. An order is made in three moves: what is
drawn, how it is shuffled, and where the rows go that are positives of each other. Shapes: N rows, R rows of an epoch, S steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diptych.core.distributed import ALONE, Ranks
from diptych.core.randomness import keyed_generator, keyed_permutation

Arrangement: TypeAlias = Literal["any", "apart", "together"]
"""Where the rows of a group go that are positives of each other: wherever chance puts them; never two into one batch, as long
as a group has no more rows than an epoch has steps, and else evenly spread; or side by side, up to eight of them."""

_TOGETHER = 8


@dataclass(frozen=True, kw_only=True)
class Rows:
    """What an epoch is made of, and what its order must heed."""

    num: int
    block_ends: NDArray[np.int64] | None = None
    """Where each stretch ends that is best read together."""
    blocks_at_once: int = 16
    """Stretches that are shuffled into each other; another is not begun before these are through."""
    parts: tuple[tuple[int, float], ...] = ()
    """Of a mixture: where each part ends, and its share of an epoch."""
    groups: NDArray[np.int64] | None = None
    """A group for each row; rows of a group are positives of each other."""
    arrangement: Arrangement = "any"


def steps_per_epoch(num_rows: int, batch_size: int) -> int:
    """Full batches of an epoch; the remainder waits for another epoch's order."""
    return num_rows // batch_size


class BatchSampler:
    """The rows of each batch, from one step on, without end; what the loader walks.

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
        """This rank's part of each batch, as (epoch, row)."""
        own = self.ranks.rows(self.batch_size // self.ranks.size)
        step = self.first_step
        while True:
            epochs, rows = self.batch(step)
            yield list(zip(epochs[own].tolist(), rows[own].tolist(), strict=True))
            step += 1

    def batch(self, step: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Of each row of a step's batch (steps from 0): how often it was seen before, and its number.

        Without a mixture the first is the epoch, for all alike. In a mixture a part goes through its own rows at its own
        pace.
        """
        epoch, position = divmod(step, steps_per_epoch(self.rows.num, self.batch_size))
        if epoch not in self._epochs:
            self._epochs = {k: v for k, v in self._epochs.items() if k == epoch - 1}
            self._epochs[epoch] = self._epoch(epoch)
        passes, rows = self._epochs[epoch]
        chosen = slice(position * self.batch_size, (position + 1) * self.batch_size)
        return passes[chosen], rows[chosen]

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The epoch's rows in order, and how often each was seen before."""
        passes, rows = _shuffled(self.rows, self.seed, epoch)
        if self.rows.groups is None or self.rows.arrangement == "any":
            return passes, rows
        places = np.arange(len(rows))
        stretch = _window_size(self.rows, self.batch_size)
        arrange = _separate_positives if self.rows.arrangement == "apart" else _cluster_positives
        arranged = [
            part[arrange(self.rows.groups[rows[part]], self.batch_size, (self.seed, "arrange", epoch, number))]
            for number, part in enumerate(np.split(places, range(stretch, len(places), stretch)))
        ]
        order = np.concatenate(arranged)
        return passes[order], rows[order]


def _shuffled(rows: Rows, seed: int, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    if not rows.parts:
        order = _shuffled_part(np.arange(rows.num), rows, (seed, "order", epoch))
        return np.full(len(order), epoch), order
    places, passes, numbers, start = [], [], [], 0
    for part, ((end, _), drawn) in enumerate(zip(rows.parts, _drawn(rows), strict=True)):
        seen, chosen = _next_of_part(end - start, drawn, epoch, (seed, "part", part))
        mixed = _shuffled_part(np.arange(drawn), rows, (seed, "order", epoch, part), blocks_of=start + chosen)
        # Spread evenly over the epoch, so that each batch has about its share of every part.
        places.append((np.arange(drawn) + keyed_generator(seed, "spread", epoch, part).random(drawn)) / max(drawn, 1))
        passes.append(seen[mixed])
        numbers.append(start + chosen[mixed])
        start = end
    order = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(passes)[order], np.concatenate(numbers)[order]


def _drawn(rows: Rows) -> list[int]:
    """Rows that each part gives to an epoch: its share, rounded so that they add up."""
    sizes = np.diff([end for end, _ in rows.parts], prepend=0)
    shares = np.array([share for _, share in rows.parts]) * (sizes > 0)
    ends = np.round(np.cumsum(shares) / shares.sum() * rows.num).astype(int)
    drawn: list[int] = np.diff(ends, prepend=0).tolist()
    return drawn


def _next_of_part(
    size: int, drawn: int, epoch: int, key: tuple[int | str, ...]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """What an epoch takes of a part that goes round and round: the round of each row, and its number in the part."""
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
    """Rows that are arranged among each other: all, or about as many as the blocks hold that are read at once."""
    if rows.block_ends is None or len(rows.block_ends) <= rows.blocks_at_once:
        return max(rows.num, 1)
    of_blocks = rows.num * rows.blocks_at_once // len(rows.block_ends)
    return max(1, of_blocks // batch_size) * batch_size


def _separate_positives(groups: NDArray[np.int64], batch_size: int, key: tuple[int | str, ...]) -> NDArray[np.int64]:
    """An order of shuffled rows in which no batch has two of a group, where no group has more rows than there are batches.

    The rows are laid out group by group and dealt like cards, one to each batch in a round, each round in another order of the
    batches. Rows of a group are neighbours, so they go to different batches; the one group that two rounds share is kept from
    the batches that it had in the first.
    """
    num_batches = len(groups) // batch_size
    if num_batches < 2:
        return np.arange(len(groups))
    whole = num_batches * batch_size  # What no batch has room for stays what chance has put there.
    line = _side_by_side(groups[:whole])
    dealt = np.empty((num_batches, batch_size), dtype=np.int64)
    last_group, has = -1, np.zeros(num_batches, dtype=np.int64)  # How many of the last group each batch has.
    for number in range(batch_size):
        cards = line[number * num_batches : (number + 1) * num_batches]
        num_shared = int((groups[cards] == last_group).sum())
        fullest = np.flatnonzero(has > has.min())
        batches = _avoiding(keyed_permutation(num_batches, *key, number), num_shared, fullest)
        dealt[batches, number] = cards
        if groups[cards[-1]] != last_group:
            last_group, has = int(groups[cards[-1]]), np.zeros_like(has)
        has[batches[groups[cards] == last_group]] += 1
    return np.concatenate([dealt.reshape(-1), np.arange(whole, len(groups))])


def _avoiding(batches: NDArray[np.int64], num_first: int, taken: NDArray[np.int64]) -> NDArray[np.int64]:
    """The same, with the taken ones moved from the first places to later ones, as far as there are others."""
    is_taken = np.isin(batches, taken)
    wrong = np.flatnonzero(is_taken[:num_first])
    free = num_first + np.flatnonzero(~is_taken[num_first:])
    count = min(len(wrong), len(free))
    batches = batches.copy()
    batches[wrong[:count]], batches[free[:count]] = batches[free[:count]], batches[wrong[:count]]
    return batches


def _cluster_positives(groups: NDArray[np.int64], _batch_size: int, _key: tuple[int | str, ...]) -> NDArray[np.int64]:
    """An order of shuffled rows in which up to eight of a group are neighbours."""
    line = _side_by_side(groups)
    starts = np.flatnonzero(np.diff(groups[line], prepend=-1) != 0)
    lengths = np.diff(starts, append=len(line))
    in_group = np.arange(len(line)) - np.repeat(starts, lengths)
    # Each handful stands where the first of its rows stood before.
    first_of_handful = np.arange(len(line)) - in_group % _TOGETHER
    return line[np.argsort(line[first_of_handful], kind="stable")]


def _side_by_side(groups: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places by group, the groups in the order in which their first rows come."""
    _, first, inverse = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(first[inverse], kind="stable")
