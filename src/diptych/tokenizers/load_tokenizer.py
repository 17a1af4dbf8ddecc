"""Which tokenizer a config means: made from captions, made from its settings, or loaded from a bundle."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias, assert_never

from diptych.core.errors import ConfigError
from diptych.tokenizers.character import CharacterTokenizer
from diptych.tokenizers.clip_bpe import VOCAB_SIZE, ClipBPETokenizer
from diptych.tokenizers.hashing import HashingTokenizer
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.protocol import Tokenizer

TokenizerKind: TypeAlias = Literal["character", "learned-bpe", "clip-bpe", "hashing"]
"""`character` and `learned-bpe` are made from captions; `clip-bpe` and `hashing` read none."""
UNTRAINED = frozenset({"clip-bpe", "hashing"})
"""Kinds that read no captions."""


def train_tokenizer(kind: TokenizerKind, captions: Iterable[str], *, vocab_size: int, context_length: int) -> Tokenizer:
    """A tokenizer made from the run's own captions; `vocab_size` is the most entries it may have.

    Raises:
        ConfigError: `clip-bpe` with another `vocab_size` than its own, or a size or context too small to use.
    """
    match kind:
        case "character":
            return CharacterTokenizer.train(captions, context_length=context_length)
        case "learned-bpe":
            return LearnedBPETokenizer.train(captions, vocab_size=vocab_size, context_length=context_length)
        case "clip-bpe":
            if vocab_size != VOCAB_SIZE:
                raise ConfigError(
                    f"vocab_size is {vocab_size}; that of clip-bpe is always {VOCAB_SIZE}: set it to that"
                )
            return ClipBPETokenizer(context_length=context_length)
        case "hashing":
            return HashingTokenizer(vocab_size=vocab_size, context_length=context_length)
        case _:
            assert_never(kind)


def load_tokenizer(kind: TokenizerKind, path: Path, *, context_length: int) -> Tokenizer:
    """The tokenizer whose `save` wrote `path`."""
    match kind:
        case "character":
            return CharacterTokenizer.load(path, context_length=context_length)
        case "learned-bpe":
            return LearnedBPETokenizer.load(path, context_length=context_length)
        case "clip-bpe":
            return ClipBPETokenizer.load(path, context_length=context_length)
        case "hashing":
            return HashingTokenizer.load(path, context_length=context_length)
        case _:
            assert_never(kind)
