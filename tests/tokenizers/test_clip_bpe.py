"""CLIP's tokenizer against the live peer, id for id, and what is its own: vocabulary, marks, file."""

import gc
import gzip
import json
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.core.errors import BundleError, ConfigError, DataError
from diptych.tokenizers import clip_bpe
from diptych.tokenizers.clip_bpe import MARKS, ClipBPETokenizer, clip_merges, clip_vocabulary
from diptych.tokenizers.load_tokenizer import train_tokenizer
from tests import peers

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "make_clip_vocabulary.py"
PACKAGED = Path(clip_bpe.__file__).parent / clip_bpe.MERGES_FILE
TOKENIZER = ClipBPETokenizer()

# fmt: off
PIECES = [
    "a", "dog", "A Dog", " ", "  ", "\t", "\n", "\r\n", "_", "-", "...", "!", "'", '"', "``", "</w>", "Ġ", "Ā",
    "don't", "DON'T", "'S", "'ſ", "'LL", "’s", "’ſ", "'RE", "'ve", "''", "ſ", "İ", "ı", "K", "Å", "ß", "ẞ", "Σ", "ΟΔΟΣ",
    "ﬁ", "ﷺ", "Ĳ", "ŉ", "ǅ", "ΐ", "ＡＢＣ", "１２", "ｱ", "Ⅷ", "½", "²", "٣", "९", "12345", "º", "Ⓐ", "𝐀", "𐐀",
    "schÃ¶n", "â€™", "Ã©", "Ã", "\x80", "\x9d", "ï»¿", "\u2019", "\u201c", "café", "e\u0301", "\u0300", "\u0345",
    "&", "&amp;amp;", "&amp;amp;amp;lt;", "&lt;", "&lt", "&#39;", "&#x27;", "&#xD800;", "&nbsp;", "&;", "&#",
    "\x00", "\x07", "\x1b[31m", "\x1c", "\x7f", "\x85", "\x0b", "\u2028", "\u2029", "\xa0", "\u3000", "\u200b", "\u00ad",
    "\ufeff", "\ufffd", "\ufffe", "\U0010ffff", "\ud800", "\udc00", "\ud83d\ude00",
    "😀", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "مرحبا", "שלום", "\u202e", "漢字", "カタカナ", "한국어", "สวัสดี", "नमस्ते",
    "<|endoftext|>", "<end_of_text>", "<END_OF_TEXT>", "<start_of_text>", "<ſtart_of_text>", "<end_of_text", "end_of_text>",
    "supercalifragilistic" * 5, "x" * 300, "ab" * 70, "é" * 90,
]
# fmt: on
TEXTS = [
    "A man riding a wave on top of a surfboard.",
    "it's the dog's 3rd birthday, they're 12.5% happier!!",
    "Größe: 20 cm × 30 cm – schön; naïve façade",
    "<b>R&amp;amp;D &amp;lt; &amp;amp;lt;</b>",  # ftfy leaves entities alone where there is a "<".
    "a <start_of_text> b <end_of_text> c",
    "<END_OF_TEXT><End_Of_Text>x",
    "tail <end_of_text>",
    "word " * 100,
    "<end_of_text> " * 100,
    " ".join(["a"] * 75),
    " ".join(["a"] * 76),
    "",
    " \n ",
]


@cache
def _peer() -> Any:
    return peers.open_clip.tokenizer.SimpleTokenizer()


def _assert_as_the_peer(texts: list[str]) -> None:
    theirs = _peer()(texts).numpy()
    ours = TOKENIZER.encode(texts)
    width = ours.ids.shape[1]
    np.testing.assert_array_equal(ours.ids, theirs[:, :width])
    assert not theirs[:, width:].any()
    # CLIP reads a text at the largest id of its row, the first where there are several.
    assert ours.lengths.tolist() == (theirs.argmax(axis=1) + 1).tolist()


def test_fixed_texts() -> None:
    _assert_as_the_peer([*TEXTS, *PIECES])


def test_known_ids() -> None:
    assert TOKENIZER.encode(["a photo of a cat", "It's schÃ¶n &amp;amp; 20% off"]).ids.tolist() == [
        [49406, 320, 1125, 539, 320, 2368, 49407, 0, 0, 0, 0, 0],
        [49406, 585, 568, 844, 7255, 333, 261, 273, 271, 260, 1007, 49407],
    ]


@settings(max_examples=300)
@given(text=st.text(st.characters(), max_size=60))
def test_any_unicode(text: str) -> None:
    _assert_as_the_peer([text])


@settings(max_examples=300)
@given(text=st.text(st.characters(max_codepoint=0x24F), max_size=40))
def test_latin_letters_and_controls(text: str) -> None:
    _assert_as_the_peer([text])


@settings(max_examples=500)
@given(pieces=st.lists(st.sampled_from(PIECES), max_size=10))
def test_nasty_pieces(pieces: list[str]) -> None:
    _assert_as_the_peer(["".join(pieces), " ".join(pieces)])


@settings(max_examples=300)
@given(
    text=st.text(st.characters(codec="utf-8", max_codepoint=0x2FFF), max_size=20),
    codec=st.sampled_from(["latin-1", "cp1252"]),
)
def test_text_read_in_the_wrong_encoding(text: str, codec: str) -> None:
    _assert_as_the_peer([text.encode("utf-8").decode(codec, "replace")])


@settings(max_examples=300)
@given(text=st.text(st.characters(codec="ascii"), max_size=100))
def test_ascii(text: str) -> None:
    _assert_as_the_peer([text])


@settings(max_examples=300)
@given(text=st.text("\t\n\r" + "".join(map(chr, range(32, 127))), max_size=100))
def test_the_short_cut_for_plain_ascii(text: str) -> None:
    _assert_as_the_peer([text])


def test_every_letter_once() -> None:
    """One character in 37 of all of Unicode, and each of the first 12,000."""
    characters = [chr(i) for i in [*range(12_000), *range(12_000, 0x110000, 37)]]
    _assert_as_the_peer([f"a{character}b {character}'{character}" for character in characters])


@pytest.mark.parametrize("context_length", [3, 5, 77, 200])
def test_other_context_lengths(context_length: int) -> None:
    theirs = _peer()(TEXTS, context_length).numpy()
    ours = ClipBPETokenizer(context_length=context_length).encode(TEXTS).ids
    np.testing.assert_array_equal(ours, theirs[:, : ours.shape[1]])


@given(text=st.text(st.characters(codec="utf-8"), max_size=40).filter(lambda text: "<" not in text))
def test_decoding(text: str) -> None:
    ids = TOKENIZER.encode([text]).ids[0].tolist()
    assert TOKENIZER.decode(ids) == _peer().decode(ids[1 : ids.index(TOKENIZER.end_id)]).strip()


def test_vocabulary() -> None:
    assert clip_vocabulary() == _peer().encoder
    assert clip_merges() == list(_peer().bpe_ranks)
    assert len(clip_vocabulary()) == TOKENIZER.vocab_size == 49_408
    assert [clip_vocabulary()[mark] for mark in MARKS] == [TOKENIZER.start_id, TOKENIZER.end_id] == [49_406, 49_407]


def test_what_a_caller_does_to_the_vocabulary_stays_with_them() -> None:
    clip_vocabulary().clear()
    clip_merges().clear()
    assert len(clip_vocabulary()) == 49_408
    assert len(clip_merges()) == 48_894


def test_a_text_ends_at_its_first_end_mark() -> None:
    encoded = TOKENIZER.encode(["a <end_of_text> b", "a"])
    assert encoded.ids[0].tolist() == [49406, 320, 49407, 321, 49407]
    assert encoded.lengths.tolist() == [3, 3]
    assert TOKENIZER.decode(encoded.ids[0].tolist()) == "a"


@pytest.mark.parametrize("truncate", ["end", "error"])
def test_what_the_peer_cannot_clean_is_named_by_position(truncate: Any) -> None:
    endless = "&#" + "9" * 5000 + ";"  # Python reads no integer of more than 4,300 digits.
    with pytest.raises(ValueError, match="4300 digits"):
        _peer()([endless])
    with pytest.raises(DataError, match=r"text 1 cannot be cleaned: .*4300 digits"):
        TOKENIZER.encode(["a", endless], truncate=truncate)


def test_more_chunks_than_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_bpe, "_MAX_CACHED_CHUNKS", 10)
    texts = [f"number{i} x{i}" for i in range(40)] * 2
    _assert_as_the_peer(texts)
    assert _bytes_kept([f"word{'y' * (i % 40)}{i:x}" for i in range(4000)]) < 100_000  # Of 4,000 chunks 10 are kept.


def test_long_chunks_are_not_kept() -> None:
    assert _bytes_kept(["y" * (1000 + i) for i in range(100)]) < 50_000


def _bytes_kept(texts: list[str]) -> int:
    """Memory that is held after the texts were encoded, one by one, and was not before."""
    TOKENIZER.encode(["warm"])
    tracemalloc.start()
    try:
        for text in texts:
            TOKENIZER.encode([text])
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


def test_another_vocabulary_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="vocab_size is 8192; clip-bpe requires 49408"):
        train_tokenizer("clip-bpe", [], vocab_size=8192, context_length=77)


@pytest.mark.parametrize("content", [{}, {"vocabulary": "mine", "sha256": "00"}, ["x"]])
def test_a_file_that_names_another_vocabulary_is_refused(content: object, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json: names a vocabulary other than CLIP's"):
        ClipBPETokenizer.load(path, context_length=77)


def test_importing_reads_no_merges() -> None:
    code = (
        "import sys; opened = []; sys.addaudithook(lambda event, given: event == 'open' and opened.append(str(given[0])))\n"
        "from diptych.tokenizers import clip_bpe; tokenizer = clip_bpe.ClipBPETokenizer()\n"
        "num = [sum('clip_merges' in name for name in opened)]; tokenizer.encode(['a'])\n"
        "print(num[0], sum('clip_merges' in name for name in opened))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "0 1\n"


def _published() -> Path:
    return Path(peers.open_clip.__file__).parent / clip_bpe.VOCABULARY_NAME


def _make_vocabulary(*arguments: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, SCRIPT, *arguments], check=False, capture_output=True, text=True)


def test_the_packaged_file_comes_from_the_published_one(tmp_path: Path) -> None:
    done = _make_vocabulary(_published(), tmp_path / "made.gz")
    assert (done.returncode, done.stderr) == (0, "")
    made = (tmp_path / "made.gz").read_bytes()
    assert gzip.decompress(made) == gzip.decompress(PACKAGED.read_bytes())
    if "zlib-ng" not in zlib.ZLIB_RUNTIME_VERSION:  # It packs the same merges into other bytes.
        assert made == PACKAGED.read_bytes()


@pytest.mark.parametrize("damage", [lambda data: data + b"\0", lambda data: data[:-1], lambda _: b""])
def test_another_source_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    source = tmp_path / "other.gz"
    source.write_bytes(damage(_published().read_bytes()))
    done = _make_vocabulary(source, tmp_path / "made.gz")
    assert done.returncode == 2
    assert "its sha256 is" in done.stderr
    assert "github.com/openai/CLIP" in done.stderr
    assert not (tmp_path / "made.gz").exists()
