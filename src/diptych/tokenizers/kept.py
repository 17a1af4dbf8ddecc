"""Tokenizers that were made from the same captions before, from the cache folder."""

import unicodedata
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

import tokenizers
from diptych.core.array_cache import ArrayCache
from diptych.tokenizers.load_tokenizer import TokenizerKind, load_tokenizer, train_tokenizer
from diptych.tokenizers.protocol import Tokenizer

_CACHE_VERSION = 1
"""To be raised with any change that could make another tokenizer from the same captions."""


def kept_or_trained(
    kind: TokenizerKind, captions: Iterable[str], *, captions_hash: str, vocab_size: int, context_length: int
) -> Tokenizer:
    """The tokenizer that `train_tokenizer` makes, from the cache if it was made before.

    A full or missing folder for temporary files is no error: the tokenizer is made, and not kept.

    Args:
        kind: as for `train_tokenizer`.
        captions: read only if the tokenizer is made.
        captions_hash: differs between any two sets of captions.
        vocab_size: as for `train_tokenizer`.
        context_length: as for `train_tokenizer`; it is no part of what is kept.

    Raises:
        ConfigError: as `train_tokenizer`.
    """
    versions = [_CACHE_VERSION, tokenizers.__version__, unicodedata.unidata_version]
    key = [kind, vocab_size if kind == "learned-bpe" else None, captions_hash, versions]
    cache = ArrayCache()
    kept = cache.get("tokenizer", key)
    if kept is not None:
        with (
            suppress(Exception),
            TemporaryDirectory() as folder,
        ):  # `load` has errors of its own for what cannot be read.
            path = Path(folder) / "tokenizer"
            path.write_bytes(kept["content"].tobytes())
            return load_tokenizer(kind, path, context_length=context_length)
    tokenizer = train_tokenizer(kind, captions, vocab_size=vocab_size, context_length=context_length)
    with suppress(Exception), TemporaryDirectory() as folder:  # The engine raises `Exception` for a full disk.
        path = Path(folder) / "tokenizer"
        tokenizer.save(path)
        cache.put("tokenizer", key, {"content": np.frombuffer(path.read_bytes(), dtype=np.uint8)})
    return tokenizer
