"""Tokenizers from files of other models: the text preparation, and what their files may contain."""

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

from diptych.core.errors import ConfigError, DataError
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.load_tokenizer import TokenizerKind, load_tokenizer, tokenizer_file
from diptych.tokenizers.preparation import TextPreparation, prepare_text
from diptych.tokenizers.pretrained import PretrainedTokenizer
from diptych.tokenizers.protocol import Tokenizer
from diptych.tokenizers.sentence_pieces import SentencePieceTokenizer
from tests.tokenizers.makers import CAPTIONS, sentence_pieces
from tokenizers import AddedToken, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "dogs", "Dog", "red", "s", "'", "!", "x"]
KINDS: tuple[TokenizerKind, ...] = ("pretrained", "sentencepiece")


def _words(preparation: TextPreparation, context_length: int = 8) -> PretrainedTokenizer:
    return PretrainedTokenizer(_file(), context_length=context_length, preparation=preparation)


def _file() -> str:
    engine = Engine(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    engine.pre_tokenizer = pre_tokenizers.Whitespace()
    engine.add_special_tokens([AddedToken(word, normalized=False) for word in WORDS[:4]])
    text: str = engine.to_str()
    return text


def _plain(kind: TokenizerKind, preparation: TextPreparation) -> Tokenizer:
    if kind == "pretrained":
        return _words(preparation)
    return SentencePieceTokenizer(sentence_pieces(tuple(CAPTIONS)), context_length=8, preparation=preparation)


def _tokens(text: str, **changes: Any) -> list[str]:
    row = _words(replace(TextPreparation(), **changes)).encode([text]).ids[0]
    return [WORDS[i] for i in row]


def test_the_default_preparation_changes_nothing() -> None:
    assert _tokens("Dog dog!") == ["Dog", "dog", "!"]


def test_each_step() -> None:
    assert _tokens("DOG", lowercase=True) == ["dog"]
    assert _tokens("dog!'s", remove_punctuation=True) == ["dogs"]
    assert _tokens("red_dog &#33;", clean="canonicalize") == ["red", "dog"]
    assert _tokens("Dog &amp;#33;", clean="whitespace") == ["Dog", "!"]
    assert _tokens("Red Dog &amp;#33;", clean="lower") == ["red", "dog", "!"]
    assert _tokens("dog", start_id=2, end_id=3) == ["[CLS]", "dog", "[SEP]"]
    assert _tokens("dog " * 9, end_id=3) == ["dog"] * 7 + ["[SEP]"]


@pytest.mark.parametrize(("rule", "expected"), [("full", "éος σ ss"), ("character", "éοσ σ ss"), ("ascii", "ÉΟΣ Σ ss")])
def test_case_rules(rule: Literal["full", "character", "ascii"], expected: str) -> None:
    preparation = TextPreparation(lowercase=True, case_rule=rule)
    vocabulary = {word: i for i, word in enumerate(["?", *expected.split()])}
    engine = Engine(models.WordLevel(vocabulary, unk_token="?"))
    engine.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ours = PretrainedTokenizer(engine.to_str(), context_length=8, preparation=preparation)
    assert ours.encode(["ÉΟΣ Σ SS"]).ids.tolist() == [[1, 2, 3]]


def test_the_case_rule_keeps_the_normalizer_of_the_file() -> None:
    engine = Engine.from_str(_file())
    engine.normalizer = normalizers.Replace("d", "D")
    preparation = TextPreparation(lowercase=True, case_rule="character")
    ours = PretrainedTokenizer(engine.to_str(), context_length=8, preparation=preparation)
    assert ours.encode(["DOG"]).ids.tolist() == [[WORDS.index("Dog")]]


def test_special_tokens_in_a_text() -> None:
    assert _tokens("a [SEP] dog") == ["a", "[SEP]", "dog"]
    assert "[SEP]" not in _tokens("a [SEP] dog", special_tokens="text")
    parsed = _words(TextPreparation(end_id=3)).encode(["a [SEP] dog"])
    stopped = _words(TextPreparation(end_id=3, stops_at_end=True)).encode(["a [SEP] dog"])
    assert parsed.ids.tolist() == stopped.ids.tolist()
    assert (parsed.lengths.tolist(), stopped.lengths.tolist()) == ([4], [2])


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_without_tokens_is_one_token_of_padding(kind: TokenizerKind) -> None:
    encoded = _plain(kind, TextPreparation(pad_id=4)).encode(["", "a dog", "  "])
    assert encoded.ids[0].tolist() == [4] * encoded.ids.shape[1]
    assert encoded.lengths.tolist()[::2] == [1, 1]
    assert encoded.num_cut == 0
    assert _plain(kind, TextPreparation(end_id=3)).encode([""]).ids.tolist() == [[3]]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["start_id", "end_id", "pad_id"])
@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_an_id_outside_the_vocabulary(kind: TokenizerKind, name: str, wrong: int) -> None:
    message = rf"model\.text\.preparation\.{name} is {wrong}, outside the vocabulary of \d+ entries"
    preparation = replace(TextPreparation(), **{name: wrong})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        _plain(kind, preparation)


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_is_stored_unchanged(kind: TokenizerKind, tmp_path: Path) -> None:
    content = (_file() + "\r\n ").encode() if kind == "pretrained" else sentence_pieces(tuple(CAPTIONS))
    path, again = tmp_path / tokenizer_file(kind), tmp_path / "again"
    path.write_bytes(content)
    load_tokenizer(kind, path, context_length=8).save(again)
    assert again.read_bytes() == content
    pickle.loads(pickle.dumps(load_tokenizer(kind, path, context_length=8))).save(again)
    assert again.read_bytes() == content


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_process_prepares_texts_in_the_same_way(kind: TokenizerKind) -> None:
    preparation = TextPreparation(
        lowercase=True, case_rule="character", special_tokens="text", end_id=3, stops_at_end=True
    )
    ours = _plain(kind, preparation)
    again = pickle.loads(pickle.dumps(ours))
    texts = ["A DOG", "a [SEP] <end> dog", "ΟΔΟΣ", ""]
    np.testing.assert_array_equal(again.encode(texts).ids, ours.encode(texts).ids)
    np.testing.assert_array_equal(again.encode(texts).lengths, ours.encode(texts).lengths)


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_of_a_megabyte(kind: TokenizerKind) -> None:
    encoded = _plain(kind, TextPreparation(end_id=3)).encode(["a dog " * 170_000, "x" * 2**20, "!" * 2**20, "a"])
    assert encoded.ids.shape == (4, 8)
    assert encoded.num_cut == (1 if kind == "pretrained" else 3)  # A long word is one unknown entry of `pretrained`.


def test_what_cannot_be_cleaned_is_named_by_position() -> None:
    with pytest.raises(DataError, match="text 1 cannot be cleaned"):
        _words(TextPreparation(clean="lower")).encode(["a", f"&#{'9' * 5000};"])


def test_a_file_of_version_two_of_the_vocabulary_may_have_gaps() -> None:
    content = json.loads(_file())
    content["model"]["vocab"]["late"] = 40
    ours = PretrainedTokenizer(json.dumps(content), context_length=8, preparation=TextPreparation())
    assert ours.vocab_size == 41
    assert ours.encode(["late"]).ids.tolist() == [[40]]


def test_big_visions_canonical_text() -> None:
    """The examples of `canonicalize_text` (big_vision, `prompt_engineering.py`) and of transformers' `SiglipTokenizer`."""
    text = "  A photo_of  a\tDOG's\n(big) house. "
    assert prepare_text(text, TextPreparation(clean="canonicalize")) == "a photo of a dogs big house"
    assert prepare_text(text, TextPreparation(lowercase=True, remove_punctuation=True)) == "a photoof a dogs big house"


def test_decoding_leaves_added_tokens_out() -> None:
    ours = _words(TextPreparation(start_id=2, end_id=3))
    assert ours.decode(ours.encode(["a red dog", ""]).ids[0].tolist()) == "a red dog"


@pytest.mark.parametrize("name", ["continuing_subword_prefix", "\\u0063ontinuing_subword_prefix"])
@pytest.mark.parametrize("merge", ["a \u2581", ["a", "\u2581"]])
def test_merges_without_the_prefix_of_subwords_are_refused(tmp_path: Path, name: str, merge: Any) -> None:
    """The engine would cut a character in half, and end the process."""
    vocab = json.dumps({"a": 0, "\u2581": 1, "a\u2581": 2})
    path = tmp_path / "tokenizer.json"
    path.write_text(f'{{"model": {{"type": "BPE", "vocab": {vocab}, "merges": {json.dumps([merge])}, "{name}": "x"}}}}')
    with pytest.raises(ConfigError, match="its merges do not have the prefix 'x' of its subwords"):
        PretrainedTokenizer.load(path, context_length=8, preparation=TextPreparation())
    with pytest.raises(ConfigError, match="its merges do not have the prefix 'x' of its subwords"):
        LearnedBPETokenizer.load(path, context_length=8)
