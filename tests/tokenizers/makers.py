"""Tokenizers of every kind, and texts that are hard to tokenize."""

import io
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import sentencepiece

from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.load_tokenizer import TokenizerKind, train_tokenizer
from diptych.tokenizers.preparation import TextPreparation
from diptych.tokenizers.pretrained import PretrainedTokenizer
from diptych.tokenizers.protocol import END, PAD, START, UNKNOWN, Tokenizer, encodable
from diptych.tokenizers.sentence_pieces import SentencePieceTokenizer

CAPTIONS = [
    "a red circle",
    "two dogs run < over > the grass / end",
    "the quick brown fox jumps over the lazy dog",
    "É ς &",
]
VOCAB_SIZES: dict[TokenizerKind, int] = {
    **{"character": 320, "learned-bpe": 320, "clip-bpe": 49_408, "hashing": 320},
    **{"pretrained": 320, "sentencepiece": 320},
}
PREPARATION = TextPreparation(start_id=START, end_id=END, pad_id=PAD, special_tokens="text", stops_at_end=True)
"""For the tokenizers of other models, which have the special ids of ours here."""
HARD_TEXTS = [
    "",
    " \n\t ",
    "a dog",
    "A dog's life: it's 1990, we'LL see!",
    "<end>",
    "a <start> <pad> <unk> <END> b",
    "<end_of_text>",
    "a<END_of_text>b <start_of_text>",
    "!!<end_of_text> x",
    "<end_of_text><end_of_text>!",
    "<|endoftext|>",
    "wow! !!! '' '",
    "it’s “nice” &amp; tidy &amp;lt;b&gt; &quot;",
    "a   b\t\n c\x1cd\u3000e\xa0f  ",
    "ΟΔΟΣ ΟΔΟΣ, Σ οσ",
    "İstanbul ŞẞßSTRAẞE ſ 'ſ K",
    "日本語 の 犬 🐕🏽 𝔘𝔫",
    "1990s café cafe\u0301",
    "a\x00b\x07c \u200bzero\ufeffwidth",
    "a-b_c",
    "dog " * 100,
    "x" * 300,
]


def make_tokenizer(
    kind: TokenizerKind,
    context_length: int = 24,
    captions: Sequence[str] = CAPTIONS,
    preparation: TextPreparation = PREPARATION,
) -> Tokenizer:
    size = VOCAB_SIZES[kind]
    match kind:
        case "pretrained":
            engine = LearnedBPETokenizer.train(captions, vocab_size=size, context_length=context_length)
            return PretrainedTokenizer(engine.engine_json(), context_length=context_length, preparation=preparation)
        case "sentencepiece":
            content = sentence_pieces(tuple(captions))
            preparation = replace(preparation, clean="whitespace")  # The small model does not collapse whitespace.
            return SentencePieceTokenizer(content, context_length=context_length, preparation=preparation)
        case _:
            return train_tokenizer(kind, captions, vocab_size=size, context_length=context_length)


@cache
def sentence_pieces(captions: tuple[str, ...]) -> bytes:
    """A small sentencepiece model that falls back to bytes, with the special ids of our tokenizers."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=map(encodable, captions),
        model_writer=written,
        vocab_size=VOCAB_SIZES["sentencepiece"],
        hard_vocab_limit=False,
        byte_fallback=True,
        add_dummy_prefix=False,
        normalization_rule_name="identity",
        pad_id=PAD,
        unk_id=UNKNOWN,
        bos_id=START,
        eos_id=END,
        minloglevel=2,
    )
    return written.getvalue()
