"""Tokenizers of other models, read from the `tokenizer.json` of Hugging Face's `tokenizers` library.

The file is stored unchanged in the bundle and is used only for the text itself. Start and end tokens, truncation and padding
follow the text preparation in the model's config (`preparation.py`), not the file.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_bytes
from diptych.tokenizers.merges import check_merges
from diptych.tokenizers.preparation import TextPreparation, clean_text, normalized_text
from diptych.tokenizers.protocol import BaseTokenizer, encodable, position_of
from tokenizers import Tokenizer as Engine
from tokenizers import normalizers

MAX_BYTES = 128 * 2**20
"""Maximum size of the file. Gemma's file, which SigLIP 2 uses, has 34 MB; XLM-V's has 900,000 entries."""


class PreparedTokenizer(BaseTokenizer):
    """Base class of tokenizers with a text preparation: its ids and their checks."""

    def __init__(self, *, context_length: int, preparation: TextPreparation, vocab_size: int) -> None:
        """Set the ids from the preparation.

        Raises:
            ConfigError: the context is too short, there is no vocabulary, or an id of the preparation is outside it.
        """
        super().__init__(context_length)
        if vocab_size < 1:
            raise ConfigError("the tokenizer has no vocabulary")
        self.preparation, self.vocab_size = preparation, vocab_size
        self.pad_id, self.start_id, self.end_id = preparation.pad_id, preparation.start_id, preparation.end_id
        self.stops_at_end = preparation.stops_at_end and preparation.end_id is not None
        for name in ("start_id", "end_id", "pad_id"):
            found = getattr(preparation, name)
            if found is not None and not 0 <= found < vocab_size:
                raise ConfigError(
                    f"model.text.preparation.{name} is {found}, outside the vocabulary of {vocab_size} entries"
                )

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        """Return the prepared texts.

        Raises:
            DataError: a text cannot be cleaned; the message names its position.
        """
        prepared = []
        for position, text in enumerate(texts):
            with position_of(position):
                cleaned = clean_text(encodable(text), self.preparation)
            prepared.append(encodable(self._normalized(cleaned)))
        return prepared

    def _normalized(self, text: str) -> str:
        return normalized_text(text, self.preparation)


class PretrainedTokenizer(PreparedTokenizer):
    """A tokenizer from a `tokenizer.json`, with the text preparation of its model.

    >>> from tokenizers import models, pre_tokenizers
    >>> engine = Engine(models.WordLevel({"[PAD]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "dog": 4}))
    >>> engine.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> preparation = TextPreparation(lowercase=True, start_id=1, end_id=2)
    >>> tokenizer = PretrainedTokenizer(engine.to_str(), context_length=8, preparation=preparation)
    >>> tokenizer.encode(["A dog", "dog"]).ids.tolist()
    [[1, 3, 4, 2], [1, 4, 2, 0]]
    """

    kind = "pretrained"

    def __init__(self, text: str, *, context_length: int, preparation: TextPreparation) -> None:
        """Build the tokenizer.

        Args:
            text: content of a `tokenizer.json`.
            context_length: maximum number of tokens per text, including added ones.
            preparation: the text preparation of the model.

        Raises:
            ConfigError: the context is too short, an id of the preparation is outside the vocabulary, or the merges do not
                have the file's prefix of subwords.
            Exception: the engine cannot read the text; it has no error class of its own.
        """
        check_merges(text)
        engine = Engine.from_str(text)
        engine.no_padding()
        engine.no_truncation()
        engine.encode_special_tokens = preparation.special_tokens == "text"
        own = [] if engine.normalizer is None else [engine.normalizer]
        if preparation.lowercase and preparation.case_rule == "character":
            engine.normalizer = normalizers.Sequence([normalizers.Lowercase(), *own])
        self._text, self._engine = text, engine
        self._special = _special_pattern(engine) if preparation.special_tokens == "parse" else None
        vocab_size = max(engine.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        super().__init__(context_length=context_length, preparation=preparation, vocab_size=vocab_size)

    def save(self, path: Path) -> None:
        """Write the file from which the tokenizer was read, unchanged."""
        path.write_bytes(self._text.encode("utf-8"))

    def engine_json(self) -> str:
        """Return the content of the file."""
        return self._text

    def id_of(self, token: str) -> int | None:
        """Return the id of an entry of the vocabulary; None if there is no such entry."""
        found = self._engine.token_to_id(token)
        return None if found is None else int(found)

    def entry(self, token_id: int) -> str:
        """Return the entry of the vocabulary with this id, which must exist."""
        return str(self._engine.id_to_token(token_id))

    @classmethod
    def load(cls, path: Path, *, context_length: int, preparation: TextPreparation) -> "PretrainedTokenizer":
        """Return the tokenizer of a `tokenizer.json`.

        Raises:
            ConfigError: the file is not a regular file or too large, or the preparation does not fit it.
            BundleError: the file is not UTF-8.
            Exception: the engine cannot read the file; it has no error class of its own.
        """
        try:
            text = read_bytes(path, max_bytes=MAX_BYTES).decode("utf-8")  # `read_text` would change line ends.
        except UnicodeDecodeError as error:
            raise BundleError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
        return cls(text, context_length=context_length, preparation=preparation)

    def __getstate__(self) -> dict[str, Any]:
        return {"text": self._text, "context_length": self.context_length, "preparation": self.preparation}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Build the engine again: its own pickle lacks `encode_special_tokens`."""
        self.__init__(**state)  # type: ignore[misc]

    def _normalized(self, text: str) -> str:
        if self._special is None:
            return super()._normalized(text)
        parts = self._special.split(text)  # Text and special token, in turn.
        return "".join(part if i % 2 else normalized_text(part, self.preparation) for i, part in enumerate(parts))

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._engine.encode_batch_fast(self._prepared(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _text_of(self, ids: Sequence[int]) -> str:
        kept = [int(i) for i in ids if i not in (self.start_id, self.end_id, self.pad_id)]
        return str(self._engine.decode(kept, skip_special_tokens=True)).strip()


def _special_pattern(engine: Engine) -> re.Pattern[str] | None:
    """Return a pattern that splits a text at the special tokens that the engine finds before normalization."""
    found = engine.get_added_tokens_decoder().values()
    tokens = sorted((token.content for token in found if token.special and not token.normalized), key=len, reverse=True)
    return re.compile(f"({'|'.join(map(re.escape, tokens))})") if tokens else None
