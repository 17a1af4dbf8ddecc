"""Every tokenizer keeps one contract."""

import pickle
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.core.errors import ConfigError, DataError
from diptych.tokenizers.load_tokenizer import PREPARED, TokenizerKind, load_tokenizer, train_tokenizer
from diptych.tokenizers.preparation import TextPreparation
from diptych.tokenizers.protocol import SPECIAL_TOKENS, UNKNOWN, Tokenizer
from tests.tokenizers.makers import VOCAB_SIZES, make_tokenizer

CAPTIONS = ["a red circle", "two dogs run < over > the grass / end", "the quick brown fox jumps over the lazy dog", "É"]
KINDS = list(VOCAB_SIZES)
CONTEXT = 24


def _make(kind: TokenizerKind, context_length: int = CONTEXT) -> Tokenizer:
    return make_tokenizer(kind, context_length, CAPTIONS)


def _preparation(tokenizer: Tokenizer) -> TextPreparation:
    return getattr(tokenizer, "preparation", TextPreparation())


LONG: dict[str, Tokenizer] = {kind: _make(kind, 4000) for kind in KINDS}
KNOWN_TEXTS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz <>/ABC\t\n", max_size=60)


@pytest.fixture(params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return _make(request.param)


def _there_and_back(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(tokenizer.encode([text]).ids[0].tolist())


@pytest.mark.parametrize("kind", ["character", "learned-bpe"])
@given(text=KNOWN_TEXTS)
def test_round_trip_of_known_characters(kind: TokenizerKind, text: str) -> None:
    assert _there_and_back(LONG[kind], text) == " ".join(text.lower().split())


@given(text=KNOWN_TEXTS)
def test_round_trip_of_clip_but_for_white_space(text: str) -> None:
    assert "".join(_there_and_back(LONG["clip-bpe"], text).split()) == "".join(text.lower().split())


@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_bpe_round_trip_of_any_unicode(text: str) -> None:
    encoded = LONG["learned-bpe"].encode([text])
    normal = " ".join(unicodedata.normalize("NFC", text).lower().split())
    again = LONG["learned-bpe"].decode(encoded.ids[0].tolist())
    # The engine lower-cases character by character; Python knows the final sigma.
    assert again.replace("ς", "σ").split() == normal.replace("ς", "σ").split()
    assert UNKNOWN not in encoded.ids


@pytest.mark.parametrize("kind", KINDS)
@given(texts=st.lists(st.text(st.characters(), max_size=20), max_size=4))
def test_any_string_has_ids_the_same_alone_and_in_company(kind: TokenizerKind, texts: list[str]) -> None:
    together = LONG[kind].encode(texts)
    for ids, length, text in zip(together.ids, together.lengths, texts, strict=True):
        alone = LONG[kind].encode([text])
        assert alone.lengths.tolist() == [length]
        assert alone.ids[0, :length].tolist() == ids[:length].tolist()


def test_empty_text_is_the_two_marks(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["", "a", " \n\t "])
    start, end, pad = tokenizer.start_id, tokenizer.end_id, tokenizer.pad_id
    assert encoded.ids[0].tolist() == encoded.ids[2].tolist() == [start, end, pad]
    assert encoded.lengths.tolist() == [2, 3, 2]
    assert _there_and_back(tokenizer, "") == ""


def test_no_text_at_all(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode([])
    assert encoded.ids.shape == (0, 2)
    assert encoded.ids.dtype == encoded.lengths.dtype == np.int64
    assert encoded.num_cut == 0


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("bad", [None, 3, b"a", float("nan")])
def test_an_element_that_is_no_string_is_named_by_position(tokenizer: Tokenizer, bad: object) -> None:
    with pytest.raises(DataError, match=f"text 2 is not a string but {type(bad).__name__}"):
        tokenizer.encode(["a", "b", bad])  # type: ignore[list-item]


def test_one_string_is_not_a_list_of_texts(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"write \[text\]"):
        tokenizer.encode("a red circle")


def test_cut_keeps_the_end_mark_and_is_counted(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["a q x " * 30, "a", "z " * 300])
    assert encoded.num_cut == 2
    assert encoded.lengths.tolist() == [CONTEXT, 3, CONTEXT]
    assert encoded.ids[0, -1] == encoded.ids[2, -1] == tokenizer.end_id


def test_a_cut_text_keeps_its_beginning(tokenizer: Tokenizer) -> None:
    text = "the quick brown fox " * 20
    cut, whole = tokenizer.encode([text]).ids[0], LONG[tokenizer.kind].encode([text]).ids[0]
    assert cut.tolist() == [*whole[: CONTEXT - 1].tolist(), tokenizer.end_id]


def test_too_long_is_an_error_on_request(tokenizer: Tokenizer) -> None:
    short = ["a", "a b"]
    assert tokenizer.encode(short, truncate="error").ids.tolist() == tokenizer.encode(short).ids.tolist()
    too_long = "a b " * CONTEXT
    tokens = int(LONG[tokenizer.kind].encode([too_long]).lengths[0])
    with pytest.raises(DataError, match=f"text 2 has {tokens} tokens, .* the context holds {CONTEXT}"):
        tokenizer.encode([*short, too_long, "c " * 300], truncate="error")


@pytest.mark.parametrize("kind", KINDS)
def test_what_just_fits_is_not_cut(kind: TokenizerKind) -> None:
    tokenizer = _make(kind, int(LONG[kind].encode(["a red dog"]).lengths[0]))
    encoded = tokenizer.encode(["a red dog", "a red dog b"])
    assert (encoded.num_cut, encoded.lengths.tolist()) == (1, [tokenizer.context_length] * 2)
    assert tokenizer.encode(["a red dog"], truncate="error").num_cut == 0
    with pytest.raises(DataError, match="text 1 has"):
        tokenizer.encode(["a red dog", "a red dog b"], truncate="error")


@pytest.mark.usefixtures("unchecked")
def test_another_way_to_truncate_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match=r"unknown value of truncate 'ends'; did you mean 'end'\? Known: end, error"):
        tokenizer.encode(["a"], truncate="ends")  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_context_without_room_is_refused(kind: TokenizerKind) -> None:
    with pytest.raises(
        ConfigError, match="context length is 2; it must be at least 3, for a start token, a token and an end token"
    ):
        _make(kind, 2)


def test_padding_goes_to_the_longest_and_no_further(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode(["a red circle", "a"])
    assert encoded.ids.shape[1] == encoded.lengths.max() < CONTEXT
    for ids, length in zip(encoded.ids, encoded.lengths, strict=True):
        assert ids[0] == tokenizer.start_id
        assert ids[length - 1] == tokenizer.end_id
        assert (ids[length:] == tokenizer.pad_id).all()
        assert not {tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id} & set(ids[1 : length - 1].tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_saved_and_loaded_gives_the_same_ids(kind: TokenizerKind, tmp_path: Path) -> None:
    before = _make(kind)
    before.save(tmp_path / "tokenizer.json")
    after = load_tokenizer(kind, tmp_path / "tokenizer.json", context_length=CONTEXT, preparation=_preparation(before))
    texts = [*CAPTIONS, "unknown ☃ signs", "", "A  RED\tCircle", "<end> <pad>"]
    assert after.encode(texts).ids.tolist() == before.encode(texts).ids.tolist()
    assert (after.vocab_size, after.kind, after.context_length) == (before.vocab_size, kind, CONTEXT)


def test_a_worker_process_gets_the_same_tokenizer(tokenizer: Tokenizer) -> None:
    again = pickle.loads(pickle.dumps(tokenizer))
    assert again.encode(CAPTIONS).ids.tolist() == tokenizer.encode(CAPTIONS).ids.tolist()


@pytest.mark.parametrize("mark", SPECIAL_TOKENS)
def test_a_mark_in_a_caption_is_text(tokenizer: Tokenizer, mark: str) -> None:
    # CLIP's own marks are the exception, and are tested beside its tokenizer.
    encoded = tokenizer.encode([f"a {mark} b"])
    inner = encoded.ids[0, 1 : encoded.lengths[0] - 1]
    assert not {tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id} & set(inner.tolist())
    if tokenizer.kind == "learned-bpe":
        assert tokenizer.decode(encoded.ids[0].tolist()) == f"a {mark} b"


def test_ids_lie_within_the_vocabulary(tokenizer: Tokenizer) -> None:
    encoded = tokenizer.encode([*CAPTIONS, "☃ 漢字 \x00"])
    assert encoded.ids.min() >= 0
    assert encoded.ids.max() < tokenizer.vocab_size


@pytest.mark.parametrize("wrong", [-1, 10**6])
def test_an_id_outside_the_vocabulary_is_named_by_position(tokenizer: Tokenizer, wrong: int) -> None:
    with pytest.raises(
        DataError, match=f"id {wrong} at position 1 is outside the vocabulary of {tokenizer.vocab_size}"
    ):
        tokenizer.decode([5, wrong])


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_tokenizer(kind: TokenizerKind) -> None:
    assert _make(kind).encode(CAPTIONS).ids.tolist() == _make(kind).encode(CAPTIONS).ids.tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lone_surrogate_in_a_caption_is_a_character_like_any_other(kind: TokenizerKind) -> None:
    tokenizer = make_tokenizer(kind, CONTEXT, ["dog \ud800"])
    encoded = tokenizer.encode(["dog \ud800"])
    assert UNKNOWN not in encoded.ids
    assert encoded.lengths[0] > tokenizer.encode(["dog"]).lengths[0]


@pytest.mark.parametrize("kind", ["learned-bpe", "clip-bpe", *sorted(PREPARED)])
def test_bpe_joins_surrogate_pairs_and_replaces_lone_ones(kind: TokenizerKind) -> None:
    torn, whole = LONG[kind].encode(["a \ud83d\ude00 b \udc00"]), LONG[kind].encode(["a 😀 b \ufffd"])
    assert torn.ids.tolist() == whole.ids.tolist()


def test_bpe_keeps_to_its_vocabulary_size() -> None:
    assert _make("learned-bpe").vocab_size == 320
    assert train_tokenizer("learned-bpe", ["ab"], vocab_size=5000, context_length=8).vocab_size < 300


@pytest.mark.parametrize("kind", sorted(PREPARED))
def test_tokenizers_of_other_models_are_not_trained(kind: TokenizerKind) -> None:
    with pytest.raises(
        ConfigError, match=f"a {kind} tokenizer cannot be trained on captions; name a model that has one with --init"
    ):
        train_tokenizer(kind, CAPTIONS, vocab_size=320, context_length=CONTEXT)
