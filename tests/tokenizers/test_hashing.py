"""The hashing tokenizer's own laws."""

import json
from collections import Counter
from pathlib import Path

import pytest

from diptych.core.errors import BundleError, ConfigError
from diptych.tokenizers.hashing import HashingTokenizer

TOKENIZER = HashingTokenizer(vocab_size=5000, context_length=32)


def _buckets(text: str) -> list[str]:
    return TOKENIZER.decode(TOKENIZER.encode([text]).ids[0].tolist()).split()


def test_the_hash_is_the_same_everywhere() -> None:
    assert TOKENIZER.encode(["A dog, running!", "Café 漢字"]).ids.tolist() == [
        [2, 1895, 4281, 2230, 115, 979, 3],
        [2, 2473, 4391, 3, 0, 0, 0],
    ]


@pytest.mark.parametrize("same", ["A DOG,runs", "  a\tdog ,\n runs ", "a dog , runs"])
def test_case_and_white_space_are_folded(same: str) -> None:
    assert _buckets(same) == _buckets("a dog, runs")


def test_composed_and_decomposed_are_one_word() -> None:
    assert _buckets("cafe\u0301") == _buckets("café")
    assert len(_buckets("café")) == 1


def test_each_punctuation_mark_is_a_word() -> None:
    assert _buckets("wow!!?") == [*_buckets("wow"), *_buckets("!") * 2, *_buckets("?")]


def test_a_lone_surrogate_is_no_question_mark() -> None:
    assert TOKENIZER.encode(["\ud800", "?"]).ids.tolist() == [[2, 1464, 3], [2, 3580, 3]]


def test_words_spread_over_the_buckets() -> None:
    wide = HashingTokenizer(vocab_size=5000, context_length=20_002)
    counts = Counter(wide.encode([" ".join(f"word{i}" for i in range(20_000))]).ids[0, 1:-1].tolist())
    # Four words a bucket on average; by Poisson's law 1.8% stay empty, and more than 16 come up once in a million.
    assert len(counts) > 0.97 * (TOKENIZER.vocab_size - 4)
    assert max(counts.values()) <= 16


def test_no_bucket_is_a_special_token() -> None:
    smallest = HashingTokenizer(vocab_size=5, context_length=8)
    assert smallest.encode(["two dogs"]).ids.tolist() == [[2, 4, 4, 3]]
    assert smallest.decode([2, 4, 4, 3, 0]) == "#0 #0"


def test_no_room_for_a_bucket() -> None:
    with pytest.raises(ConfigError, match="vocab_size is 4; four special tokens and a bucket need 5"):
        HashingTokenizer(vocab_size=4, context_length=8)


def test_another_hash_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({"vocab_size": 50, "hash": "md5"}), "utf-8")
    with pytest.raises(BundleError, match="its hash is 'md5'; this version of Diptych knows 'crc32"):
        HashingTokenizer.load(path, context_length=8)
