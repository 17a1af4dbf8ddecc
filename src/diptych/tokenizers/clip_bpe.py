"""CLIP's own byte-pair encoding (Radford et al. 2021, sec. 2.4), id for id as open_clip's `SimpleTokenizer` gives it.

A text is cleaned (broken encodings mended, HTML entities resolved, lower case), split at white space into chunks, each
chunk into pieces (a run of letters, one digit, a run of anything else), each piece into bytes, and those are merged. No
piece reaches over white space, so the ids of a chunk are the same wherever it stands: they are kept, and a text of known
chunks costs one look-up each.

The merges are OpenAI's (see NOTICE); `scripts/make_clip_vocabulary.py` made the packaged file from the published one.
"""

import gzip
import html
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path

import ftfy
import regex

from diptych.core.errors import BundleError, DataError
from diptych.core.settings import read_json
from diptych.tokenizers.protocol import (
    Encoded,
    Truncate,
    check_context_length,
    check_ids,
    check_texts,
    pad_and_mark,
)
from tokenizers import models

VOCABULARY_NAME = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
"""Of OpenAI's published file, of which CLIP reads the first `NUM_MERGES` merges."""
NUM_MERGES = 48_894
MERGES_FILE = "clip_merges.txt.gz"
VOCAB_SIZE = 2 * 256 + NUM_MERGES + 2
MARKS = ("<start_of_text>", "<end_of_text>")
"""The last entries of the vocabulary. Unlike other tokenizers' marks they are marks in a caption, too."""

_IDENTITY = {"vocabulary": VOCABULARY_NAME, "sha256": VOCABULARY_SHA256}
_END_OF_WORD = "</w>"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# Matched without regard to case although the text is lower case by then: the long s of "'ſ" still counts as an s.
_PIECE = regex.compile(
    "|".join([*MARKS, *_CONTRACTIONS, r"[\p{L}]+", r"[\p{N}]", r"[^\s\p{L}\p{N}]+"]), regex.IGNORECASE
)
# ASCII in which nothing is broken and no entity can begin: cleaning it is lower-casing it.
_PLAIN = re.compile(r"[\t\n\r -%'-~]*").fullmatch

_MAX_CHUNKS_KEPT = 2**16
_MAX_CHUNK_KEPT_CHARACTERS = 64


class ClipBPETokenizer:
    """The tokenizer of OpenAI's weights and of most weights of open_clip; its vocabulary is fixed.

    >>> tokenizer = ClipBPETokenizer()
    >>> encoded = tokenizer.encode(["A dog's life"])
    >>> encoded.ids.tolist()
    [[49406, 320, 1929, 568, 970, 49407]]
    >>> tokenizer.decode(encoded.ids[0].tolist())
    "a dog 's life"
    """

    kind = "clip-bpe"
    vocab_size = VOCAB_SIZE
    pad_id, start_id, end_id = 0, VOCAB_SIZE - 2, VOCAB_SIZE - 1

    def __init__(self, *, context_length: int = 77) -> None:
        check_context_length(context_length)
        self.context_length = context_length

    def encode(self, texts: Sequence[str], *, truncate: Truncate = "end") -> Encoded:
        """Ids of the texts. An end mark written in a text is one: `lengths` ends there, `ids` go on as the peer's do.

        Raises:
            DataError: an element is no string, cannot be cleaned, or is too long where `truncate` is "error"; its position
                is named.
        """
        check_texts(texts)
        ids_of = _chunk_ids().__getitem__
        rows = [
            list(chain.from_iterable(map(ids_of, _clean(text, position).split())))
            for position, text in enumerate(texts)
        ]
        return pad_and_mark(
            rows,
            context_length=self.context_length,
            truncate=truncate,
            pad_id=self.pad_id,
            start_id=self.start_id,
            end_id=self.end_id,
        )

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids up to their first end mark, a space after every piece, without marks."""
        check_ids(ids, vocab_size=self.vocab_size)
        entries, spelling = _entries(), _bytes_of_characters()
        shown = b""
        for i in ids:
            if i == self.end_id:
                break
            if i != self.start_id:
                word, ends, _ = entries[i].partition(_END_OF_WORD)
                shown += bytes(spelling[character] for character in word) + b" " * bool(ends)
        return shown.decode("utf-8", errors="replace").strip()

    def save(self, path: Path) -> None:
        """Write which vocabulary this is, as JSON; the merges are part of Diptych."""
        path.write_text(json.dumps(_IDENTITY) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, *, context_length: int) -> "ClipBPETokenizer":
        """The tokenizer that `save` wrote.

        Raises:
            BundleError: it names another vocabulary than CLIP's.
        """
        content = read_json(path)
        if content != _IDENTITY:
            raise BundleError(f"{path}: names another vocabulary than CLIP's {_IDENTITY}: {content!r:.200}")
        return cls(context_length=context_length)


def clip_merges() -> list[tuple[str, str]]:
    """The pairs that CLIP merges, first come first; bytes are written as characters, `</w>` ends a piece.

    >>> clip_merges()[:3]
    [('i', 'n'), ('t', 'h'), ('a', 'n')]
    """
    return [*_merges()]


def clip_vocabulary() -> dict[str, int]:
    """Id of each entry: the bytes, the bytes that end a piece, the merged pairs, the marks.

    >>> vocabulary = clip_vocabulary()
    >>> vocabulary["!"], vocabulary["dog</w>"], vocabulary["<end_of_text>"]
    (0, 1929, 49407)
    """
    return {entry: i for i, entry in enumerate(_entries())}


class _ChunkIds(dict[str, list[int]]):
    """Ids of each chunk met so far; a new one is worked out. It starts afresh when it is full."""

    def __init__(self) -> None:
        super().__init__()
        vocabulary = clip_vocabulary()
        self._marks = {mark: vocabulary[mark] for mark in MARKS}
        self._engine = models.BPE(vocabulary, _merges(), end_of_word_suffix=_END_OF_WORD)

    def __missing__(self, chunk: str) -> list[int]:
        ids = [i for piece in _PIECE.findall(chunk) for i in self._ids_of_piece(piece)]
        if len(chunk) <= _MAX_CHUNK_KEPT_CHARACTERS:
            if len(self) >= _MAX_CHUNKS_KEPT:
                self.clear()
            self[chunk] = ids
        return ids

    def _ids_of_piece(self, piece: str) -> list[int]:
        if piece in self._marks:
            return [self._marks[piece]]
        spelled = piece.encode("utf-8").decode("latin-1").translate(_characters_of_bytes())
        return [token.id for token in self._engine.tokenize(spelled)]


@cache
def _chunk_ids() -> _ChunkIds:
    return _ChunkIds()


@cache
def _merges() -> list[tuple[str, str]]:
    text = gzip.decompress(files("diptych.tokenizers").joinpath(MERGES_FILE).read_bytes()).decode("utf-8")
    return [(left, right) for left, right in map(str.split, text.splitlines())]


@cache
def _entries() -> list[str]:
    characters = sorted(_characters_of_bytes().values())
    ends = [character + _END_OF_WORD for character in characters]
    return [*characters, *ends, *map("".join, _merges()), *MARKS]


@cache
def _characters_of_bytes() -> dict[int, str]:
    """A visible character for each byte, as in GPT-2: itself where it has one in Latin-1, else one from U+0100 on."""
    hidden = [byte for byte in range(256) if not chr(byte).isprintable() or byte == ord(" ")]
    return {byte: chr(byte) for byte in range(256)} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@cache
def _bytes_of_characters() -> dict[str, int]:
    return {character: byte for byte, character in _characters_of_bytes().items()}


def _clean(text: str, position: int) -> str:
    if _PLAIN(text):
        return text.lower()
    try:
        return html.unescape(html.unescape(ftfy.fix_text(text))).lower()
    except ValueError as error:
        raise DataError(f"text {position} cannot be cleaned: {error}") from None
