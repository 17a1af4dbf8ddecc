"""Tokenizers of every kind, and texts that are hard to tokenize."""

from diptych.tokenizers.load_tokenizer import TokenizerKind, train_tokenizer
from diptych.tokenizers.protocol import Tokenizer

CAPTIONS = [
    "a red circle",
    "two dogs run < over > the grass / end",
    "the quick brown fox jumps over the lazy dog",
    "É ς &",
]
VOCAB_SIZES: dict[TokenizerKind, int] = {"character": 320, "learned-bpe": 320, "clip-bpe": 49_408, "hashing": 320}
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


def make_tokenizer(kind: TokenizerKind, context_length: int = 24) -> Tokenizer:
    return train_tokenizer(kind, CAPTIONS, vocab_size=VOCAB_SIZES[kind], context_length=context_length)
