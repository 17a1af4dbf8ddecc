"""Every tokenizer keeps one contract."""

import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import DataError
from diptych.tokenizers.choice import TokenizerKind, load_tokenizer, train_tokenizer
from diptych.tokenizers.protocol import END, PAD, SPECIAL_TOKENS, START, UNKNOWN, Tokenizer

CAPTIONS = ["a red circle", "two dogs run < over > the grass / end", "the quick brown fox jumps over the lazy dog", "É"]
KINDS: list[TokenizerKind] = ["character", "learned-bpe"]
CONTEXT = 24


def _make(kind: TokenizerKind, context_length: int = CONTEXT) -> Tokenizer:
    return train_tokenizer(kind, CAPTIONS, vocab_size=320, context_length=context_length)


LONG = {kind: _make(kind, 4000) for kind in KINDS}


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return _make(request.param)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet="abcdefghijklmnopqrstuvwxyz <>/ABC\t\n", max_size=60))
def test_round_trip_of_known_characters(kind: TokenizerKind, text: str) -> None:
    encoded = LONG[kind].encode([text])
    assert LONG[kind].decode(encoded.ids[0].tolist()) == " ".join(text.lower().split())


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bpe_round_trip_of_any_unicode(text: str) -> None:
    encoded = LONG["learned-bpe"].encode([text])
    normal = " ".join(unicodedata.normalize("NFC", text).lower().split())
    again = LONG["learned-bpe"].decode(encoded.ids[0].tolist())
    # The engine lower-cases character by character; Python knows the final sigma.
    assert again.replace("ς", "σ").split() == normal.replace("ς", "σ").split()
    assert UNKNOWN not in encoded.ids


def test_empty_text_is_the_two_marks(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["", "a"])
    assert encoded.ids[0].tolist() == [START, END, PAD]
    assert encoded.lengths.tolist() == [2, 3]
    assert tokenizer.decode(encoded.ids[0].tolist()) == ""


def test_no_text_at_all(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode([]).ids.shape[0] == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [None, 3, b"a", float("nan")])
def test_an_element_that_is_no_string_is_named_by_position(tokenizer: Tokenizer, bad: object) -> None:
    with pytest.raises(DataError, match=f"text 2 is not a string but {type(bad).__name__}"):
        tokenizer.encode(["a", "b", bad])  # type: ignore[list-item]


def test_one_string_is_not_a_list_of_texts(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"Write \[text\]"):
        tokenizer.encode("a red circle")


def test_cut_keeps_the_end_mark_and_is_counted(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["a" * 100 + " " + "qx" * 100, "a", "z" * 300])
    assert encoded.num_cut == 2
    assert encoded.lengths.tolist() == [CONTEXT, 3, CONTEXT]
    assert encoded.ids[0, -1] == encoded.ids[2, -1] == END


def test_what_just_fits_is_not_cut() -> None:
    encoded = _make("character", 5).encode(["abc", "abcd"])
    assert (encoded.num_cut, encoded.lengths.tolist()) == (1, [5, 5])


def test_padding_goes_to_the_longest_and_no_further(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["a red circle", "a"])
    assert encoded.ids.shape[1] == encoded.lengths.max() < CONTEXT
    for ids, length in zip(encoded.ids, encoded.lengths, strict=True):
        assert ids[0] == START
        assert ids[length - 1] == END
        assert (ids[length:] == PAD).all()
        assert (ids[1 : length - 1] > END).all()


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_gives_the_same_ids(kind: TokenizerKind, tmp_path: Path) -> None:
    before = _make(kind)
    before.save(tmp_path / "tokenizer.json")
    after = load_tokenizer(kind, tmp_path / "tokenizer.json", context_length=CONTEXT)
    texts = [*CAPTIONS, "unknown ☃ signs", "", "A  RED\tCircle", "<end> <pad>"]
    assert after.encode(texts).ids.tolist() == before.encode(texts).ids.tolist()
    assert (after.vocab_size, after.kind, after.context_length) == (before.vocab_size, kind, CONTEXT)


@pytest.mark.parametrize("mark", SPECIAL_TOKENS)
def test_a_mark_in_a_caption_is_text(tokenizer: Tokenizer, mark: str) -> None:
    encoded = tokenizer.encode([f"a {mark} b"])
    inner = encoded.ids[0, 1 : encoded.lengths[0] - 1]
    assert not {PAD, START, END} & set(inner.tolist())
    if tokenizer.kind == "learned-bpe":
        assert tokenizer.decode(encoded.ids[0].tolist()) == f"a {mark} b"


def test_ids_lie_within_the_vocabulary(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode([*CAPTIONS, "☃ 漢字 \x00"])
    assert encoded.ids.min() >= 0
    assert encoded.ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_tokenizer(kind: TokenizerKind) -> None:
    assert _make(kind).encode(CAPTIONS).ids.tolist() == _make(kind).encode(CAPTIONS).ids.tolist()


def test_bpe_keeps_to_its_vocabulary_size() -> None:
    assert _make("learned-bpe").vocab_size == 320
    assert train_tokenizer("learned-bpe", ["ab"], vocab_size=5000, context_length=8).vocab_size < 300
