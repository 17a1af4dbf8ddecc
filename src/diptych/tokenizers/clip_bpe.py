"""CLIP's byte-pair encoding (Radford et al. 2021, sec. 2.4), with the same ids as open_clip's `SimpleTokenizer`.

A text is cleaned (broken encodings fixed, HTML entities resolved, lowercased) and split at whitespace into chunks. Each chunk
is split into pieces (a sequence of letters, one digit, or a sequence of other characters), each piece into bytes, and the bytes
are merged. No piece spans whitespace, so the ids of a chunk do not depend on its context. They are cached, and encoding a text
of cached chunks takes one lookup per chunk.

The merges are OpenAI's (see NOTICE); `scripts/make_clip_vocabulary.py` created the packaged file from the published one.
"""

import gzip
import json
import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from itertools import chain
from pathlib import Path
from typing import Any

from diptych.core.errors import BundleError
from diptych.core.settings import read_json
from diptych.tokenizers.preparation import SpecialNames, repaired
from diptych.tokenizers.protocol import BaseTokenizer, position_of
from tokenizers import models

VOCABULARY_NAME = "bpe_simple_vocab_16e6.txt.gz"
VOCABULARY_SHA256 = "924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a"
"""Checksum of OpenAI's published file; CLIP uses its first `NUM_MERGES` merges."""
NUM_MERGES = 48_894
MERGES_FILE = "clip_merges.txt.gz"
VOCAB_SIZE = 2 * 256 + NUM_MERGES + 2
MARKS = ("<start_of_text>", "<end_of_text>")
"""Start and end token, the last entries of the vocabulary. If they are written in a caption, they are parsed as such."""
NAMES: dict[SpecialNames, tuple[str, str]] = {"open-clip": MARKS, "openai": ("<|startoftext|>", "<|endoftext|>")}
"""Names of the start and end token that are parsed in a text, by `TextPreparation.special_names`."""

_IDENTITY = {"vocabulary": VOCABULARY_NAME, "sha256": VOCABULARY_SHA256}
_END_OF_WORD = "</w>"
_CONTRACTIONS = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
# ASCII text without characters that cleaning may change: it only needs to be lowercased.
_PLAIN = re.compile(r"[\t\n\r -%'-~]*").fullmatch

_MAX_CACHED_CHUNKS = 2**16
_MAX_CACHED_CHARACTERS = 64


class ClipBPETokenizer(BaseTokenizer):
    """The tokenizer of OpenAI's weights and of most open_clip weights; its vocabulary is fixed.

    The name of the end token in a text is encoded as the end token; `special_names` selects open_clip's or OpenAI's name. As
    in open_clip, `lengths` counts only up to it, but `ids` also contain the rest of the text. Decoding stops at the first end
    token and adds a space after each piece.

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

    def __init__(self, *, context_length: int = 77, special_names: SpecialNames = "open-clip") -> None:
        super().__init__(context_length)
        self.special_names = special_names

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        ids_of = _chunk_ids(self.special_names).__getitem__
        return [
            list(chain.from_iterable(map(ids_of, _clean(text, position).split())))
            for position, text in enumerate(texts)
        ]

    def _text_of(self, ids: Sequence[int]) -> str:
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
        """Write the identity of the vocabulary as JSON; the merges are part of Diptych."""
        path.write_text(json.dumps(_IDENTITY) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, *, context_length: int, special_names: SpecialNames = "open-clip") -> "ClipBPETokenizer":
        """Return the tokenizer that `save` wrote. The file does not contain the names of the special tokens.

        Raises:
            BundleError: the file names a vocabulary other than CLIP's.
        """
        content = read_json(path)
        if content != _IDENTITY:
            raise BundleError(f"{path}: names a vocabulary other than CLIP's {_IDENTITY}: {content!r:.200}")
        return cls(context_length=context_length, special_names=special_names)


def clip_merges() -> list[tuple[str, str]]:
    """Return CLIP's merges in order of priority; bytes are written as characters, and `</w>` ends a piece.

    >>> clip_merges()[:3]
    [('i', 'n'), ('t', 'h'), ('a', 'n')]
    """
    return [*_merges()]


def clip_vocabulary() -> dict[str, int]:
    """Return the id of each entry: bytes, bytes that end a piece, merged pairs, start and end token.

    >>> vocabulary = clip_vocabulary()
    >>> vocabulary["!"], vocabulary["dog</w>"], vocabulary["<end_of_text>"]
    (0, 1929, 49407)
    """
    return {entry: i for i, entry in enumerate(_entries())}


class _ChunkIds(dict[str, list[int]]):
    """Cache of the ids of chunks. Missing chunks are computed; the cache is cleared when it is full."""

    def __init__(self, special_names: SpecialNames) -> None:
        super().__init__()
        vocabulary, names = clip_vocabulary(), NAMES[special_names]
        self._special_ids = {name: vocabulary[mark] for name, mark in zip(names, MARKS, strict=True)}
        self._special_names = special_names
        self._engine = models.BPE(vocabulary, _merges(), end_of_word_suffix=_END_OF_WORD)

    def __missing__(self, chunk: str) -> list[int]:
        pieces = _ascii_piece(self._special_names) if chunk.isascii() else _any_piece(self._special_names)
        ids = [i for piece in pieces.findall(chunk) for i in self._ids_of_piece(piece)]
        if len(chunk) <= _MAX_CACHED_CHARACTERS:
            if len(self) >= _MAX_CACHED_CHUNKS:
                self.clear()
            self[chunk] = ids
        return ids

    def _ids_of_piece(self, piece: str) -> list[int]:
        if piece in self._special_ids:
            return [self._special_ids[piece]]
        spelled = piece.encode("utf-8").decode("latin-1").translate(_characters_of_bytes())
        return [token.id for token in self._engine.tokenize(spelled)]


@cache
def _ascii_piece(special_names: SpecialNames) -> re.Pattern[str]:
    """Return a pattern that splits lowercase ASCII text into pieces. `re` imports faster than `regex` (`_any_piece`)."""
    names = map(re.escape, NAMES[special_names])
    return re.compile("|".join([*names, *_CONTRACTIONS, r"[a-z]+", r"[0-9]", r"[^\sa-z0-9]+"]))


@cache
def _any_piece(special_names: SpecialNames) -> Any:
    """Return a pattern that splits any lowercase text into pieces."""
    import regex  # noqa: PLC0415  (the import takes 40 ms)

    # IGNORECASE also matches the long s of "'ſ" as an s.
    names = map(re.escape, NAMES[special_names])
    pieces = "|".join([*names, *_CONTRACTIONS, r"[\p{L}]+", r"[\p{N}]", r"[^\s\p{L}\p{N}]+"])
    return regex.compile(pieces, regex.IGNORECASE)


@cache
def _chunk_ids(special_names: SpecialNames) -> _ChunkIds:
    return _ChunkIds(special_names)


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
    """Return a visible character for each byte, as in GPT-2: the Latin-1 character if printable, else one from U+0100 on."""
    hidden = [byte for byte in range(256) if not chr(byte).isprintable() or byte == ord(" ")]
    return {byte: chr(byte) for byte in range(256)} | {byte: chr(256 + i) for i, byte in enumerate(hidden)}


@cache
def _bytes_of_characters() -> dict[str, int]:
    return {character: byte for byte, character in _characters_of_bytes().items()}


def _clean(text: str, position: int) -> str:
    if _PLAIN(text):
        return text.lower()
    with position_of(position):
        return repaired(text).lower()
