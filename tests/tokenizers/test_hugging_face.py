"""Hugging Face's `tokenizers` returns the same ids as our tokenizers from the exported files."""

import json
from pathlib import Path

import ftfy
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from diptych.tokenizers.hugging_face import FILES, tokenizer_files, write_tokenizer_files
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.protocol import Tokenizer
from tests.tokenizers.makers import HARD_TEXTS, make_tokenizer
from tokenizers import Tokenizer as Engine

KINDS: tuple[TokenizerKind, ...] = ("clip-bpe", "learned-bpe", "character")


def _engine_of(tokenizer: Tokenizer) -> Engine:
    files = tokenizer_files(tokenizer)
    assert files is not None
    return Engine.from_str(json.dumps(files["tokenizer.json"]))


OURS = {kind: make_tokenizer(kind) for kind in KINDS}
THEIRS = {kind: _engine_of(OURS[kind]) for kind in KINDS}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_hard_texts_truncated_and_padded(kind: TokenizerKind) -> None:
    encoded = OURS[kind].encode(HARD_TEXTS)
    theirs = THEIRS[kind].encode_batch(HARD_TEXTS)
    for text, row, other in zip(HARD_TEXTS, encoded.ids, theirs, strict=True):
        assert other.ids == row.tolist(), text
    assert encoded.num_cut >= 2
    assert {len(other.ids) for other in theirs} == {24}
    masks = [sum(other.attention_mask) for other in theirs]
    has_mark = ["end_of_text" in text.lower() for text in HARD_TEXTS]
    assert [mask for mask, has in zip(masks, has_mark, strict=True) if not has] == [
        length for length, has in zip(encoded.lengths.tolist(), has_mark, strict=True) if not has
    ]


@pytest.mark.parametrize("kind", ["clip-bpe", "character"])
@given(text=st.text(alphabet="aΣΑ中1'.:-ª\u0301Ⓐ ", max_size=10))
def test_a_capital_sigma_next_to_anything(kind: TokenizerKind, text: str) -> None:
    assume(ftfy.fix_encoding(text) == text)  # The format cannot express the repair of a wrong encoding, as of "aΣª".
    assert THEIRS[kind].encode(text).ids == OURS[kind].encode([text]).ids[0].tolist()


@pytest.mark.parametrize("control", [*map(chr, range(0x80, 0xA0))])
def test_control_characters_of_windows(control: str) -> None:
    text = f"a{control}b {control} c"
    assert THEIRS["clip-bpe"].encode(text).ids == OURS["clip-bpe"].encode([text]).ids[0].tolist()


@pytest.mark.parametrize("num", [1, 2, 3])
@pytest.mark.parametrize("before", ["|", "a|", "\x85", "<end_of_text>|", "a", "", " "])
def test_marks_in_sequence(num: int, before: str) -> None:
    tokenizer = make_tokenizer("clip-bpe", context_length=77)
    text = f"x {before}{'<start_of_text><END_of_text><end_of_text>'[: num * 15 - 2 * (num > 1)]} b"
    assert _engine_of(tokenizer).encode(text).ids == tokenizer.encode([text]).ids[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text(alphabet="abcdeé .,!'<>/_&0129ΣσÄ犬\t\n\xa0-", max_size=40))
def test_ids_of_any_text(kind: TokenizerKind, text: str) -> None:
    assert THEIRS[kind].encode(text).ids == OURS[kind].encode([text]).ids[0].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_their_decoder_gives_the_text(kind: TokenizerKind) -> None:
    assert THEIRS[kind].decode(OURS[kind].encode(["Two dogs run"]).ids[0].tolist()[1:-1]).strip() == "two dogs run"


def test_a_loaded_tokenizer_writes_the_same_files(tmp_path: Path) -> None:
    OURS["learned-bpe"].save(tmp_path / "ours.json")
    loaded = LearnedBPETokenizer.load(tmp_path / "ours.json", context_length=24)
    assert tokenizer_files(loaded) == tokenizer_files(OURS["learned-bpe"])


def test_files_on_the_disk(tmp_path: Path) -> None:
    assert write_tokenizer_files(OURS["character"], tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert Engine.from_file(str(tmp_path / "tokenizer.json")).encode("a dog").ids == [
        *OURS["character"].encode(["a dog"]).ids[0].tolist()
    ]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert (settings["model_max_length"], settings["pad_token"]) == (24, "<pad>")


def test_hashes_have_no_such_files(tmp_path: Path) -> None:
    assert not write_tokenizer_files(make_tokenizer("hashing"), tmp_path)
    assert list(tmp_path.iterdir()) == []
