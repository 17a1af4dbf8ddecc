"""The tokenizer protocol and shared functions: add start and end tokens, truncate to the context length, and pad.

Shapes: B texts, T tokens of the longest text.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, get_args, runtime_checkable

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from diptych.core.errors import ConfigError, DataError, unknown_name

Truncate: TypeAlias = Literal["end", "error"]
"""How to treat a text longer than the context: `end` truncates it but keeps the end token, `error` raises an error."""

PAD, UNKNOWN, START, END = 0, 1, 2, 3
SPECIAL_TOKENS = ("<pad>", "<unk>", "<start>", "<end>")
"""The first entries of the vocabularies of all tokenizers but `clip-bpe`, in the order of their ids."""


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """Token ids, padded to the longest text of the call."""

    ids: Int64[ndarray, "B T"]
    lengths: Int64[ndarray, " B"]
    """Number of tokens of each text that the model reads, at least 1. If the tokenizer stops at the end token, the first end
    token of a text is at index `length - 1`."""
    num_cut: int
    """Number of texts that were longer than the context. Their end token is kept."""


@runtime_checkable
class Tokenizer(Protocol):
    """Converts texts to ids and back. It is stored in the bundle as one file."""

    kind: str
    """The name of the tokenizer in a config."""
    context_length: int
    """Maximum number of tokens per text, including the start and end tokens."""
    pad_id: int
    """Id of the padding after a text."""

    @property
    def stops_at_end(self) -> bool:
        """Whether `lengths` counts a text only up to its first end token, which may be part of the text."""

    @property
    def start_id(self) -> int | None:
        """Id of the token before each text; None if there is none."""

    @property
    def end_id(self) -> int | None:
        """Id of the token after each text; None if there is none."""

    @property
    def vocab_size(self) -> int:
        """The number of different ids."""

    def encode(self, texts: Sequence[str], *, truncate: Truncate = "end") -> Encoded:
        """Return the ids of the texts.

        An empty text is encoded as the start and end tokens; if the tokenizer adds neither, as one token of padding.

        Raises:
            DataError: an element is not a string, or a text is too long and `truncate` is "error". The message names its
                position.
        """

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, without special tokens."""

    def save(self, path: Path) -> None:
        """Write everything that `load` needs into one file."""


class BaseTokenizer(ABC):
    """The checks, truncation and padding that all tokenizers of this package share.

    Subclasses set `vocab_size`, and their own special ids if these differ.
    """

    vocab_size: int
    pad_id: int = PAD
    start_id: int | None = START
    end_id: int | None = END
    stops_at_end: bool = True

    def __init__(self, context_length: int) -> None:
        check_context_length(context_length)
        self.context_length = context_length

    def encode(self, texts: Sequence[str], *, truncate: Truncate = "end") -> Encoded:
        """Return the ids of the texts; see `Tokenizer.encode`.

        Raises:
            DataError: an element is not a string or cannot be tokenized, or a text is too long and `truncate` is "error".
        """
        check_texts(texts)
        return pad_and_mark(
            self._rows(texts),
            context_length=self.context_length,
            truncate=truncate,
            pad_id=self.pad_id,
            start_id=self.start_id,
            end_id=self.end_id,
            stops_at_end=self.stops_at_end,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of the ids, without special tokens.

        Raises:
            DataError: an id is outside the vocabulary.
        """
        check_ids(ids, vocab_size=self.vocab_size)
        return self._text_of(ids)

    @abstractmethod
    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, without special tokens and of any length."""

    @abstractmethod
    def _text_of(self, ids: Sequence[int]) -> str:
        """Return the text of valid ids, without special tokens."""


def encodable(text: str) -> str:
    """Return a text that can be encoded as UTF-8: lone surrogates, which JSON can contain, become U+FFFD.

    >>> encodable("dog " + chr(0xD800)) == "dog " + chr(0xFFFD)
    True
    """
    return text if text.isascii() else text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


@contextmanager
def position_of(position: int) -> Iterator[None]:
    """Add the position of a text to the message of a `DataError` that its preparation raises."""
    try:
        yield
    except DataError as error:
        raise DataError(f"text {position} {error}") from None


def check_texts(texts: Sequence[str]) -> None:
    """Refuse anything but a sequence of strings.

    Raises:
        DataError: `texts` is a string, or one of its elements is not a string.
    """
    if isinstance(texts, str):
        raise DataError("the tokenizer expects a list of texts, not one string; write [text]")
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"text {position} is not a string but {type(text).__name__}: {text!r:.60}")


def check_context_length(context_length: int) -> None:
    """Refuse a context length that leaves no room for a token.

    Raises:
        ConfigError: the context length is below 3.
    """
    if context_length < 3:
        raise ConfigError(
            f"the context length is {context_length}; it must be at least 3, for a start token, a token and an end token"
        )


def check_ids(ids: Sequence[int], *, vocab_size: int) -> None:
    """Refuse ids outside the vocabulary.

    Raises:
        DataError: an id is negative, or not below `vocab_size`. The message names its position.
    """
    for position, i in enumerate(ids):
        if not 0 <= i < vocab_size:
            raise DataError(f"id {i} at position {position} is outside the vocabulary of {vocab_size} entries")


def pad_and_mark(
    tokens: Sequence[Sequence[int]],
    *,
    context_length: int,
    truncate: Truncate = "end",
    pad_id: int = PAD,
    start_id: int | None = START,
    end_id: int | None = END,
    stops_at_end: bool = True,
) -> Encoded:
    """Add start and end tokens, truncate to the context length, and pad to the longest text.

    >>> pad_and_mark([[7, 8], [9]], context_length=8).ids.tolist()
    [[2, 7, 8, 3], [2, 9, 3, 0]]
    >>> pad_and_mark([[7, 8], []], context_length=8, start_id=None).ids.tolist()
    [[7, 8, 3], [3, 0, 0]]
    >>> pad_and_mark([[]], context_length=8, start_id=None, end_id=None).ids.tolist()  # A text has at least one token.
    [[0]]

    Args:
        tokens: ids of each text, without special tokens.
        context_length: maximum number of tokens per text, including added ones.
        truncate: how to treat a longer text.
        pad_id: id of the padding.
        start_id: id of the token before each text; None to add none.
        end_id: id of the token after each text; None to add none.
        stops_at_end: whether the length of a text counts only up to its first end token, which may be part of the text.

    Raises:
        DataError: a text is longer than the context and `truncate` is "error".
        ConfigError: `truncate` is neither "end" nor "error".
    """
    before, after = ([] if token is None else [token] for token in (start_id, end_id))
    room = context_length - len(before) - len(after)
    num_cut = sum(len(row) > room for row in tokens)
    if truncate != "end":
        _refuse_too_long(tokens, room=room, context_length=context_length, truncate=truncate)
    marked = [[*before, *row[:room], *after] or [pad_id] for row in tokens]
    ids = np.full((len(marked), max(map(len, marked), default=2)), pad_id, dtype=np.int64)
    for into, row in zip(ids, marked, strict=True):
        into[: len(row)] = row
    stop = end_id if stops_at_end else None
    lengths = np.array([len(row) if stop is None else row.index(stop) + 1 for row in marked], dtype=np.int64)
    return Encoded(ids=ids, lengths=lengths, num_cut=num_cut)


def _refuse_too_long(tokens: Sequence[Sequence[int]], *, room: int, context_length: int, truncate: str) -> None:
    if truncate not in get_args(Truncate):
        raise ConfigError(unknown_name("value of truncate", truncate, get_args(Truncate)))
    for position, row in enumerate(tokens):
        if len(row) > room:
            num = len(row) + context_length - room
            raise DataError(
                f"text {position} has {num} tokens, including the start and end tokens; the context holds "
                f'{context_length}. Shorten it, or cut it with truncate="end".'
            )
