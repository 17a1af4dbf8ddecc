"""Create the tokenizer of a config: trained on captions, built from its settings, or loaded from a bundle."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeAlias, assert_never

from diptych.core.errors import ConfigError
from diptych.tokenizers.character import CharacterTokenizer
from diptych.tokenizers.clip_bpe import VOCAB_SIZE, ClipBPETokenizer
from diptych.tokenizers.hashing import HashingTokenizer
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.protocol import Tokenizer

TokenizerKind: TypeAlias = Literal["character", "learned-bpe", "clip-bpe", "hashing"]
"""`character` and `learned-bpe` are trained on captions; `clip-bpe` and `hashing` need no training."""
UNTRAINED = frozenset({"clip-bpe", "hashing"})
"""Kinds that need no training."""
_LOADERS: dict[TokenizerKind, Callable[..., Tokenizer]] = {
    "character": CharacterTokenizer.load,
    "learned-bpe": LearnedBPETokenizer.load,
    "clip-bpe": ClipBPETokenizer.load,
    "hashing": HashingTokenizer.load,
}


def train_tokenizer(kind: TokenizerKind, captions: Iterable[str], *, vocab_size: int, context_length: int) -> Tokenizer:
    """Return a tokenizer of the given kind, trained on the captions if the kind needs training.

    >>> train_tokenizer("character", ["a dog"], vocab_size=100, context_length=16).vocab_size
    9

    Args:
        kind: the kind of tokenizer.
        captions: texts to train on; not read by kinds that need no training.
        vocab_size: maximum number of entries for `learned-bpe`, exact number for `clip-bpe` and `hashing`; not used by
            `character`.
        context_length: maximum number of tokens per text.

    Raises:
        ConfigError: `vocab_size` does not match `clip-bpe`, or `vocab_size` or `context_length` is too small.
    """
    match kind:
        case "character":
            return CharacterTokenizer.train(captions, context_length=context_length)
        case "learned-bpe":
            return LearnedBPETokenizer.train(captions, vocab_size=vocab_size, context_length=context_length)
        case "clip-bpe":
            if vocab_size != VOCAB_SIZE:
                raise ConfigError(f"vocab_size is {vocab_size}; clip-bpe requires {VOCAB_SIZE}")
            return ClipBPETokenizer(context_length=context_length)
        case "hashing":
            return HashingTokenizer(vocab_size=vocab_size, context_length=context_length)
        case _:
            assert_never(kind)


def load_tokenizer(kind: TokenizerKind, path: Path, *, context_length: int) -> Tokenizer:
    """Return the tokenizer that its `save` wrote to `path`.

    Raises:
        Exception: as for the `load` method of the tokenizer's class.
    """
    return _LOADERS[kind](path, context_length=context_length)
