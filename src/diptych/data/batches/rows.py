"""The rows of an epoch: one per sample, or one per image-caption pair with `caption: all`."""

from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diptych.core.deprecation import RenamedAttribute
from diptych.data.batches.groups import Positives, group_rows
from diptych.data.batches.order import Arrangement, Rows
from diptych.data.sources.protocol import Source, row_chunks

CaptionChoice: TypeAlias = Literal["random", "first", "all", "join"]


class RowTable:
    """Maps a row number to (sample number, caption number)."""

    def __init__(self, source: Source, caption: CaptionChoice) -> None:
        self.source = source
        self.caption = caption
        self._ends: NDArray[np.int64] | None = None
        if caption == "all":
            self._ends = np.cumsum(_caption_counts(source), dtype=np.int64)

    def __len__(self) -> int:
        return len(self.source) if self._ends is None else int(self._ends[-1])

    def __getitem__(self, row: int) -> tuple[int, int]:
        if self._ends is None:
            return row, 0
        number = int(np.searchsorted(self._ends, row, side="right"))
        return number, row - (int(self._ends[number - 1]) if number else 0)

    def for_order(self, *, positives: Positives, arrangement: Arrangement, blocks_at_once: int = 16) -> Rows:
        """Return the description of the rows that `BatchSampler` needs."""
        blocks = self.source.block_ends
        return Rows(
            num=len(self),
            block_ends=None if blocks is None else self._row_ends(blocks),
            blocks_at_once=blocks_at_once,
            parts=tuple((int(self._row_ends(np.array(end))), share) for end, share in self.source.parts),
            positive_groups=None if arrangement == "any" else self.positive_groups(positives),
            arrangement=arrangement,
        )

    def positive_groups(self, positives: Positives) -> NDArray[np.int64]:
        """Return a group id for each row, independent of which captions are drawn.

        Rows of the same image always share a group. Depending on `positives`, rows with the same captions or the same class
        do, too.
        """
        numbers = [self[row] for row in range(len(self))]
        captions = [self._caption_text(number, which) for number, which in numbers]
        labels = [self.source.label(number) for number, _ in numbers]
        if positives == "pair":  # Rows of the same image must never be negatives of each other.
            return np.array([number for number, _ in numbers], dtype=np.int64)
        keys = [str(number) for number, _ in numbers]
        return np.array(group_rows(keys, captions, labels, positives=positives), dtype=np.int64)

    groups = RenamedAttribute("positive_groups")

    def _caption_text(self, number: int, which: int) -> str:
        """Return the row's caption, or all captions of its sample if training draws or joins them."""
        captions = self.source.captions(number)
        return "\n".join(captions) if self.caption in ("random", "join") else captions[which]

    def _row_ends(self, sample_ends: NDArray[np.int64]) -> NDArray[np.int64]:
        if self._ends is None:
            return sample_ends
        return np.concatenate([[0], self._ends])[sample_ends]


def _caption_counts(source: Source) -> NDArray[np.int64]:
    """Return the number of captions of each sample."""
    counts = []
    for rows in row_chunks(source):
        columns = source.columns(rows)
        by_row = [len(source.captions(i)) for i in rows.tolist()] if columns is None else columns.num_captions
        counts.append(np.asarray(by_row, dtype=np.int64))
    return np.concatenate(counts) if counts else np.empty(0, dtype=np.int64)
