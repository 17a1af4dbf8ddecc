"""A character-level tokenizer whose alphabet comes from the training captions. It is small and easy to follow."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from diptych.core.errors import BundleError
from diptych.core.settings import read_json
from diptych.tokenizers.protocol import SPECIAL_TOKENS, UNKNOWN, BaseTokenizer


class CharacterTokenizer(BaseTokenizer):
    """Lowercases the text, collapses whitespace, and maps each character to an id.

    The vocabulary consists of the alphabet and four special tokens. Other characters become the unknown token.

    >>> tokenizer = CharacterTokenizer.train(["a red circle"], context_length=32)
    >>> encoded = tokenizer.encode(["A  circle"])
    >>> tokenizer.decode(encoded.ids[0].tolist())
    'a circle'
    """

    kind = "character"

    def __init__(self, alphabet: Sequence[str], *, context_length: int) -> None:
        super().__init__(context_length)
        self.alphabet = tuple(alphabet)
        self.vocab_size = len(SPECIAL_TOKENS) + len(self.alphabet)
        self._ids = {character: len(SPECIAL_TOKENS) + i for i, character in enumerate(self.alphabet)}

    @classmethod
    def train(cls, captions: Iterable[str], *, context_length: int) -> "CharacterTokenizer":
        """Return a tokenizer whose alphabet is the set of characters in the captions."""
        return cls(
            sorted({character for text in captions for character in _clean(text)}), context_length=context_length
        )

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._ids.get(character, UNKNOWN) for character in _clean(text)] for text in texts]

    def _text_of(self, ids: Sequence[int]) -> str:
        first = len(SPECIAL_TOKENS)
        return "".join(self.alphabet[i - first] for i in ids if i >= first)

    def save(self, path: Path) -> None:
        """Write the alphabet as JSON."""
        path.write_text(json.dumps({"alphabet": "".join(self.alphabet)}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, *, context_length: int) -> "CharacterTokenizer":
        """Return the tokenizer that `save` wrote.

        Raises:
            BundleError: the alphabet is not a string.
        """
        alphabet = read_json(path)["alphabet"]
        if not isinstance(alphabet, str):
            raise BundleError(f"{path}: its alphabet is not a string")
        return cls(alphabet, context_length=context_length)


def _clean(text: str) -> str:
    return " ".join(text.lower().split())
