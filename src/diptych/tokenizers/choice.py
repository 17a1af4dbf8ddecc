"""Which tokenizer a config means: made from captions, or loaded from a bundle."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias

from typing_extensions import assert_never

from diptych.tokenizers.character import CharacterTokenizer
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.protocol import Tokenizer

TokenizerKind: TypeAlias = Literal["character", "learned-bpe"]


def train_tokenizer(kind: TokenizerKind, captions: Iterable[str], *, vocab_size: int, context_length: int) -> Tokenizer:
    """A tokenizer made from the run's own captions; `vocab_size` is the most entries it may have."""
    match kind:
        case "character":
            return CharacterTokenizer.train(captions, context_length=context_length)
        case "learned-bpe":
            return LearnedBPETokenizer.train(captions, vocab_size=vocab_size, context_length=context_length)
        case _:
            assert_never(kind)


def load_tokenizer(kind: TokenizerKind, path: Path, *, context_length: int) -> Tokenizer:
    """The tokenizer whose `save` wrote `path`."""
    match kind:
        case "character":
            return CharacterTokenizer.load(path, context_length=context_length)
        case "learned-bpe":
            return LearnedBPETokenizer.load(path, context_length=context_length)
        case _:
            assert_never(kind)
