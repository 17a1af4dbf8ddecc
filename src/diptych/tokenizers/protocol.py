"""The contract of every tokenizer, and what they share: marks at both ends, the cut at the context, the padding.

Shapes: B texts, T tokens of the longest text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from diptych.core.errors import DataError

PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<unk>", "<start>", "<end>")
"""The first entries of every vocabulary that is learned from captions, in the order of their ids."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids, padded to the longest text of the call and no further."""

    ids: Int64[ndarray, "B T"]
    lengths: Int64[ndarray, " B"]
    """Tokens of each text, the start and the end mark included; the end mark stands at `length - 1`."""
    num_cut: int
    """Texts that were longer than the context. Their end mark is kept."""


@runtime_checkable
class Tokenizer(Protocol):
    """Turns texts into ids and back. Saved inside the bundle as one file."""

    kind: str
    """The name under which a config chooses it."""
    context_length: int
    """The most tokens a text may have, both marks included."""

    @property
    def vocab_size(self) -> int:
        """The number of different ids."""

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Ids of the texts. An empty text is legal: it is the two marks.

        Raises:
            DataError: an element is not a string; its position is named.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids, without marks and padding."""

    def save(self, path: Path) -> None:
        """Write everything that `load` needs into one file."""


def check_texts(texts: Sequence[str]) -> None:
    """Refuse anything but a sequence of strings.

    Raises:
        DataError: `texts` is itself a string, or one of its elements is not a string.
    """
    if isinstance(texts, str):
        raise DataError("the tokenizer takes a list of texts; it was given one string. Write [text].")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {position} is not a string but {type(text).__name__}: {text!r:.60}")


def pad_and_mark(tokens: Sequence[Sequence[int]], *, context_length: int) -> Encoded:
    """Start mark, tokens, end mark; cut to the context, padded to the longest.

    >>> pad_and_mark([[7, 8], [9]], context_length=8).ids.tolist()
    [[2, 7, 8, 3], [2, 9, 3, 0]]
    """
    room = context_length - 2
    lengths = np.array([min(len(row), room) + 2 for row in tokens], dtype=np.int64)
    ids = np.full((len(tokens), int(lengths.max(initial=2))), PAD, dtype=np.int64)
    for row, source in enumerate(tokens):
        marked = [START, *source[:room], END]
        ids[row, : len(marked)] = marked
    return Encoded(ids=ids, lengths=lengths, num_cut=sum(len(row) > room for row in tokens))
