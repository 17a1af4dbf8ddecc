"""Create the tokenizer of a config: trained on captions, built from its settings, or loaded from a bundle."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Literal, TypeAlias, assert_never

from diptych.core.errors import ConfigError
from diptych.tokenizers.character import CharacterTokenizer
from diptych.tokenizers.clip_bpe import VOCAB_SIZE, ClipBPETokenizer
from diptych.tokenizers.hashing import HashingTokenizer
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.preparation import TextPreparation
from diptych.tokenizers.pretrained import PretrainedTokenizer
from diptych.tokenizers.protocol import Tokenizer
from diptych.tokenizers.sentence_pieces import SentencePieceTokenizer

TokenizerKind: TypeAlias = Literal["character", "learned-bpe", "clip-bpe", "hashing", "pretrained", "sentencepiece"]
"""`character` and `learned-bpe` are trained on captions; `clip-bpe` and `hashing` need no training; `pretrained` and
`sentencepiece` are read from another model's tokenizer file."""
UNTRAINED = frozenset({"clip-bpe", "hashing"})
"""Kinds that need no training."""
PREPARED = frozenset({"pretrained", "sentencepiece"})
"""Kinds that are read from another model's tokenizer file, and need a text preparation."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model")
"""Possible names of the tokenizer file in a bundle and in a run folder; see `tokenizer_file`."""
_LOADERS: dict[TokenizerKind, Callable[..., Tokenizer]] = {
    "character": CharacterTokenizer.load,
    "learned-bpe": LearnedBPETokenizer.load,
    "hashing": HashingTokenizer.load,
    "pretrained": PretrainedTokenizer.load,
    "sentencepiece": SentencePieceTokenizer.load,
}


def tokenizer_file(kind: str) -> str:
    """Return the name of the tokenizer file in a bundle and in a run folder. A sentencepiece model is not JSON.

    >>> tokenizer_file("clip-bpe"), tokenizer_file("sentencepiece")
    ('tokenizer.json', 'tokenizer.model')
    """
    return TOKENIZER_FILES[kind == "sentencepiece"]


def train_tokenizer(
    kind: TokenizerKind,
    captions: Iterable[str],
    *,
    vocab_size: int,
    context_length: int,
    preparation: TextPreparation | None = None,
) -> Tokenizer:
    """Return a tokenizer of the given kind, trained on the captions if the kind needs training.

    >>> train_tokenizer("character", ["a dog"], vocab_size=100, context_length=16).vocab_size
    9

    Args:
        kind: the kind of tokenizer.
        captions: texts to train on; not read by kinds that need no training.
        vocab_size: maximum number of entries for `learned-bpe`, exact number for `clip-bpe` and `hashing`; not used by
            `character`.
        context_length: maximum number of tokens per text.
        preparation: the text preparation; `clip-bpe` uses only its `special_names`, and the other kinds ignore it.

    Raises:
        ConfigError: the kind is read from a file instead of trained, `vocab_size` does not match `clip-bpe`, or `vocab_size` or
            `context_length` is too small.
    """
    match kind:
        case "character":
            return CharacterTokenizer.train(captions, context_length=context_length)
        case "learned-bpe":
            return LearnedBPETokenizer.train(captions, vocab_size=vocab_size, context_length=context_length)
        case "clip-bpe":
            if vocab_size != VOCAB_SIZE:
                raise ConfigError(f"vocab_size is {vocab_size}; clip-bpe requires {VOCAB_SIZE}")
            return _clip_bpe(context_length, preparation)
        case "hashing":
            return HashingTokenizer(vocab_size=vocab_size, context_length=context_length)
        case "pretrained" | "sentencepiece":
            raise ConfigError(
                f"a {kind} tokenizer cannot be trained on captions; name a model that has one with --init, or choose another "
                "tokenizer, such as --model.text.tokenizer learned-bpe"
            )
        case _:
            assert_never(kind)


def load_tokenizer(
    kind: TokenizerKind, path: Path, *, context_length: int, preparation: TextPreparation | None = None
) -> Tokenizer:
    """Return the tokenizer that `Tokenizer.save` wrote to `path`.

    Args:
        kind: the kind of tokenizer.
        path: the file.
        context_length: maximum number of tokens per text.
        preparation: the text preparation, which `pretrained` and `sentencepiece` need. `clip-bpe` uses only its
            `special_names`, and the other kinds ignore it.

    Raises:
        Exception: as for the `load` method of the tokenizer's class.
    """
    preparation = preparation or TextPreparation()
    if kind == "clip-bpe":
        return ClipBPETokenizer.load(path, context_length=context_length, special_names=preparation.special_names)
    if kind in PREPARED:
        return _LOADERS[kind](path, context_length=context_length, preparation=preparation)
    return _LOADERS[kind](path, context_length=context_length)


def _clip_bpe(context_length: int, preparation: TextPreparation | None) -> Tokenizer:
    names = (preparation or TextPreparation()).special_names
    return ClipBPETokenizer(context_length=context_length, special_names=names)
