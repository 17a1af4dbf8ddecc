"""Damaged and forged tokenizers of a bundle."""

import json
from pathlib import Path

import pytest

from diptych.bundle import read_tokenizer
from diptych.bundle.folder import load_bundle, save_bundle
from diptych.core.errors import BundleError
from tests.bundle.makers import reseal


def test_a_tokenizer_with_ids_beyond_its_vocabulary_is_refused(bundle: Path) -> None:
    content = json.loads((bundle / "tokenizer.json").read_text("utf-8"))
    vocabulary = content["model"]["vocab"]
    vocabulary[max(vocabulary, key=vocabulary.__getitem__)] = 10**9
    (bundle / "tokenizer.json").write_text(json.dumps(content))
    reseal(bundle)
    with pytest.raises(BundleError, match=r"tokenizer\.json: is damaged \(the ids of its \d+ entries are not 0, 1"):
        load_bundle(bundle)


def test_a_tokenizer_larger_than_the_bound_is_refused(bundle: Path) -> None:
    with (bundle / "tokenizer.json").open("ab") as file:
        file.truncate(2**24 + 1)
    reseal(bundle)
    with pytest.raises(BundleError, match=r"tokenizer\.json: is damaged \(has 16,777,217 bytes; at most"):
        load_bundle(bundle)


def test_a_panic_of_the_engine_is_damage(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {})

    def panics(*_: object, **__: object) -> None:
        raise panic("index out of bounds")

    monkeypatch.setattr(read_tokenizer, "load_tokenizer", panics)
    with pytest.raises(BundleError, match=r"tokenizer\.json: is damaged \(index out of bounds\)"):
        load_bundle(bundle)


def test_the_tokenizers_text_is_kept_to_the_byte(bundle: Path, tmp_path: Path) -> None:
    text = json.dumps(json.loads((bundle / "tokenizer.json").read_text("utf-8")))  # As another engine might write it.
    (bundle / "tokenizer.json").write_text(text)
    reseal(bundle)
    save_bundle(load_bundle(bundle), tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_text() == text
