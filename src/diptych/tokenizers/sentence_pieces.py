"""Tokenizers of other models, read from a sentencepiece model (`spiece.model`, `tokenizer.model`).

The file is stored unchanged in the bundle, and the `sentencepiece` library applies it. As for `pretrained`, start and end
tokens, truncation and padding follow the text preparation in the model's config, not the file.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diptych.core.extras import missing_extra
from diptych.core.settings import read_bytes
from diptych.tokenizers.preparation import TextPreparation, lowercase_characters
from diptych.tokenizers.pretrained import MAX_BYTES, PreparedTokenizer


class SentencePieceTokenizer(PreparedTokenizer):
    """A tokenizer from a sentencepiece model, with the text preparation of its model.

    Names of control tokens in a text, such as `</s>`, are encoded as normal text, as in sentencepiece and big_vision.
    """

    kind = "sentencepiece"

    def __init__(self, content: bytes, *, context_length: int, preparation: TextPreparation) -> None:
        """Build the tokenizer.

        Args:
            content: content of a sentencepiece model.
            context_length: maximum number of tokens per text, including added ones.
            preparation: the text preparation of the model.

        Raises:
            ConfigError: `sentencepiece` is not installed, the context is too short, or an id of the preparation is outside
                the vocabulary.
            RuntimeError: the content is not a sentencepiece model.
        """
        self._content, self._engine = content, _engine(content)
        vocab_size = int(self._engine.get_piece_size())
        super().__init__(context_length=context_length, preparation=preparation, vocab_size=vocab_size)
        self._lowers_characters = preparation.lowercase and preparation.case_rule == "character"

    def save(self, path: Path) -> None:
        """Write the file from which the tokenizer was read, unchanged."""
        path.write_bytes(self._content)

    @classmethod
    def load(cls, path: Path, *, context_length: int, preparation: TextPreparation) -> "SentencePieceTokenizer":
        """Return the tokenizer of a sentencepiece model.

        Raises:
            ConfigError: `sentencepiece` is not installed, the file is not a regular file or too large, or the preparation does
                not fit it.
            RuntimeError: the file is not a sentencepiece model.
        """
        content = read_bytes(path, max_bytes=MAX_BYTES)
        return cls(content, context_length=context_length, preparation=preparation)

    def __getstate__(self) -> dict[str, Any]:
        return {"content": self._content, "context_length": self.context_length, "preparation": self.preparation}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        prepared = self._prepared(texts)
        if self._lowers_characters:
            prepared = [lowercase_characters(text) for text in prepared]
        return [*map(list, self._engine.encode(prepared, num_threads=1))] if prepared else []

    def _text_of(self, ids: Sequence[int]) -> str:
        kept = [int(i) for i in ids if i not in (self.start_id, self.end_id, self.pad_id)]
        return str(self._engine.decode(kept)).strip()


def sentence_piece_ids(content: bytes) -> dict[str, int]:
    """Return the id of each entry of a sentencepiece model.

    Raises:
        ConfigError: `sentencepiece` is not installed.
        RuntimeError: the content is not a sentencepiece model.
    """
    engine = _engine(content)
    return {str(engine.id_to_piece(i)): i for i in range(engine.get_piece_size())}


def _engine(content: bytes) -> Any:
    """Return the processor of a sentencepiece model.

    Raises:
        ConfigError: `sentencepiece` is not installed.
        RuntimeError: the content is not a sentencepiece model.
    """
    try:
        import sentencepiece  # noqa: PLC0415  (an extra)
    except ImportError as error:
        raise missing_extra(error, "this model's tokenizer") or error from None
    return sentencepiece.SentencePieceProcessor(model_proto=content)
