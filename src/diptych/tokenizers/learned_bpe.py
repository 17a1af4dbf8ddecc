"""Byte-pair encoding learned from the training captions (Sennrich et al. 2016), over bytes as in GPT-2.

For small datasets, a vocabulary learned from the data is smaller than CLIP's 49,408 entries, and the texts have fewer tokens.
The implementation is the `tokenizers` library; a bundle stores its JSON file.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from diptych.core.errors import BundleError
from diptych.core.settings import read_text
from diptych.tokenizers.merges import check_merges
from diptych.tokenizers.protocol import SPECIAL_TOKENS, BaseTokenizer, encodable
from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine


class LearnedBPETokenizer(BaseTokenizer):
    """Lowercases the text, collapses whitespace, splits it into words, and merges bytes. Any Unicode text can be encoded.

    The vocabulary consists of the bytes, the merges and four special tokens.

    >>> tokenizer = LearnedBPETokenizer.train(["two dogs", "two cats"], vocab_size=300, context_length=16)
    >>> tokenizer.decode(tokenizer.encode(["Two dogs é"]).ids[0].tolist())
    'two dogs é'
    """

    kind = "learned-bpe"

    def __init__(self, engine: Engine, *, context_length: int, text: str | None = None) -> None:
        super().__init__(context_length)
        self.vocab_size = int(engine.get_vocab_size())
        self._text = text
        self._engine = engine
        self._engine.encode_special_tokens = True  # "<end>" in a caption is text, not a special token.

    @classmethod
    def train(cls, captions: Iterable[str], *, vocab_size: int, context_length: int) -> "LearnedBPETokenizer":
        """Return a tokenizer with merges learned from the captions.

        Few captions may yield fewer entries than `vocab_size`. The minimum is 260: 256 bytes and 4 special tokens.
        """
        engine = Engine(models.BPE())
        engine.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Lowercase(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Strip()]
        )
        engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        engine.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        engine.train_from_iterator(map(encodable, captions), trainer)
        return cls(engine, context_length=context_length)

    def _rows(self, texts: Sequence[str]) -> list[list[int]]:
        encodings = self._engine.encode_batch([encodable(text) for text in texts], add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def _text_of(self, ids: Sequence[int]) -> str:
        return str(self._engine.decode([int(i) for i in ids if i >= len(SPECIAL_TOKENS)])).strip()

    def save(self, path: Path) -> None:
        """Write the JSON of the engine; a loaded tokenizer writes the text it was loaded from, so its checksum is stable."""
        if self._text is None:
            self._engine.save(str(path))
        else:
            path.write_bytes(self._text.encode("utf-8"))

    def engine_json(self) -> str:
        """Return the JSON of the engine, in the format of Hugging Face's `tokenizers`."""
        return str(self._engine.to_str())

    @classmethod
    def load(cls, path: Path, *, context_length: int) -> "LearnedBPETokenizer":
        """Return the tokenizer that `save` wrote.

        Raises:
            ConfigError: the file is not a regular file, larger than 16 MiB, or not UTF-8, or its merges lack its prefix of
                subwords.
            BundleError: an id is outside the vocabulary.
            Exception: the engine cannot read the file; it has no error class of its own.
        """
        text = read_text(path)
        check_merges(text)
        engine = Engine.from_str(text)
        vocabulary = engine.get_vocab()
        if not vocabulary or max(vocabulary.values()) >= len(vocabulary):
            raise BundleError(f"{path}: the ids of its {len(vocabulary)} entries are not 0, 1, 2, ...")
        return cls(engine, context_length=context_length, text=text)
