"""A tokenizer that hashes words to ids. It needs no training and has a vocabulary of any size; decoding is not possible."""

import json
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json
from diptych.tokenizers.protocol import SPECIAL_TOKENS, BaseTokenizer

_WORD = re.compile(r"\w+|[^\w\s]")
_HASH = "crc32 of the word's UTF-8"


class HashingTokenizer(BaseTokenizer):
    """Lowercases the text, splits it into words and punctuation characters, and hashes each into `vocab_size - 4` buckets.

    The hash is the same on every machine. Words that share a bucket are the same token to the model (Weinberger et al. 2009).
    `decode` returns the buckets, because the words cannot be recovered.

    >>> tokenizer = HashingTokenizer(vocab_size=1000, context_length=16)
    >>> encoded = tokenizer.encode(["Two dogs, two cats"])
    >>> tokenizer.decode(encoded.ids[0].tolist())
    '#114 #7 #146 #114 #330'
    """

    kind = "hashing"

    def __init__(self, *, vocab_size: int, context_length: int) -> None:
        super().__init__(context_length)
        if vocab_size <= len(SPECIAL_TOKENS):
            raise ConfigError(
                f"the hashing tokenizer's vocab_size is {vocab_size}; four special tokens and a bucket need 5"
            )
        self.vocab_size = vocab_size

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        return [[self._id(word) for word in _WORD.findall(_clean(text))] for text in texts]

    def _text_of(self, ids: Sequence[int]) -> str:
        first = len(SPECIAL_TOKENS)
        return " ".join(f"#{i - first}" for i in ids if i >= first)

    def save(self, path: Path) -> None:
        """Write the size of the vocabulary and the name of the hash as JSON."""
        path.write_text(json.dumps({"vocab_size": self.vocab_size, "hash": _HASH}) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: Path, *, context_length: int) -> "HashingTokenizer":
        """Return the tokenizer that `save` wrote.

        Raises:
            BundleError: the tokenizer uses another hash function.
        """
        content = read_json(path)
        if content["hash"] != _HASH:
            raise BundleError(f"{path}: its hash is '{content['hash']}'; this version of Diptych knows '{_HASH}'")
        return cls(vocab_size=content["vocab_size"], context_length=context_length)

    def _id(self, word: str) -> int:
        bucket = crc32(word.encode("utf-8", "surrogatepass")) % (self.vocab_size - len(SPECIAL_TOKENS))
        return len(SPECIAL_TOKENS) + bucket


def _clean(text: str) -> str:
    return unicodedata.normalize("NFC", text).lower()
