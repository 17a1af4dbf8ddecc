"""Cache of tokenizers that were trained on the same captions before."""

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
"""Increment it with any change that could produce another tokenizer from the same captions."""


def kept_or_trained(
    kind: TokenizerKind, captions: Iterable[str], *, captions_hash: str, vocab_size: int, context_length: int
) -> Tokenizer:
    """Return the tokenizer that `train_tokenizer` returns, from the cache if it was trained before.

    If the folder for temporary files is full or missing, the tokenizer is trained and not cached.

    Args:
        kind: as for `train_tokenizer`.
        captions: read only if the tokenizer is not in the cache.
        captions_hash: a hash of the captions.
        vocab_size: as for `train_tokenizer`.
        context_length: as for `train_tokenizer`; it is not part of the cached tokenizer.

    Raises:
        ConfigError: as for `train_tokenizer`.
    """
    versions = [_CACHE_VERSION, tokenizers.__version__, unicodedata.unidata_version]
    key = [kind, vocab_size if kind == "learned-bpe" else None, captions_hash, versions]
    cache = ArrayCache()
    cached = cache.get("tokenizer", key)
    if cached is not None:
        # `load` raises errors of several classes if the content cannot be read.
        with suppress(Exception), TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer"
            path.write_bytes(cached["content"].tobytes())
            return load_tokenizer(kind, path, context_length=context_length)
    tokenizer = train_tokenizer(kind, captions, vocab_size=vocab_size, context_length=context_length)
    with suppress(Exception), TemporaryDirectory() as folder:  # The engine raises `Exception` for a full disk.
        path = Path(folder) / "tokenizer"
        tokenizer.save(path)
        cache.put("tokenizer", key, {"content": np.frombuffer(path.read_bytes(), dtype=np.uint8)})
    return tokenizer
