"""transformers' `AutoTokenizer` returns the same ids as our tokenizers from the exported files."""

from pathlib import Path

import pytest

from diptych.tokenizers.hugging_face import write_tokenizer_files
from diptych.tokenizers.load_tokenizer import TokenizerKind
from tests import peers
from tests.tokenizers.makers import HARD_TEXTS, make_tokenizer


@pytest.mark.parametrize("kind", ["clip-bpe", "learned-bpe", "character"])
def test_auto_tokenizer(kind: TokenizerKind, tmp_path: Path) -> None:
    ours = make_tokenizer(kind)
    write_tokenizer_files(ours, tmp_path)
    theirs = peers.transformers.AutoTokenizer.from_pretrained(tmp_path)
    encoded = ours.encode(HARD_TEXTS)
    given = theirs(HARD_TEXTS, padding=True, truncation=True, return_tensors="np")
    for text, row, other in zip(HARD_TEXTS, encoded.ids, given["input_ids"], strict=True):
        assert other.tolist() == row.tolist(), text
    assert sorted(given) == ["attention_mask", "input_ids"]
    assert given["attention_mask"][2].sum() == encoded.lengths[2]
