"""Columns of rows in a few large blocks of memory instead of millions of small objects.

A million rows as Python objects take most of a gigabyte, and each worker process copies the ones that it accesses, because
reference counts are written. In a block, a text takes its own bytes and eight more, and workers share the block.
"""

import json
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diptych.data.storage.blocks import TextBlock, ranges


def locate(starts: Sequence[int], index: int) -> tuple[int, int]:
    """Return (segment, index within it) of an index, where segment `i` begins at `starts[i]`.

    >>> locate([0, 3, 5], 4)
    (1, 1)

    Args:
        starts: the first index of each segment, followed by the total number.
        index: the index to locate.

    Raises:
        IndexError: the index is out of range.
    """
    if not 0 <= index < starts[-1]:
        raise IndexError(f"sample {index} of {starts[-1]}")
    segment = bisect_right(starts, index) - 1
    return segment, index - starts[segment]


class TextColumn:
    """A sequence of texts in one block of memory.

    >>> column = TextColumn(["a dog", "", "é"])
    >>> len(column), column[0], column[2]
    (3, 'a dog', 'é')
    """

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self._bytes = bytearray()
        self._ends = array("q", [0])
        for text in texts:
            self.append(text)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arguments of `from_arrays`, for storage in a file."""
        return {"bytes": np.frombuffer(self._bytes, dtype=np.uint8), "ends": np.array(self._ends, dtype=np.int64)}

    @classmethod
    def from_arrays(cls, content: NDArray[np.uint8], ends: NDArray[np.int64]) -> "TextColumn":
        """Return the column whose `to_arrays` returned these arrays."""
        column = cls()
        column._bytes = bytearray(content.tobytes())
        column._ends = array("q", ends.astype(np.int64).tobytes())
        return column

    def copy(self) -> "TextColumn":
        """Return a copy of the column."""
        column = TextColumn()
        column._bytes, column._ends = self._bytes.copy(), self._ends[:]
        return column

    def take(self, numbers: NDArray[np.int64]) -> TextBlock:
        """Return the texts with these numbers, in this order.

        >>> block = TextColumn(["a dog", "", "cat"]).take(np.array([2, 0]))
        >>> block.content.tobytes(), block.lengths.tolist()
        (b'cata dog', [3, 5])
        """
        content, ends = np.frombuffer(self._bytes, dtype=np.uint8), np.frombuffer(self._ends, dtype=np.int64)
        starts, lengths = ends[numbers], ends[numbers + 1] - ends[numbers]
        return TextBlock(content[ranges(starts, lengths)], lengths)

    def append(self, text: str) -> None:
        """Append a text, which may contain lone surrogates, as file names that are not UTF-8 do."""
        try:
            self._bytes += text.encode()  # The call without arguments is the fast path.
        except UnicodeEncodeError:
            self._bytes += text.encode("utf-8", "surrogatepass")
        self._ends.append(len(self._bytes))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        content, start = bytes(self._bytes), 0
        for end in self._ends[1:]:
            yield content[start:end].decode("utf-8", "surrogatepass")
            start = end

    def __getitem__(self, number: int) -> str:
        return self._bytes[self._ends[number] : self._ends[number + 1]].decode("utf-8", "surrogatepass")


class GroupedTexts:
    """A sequence of tuples of texts, built from a column that holds the texts in any order."""

    ARRAYS = ("bytes", "ends", "order", "group_ends")

    def __init__(self, texts: TextColumn, group_of_text: NDArray[np.int64], num_groups: int) -> None:
        self._texts = texts
        self._order = np.argsort(group_of_text, kind="stable")
        self._ends = np.searchsorted(group_of_text[self._order], np.arange(num_groups + 1))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arguments of `from_arrays`, for storage in a file."""
        return {**self._texts.to_arrays(), "order": self._order, "group_ends": self._ends}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> "GroupedTexts":
        """Return the object whose `to_arrays` returned these arrays."""
        grouped = cls(TextColumn.from_arrays(arrays["bytes"], arrays["ends"]), np.empty(0, dtype=np.int64), 0)
        grouped._order, grouped._ends = arrays["order"], arrays["group_ends"]
        return grouped

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> tuple[str, ...]:
        selected = self._order[self._ends[number] : self._ends[number + 1]]
        return tuple(self._texts[int(i)] for i in selected)

    def followed_by(self, tuples: Iterable[Sequence[str]]) -> "GroupedTexts":
        """Return these tuples followed by others.

        >>> grouped = GroupedTexts(TextColumn(["a"]), np.array([0]), 1).followed_by([("b", "c")])
        >>> grouped[0], grouped[1]
        (('a',), ('b', 'c'))
        """
        texts, ends = self._texts.copy(), [self._ends]
        for group in tuples:
            for text in group:
                texts.append(text)
            ends.append(np.array([len(self._order) + len(texts) - len(self._texts)]))
        more = GroupedTexts(texts, np.empty(0, dtype=np.int64), 0)
        more._order = np.concatenate([self._order, np.arange(len(self._texts), len(texts))])
        more._ends = np.concatenate(ends)
        return more

    def take(self, numbers: NDArray[np.int64]) -> tuple[TextBlock, NDArray[np.int64]]:
        """Return all texts of the tuples with these numbers, and the number of texts of each tuple."""
        starts, counts = self._ends[numbers], self._ends[numbers + 1] - self._ends[numbers]
        return self._texts.take(self._order[ranges(starts, counts)]), counts

    def filled(self) -> NDArray[np.bool_]:
        """Return, for each tuple, whether it is not empty."""
        return np.diff(self._ends) > 0


class NameColumn:
    """A categorical column: one of a few names, or none, for each row.

    >>> column = NameColumn(["train", None, "val", "train"])
    >>> column.names, column.codes().tolist()
    (['train', 'val'], [0, -1, 1, 0])
    """

    def __init__(self, names: Iterable[str | None] = ()) -> None:
        self.names: list[str] = []
        self._codes = array("i")
        self._code_of: dict[str, int] = {}
        for name in names:
            self.append(name)

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Return the arguments of `from_arrays`, for storage in a file."""
        return {"names": np.array(json.dumps(self.names)), "codes": self.codes()}

    @classmethod
    def from_arrays(cls, names: NDArray[Any], codes: NDArray[np.int32]) -> "NameColumn":
        """Return the column whose `to_arrays` returned these arrays."""
        column = cls()
        column.names = json.loads(str(names))
        column._code_of = {name: code for code, name in enumerate(column.names)}
        column._codes = array("i", codes.astype(np.int32).tobytes())
        return column

    def __getitem__(self, number: int) -> str | None:
        code = self._codes[number]
        return None if code < 0 else self.names[code]

    def append(self, name: str | None) -> None:
        """Append a name."""
        self._codes.append(-1 if name is None else self.code(name))

    def code(self, name: str) -> int:
        """Return the index of a name in `names`; a new name is added."""
        if name not in self._code_of:
            self._code_of[name] = len(self.names)
            self.names.append(name)
        return self._code_of[name]

    def __len__(self) -> int:
        return len(self._codes)

    def take(self, numbers: NDArray[np.int64]) -> NDArray[np.int32]:
        """Return the index into `names` for the rows with these numbers, -1 for none."""
        return np.frombuffer(self._codes, dtype=np.int32)[numbers]

    def codes(self) -> NDArray[np.int32]:
        """Return the index into `names` for each row, -1 for none."""
        return np.array(self._codes, dtype=np.int32)


def named_arrays(**columns: TextColumn | GroupedTexts | NameColumn) -> dict[str, NDArray[Any]]:
    """Return the arrays of several columns (`to_arrays`), named by column and array, such as `keys_ends`.

    >>> list(named_arrays(keys=TextColumn(), labels=NameColumn()))
    ['keys_bytes', 'keys_ends', 'labels_names', 'labels_codes']
    """
    return {f"{name}_{part}": array for name, column in columns.items() for part, array in column.to_arrays().items()}
