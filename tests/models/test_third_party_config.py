"""The configs of towers of other libraries, in files and in memory."""

from pathlib import Path
from typing import Any

import pytest

from diptych.bundle.identity import model_identity
from diptych.core.errors import ConfigError
from diptych.core.settings import from_plain, merge, to_plain
from diptych.models.config import CLIPConfig, TextConfig, TimmConfig, TransformersConfig
from diptych.models.third_party_config import is_resolved
from diptych.recipes.config_file import read_config_file
from diptych.training.config import read_run_config, write_config
from tests.makers import encoder_tower, timm_tower

TOWERS = """
recipe: {recipe}
model:
  image: {{tower: timm, name: convnext_atto, pretrained: true}}
  text: {{tower: transformers, name: sentence-transformers/all-MiniLM-L6-v2, pooling: mean}}
"""


@pytest.mark.parametrize("recipe", ["custom", "demo", "flickr30k-small"])
def test_a_config_file_names_towers_by_the_word_tower(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(TOWERS.format(recipe=recipe), "utf-8")
    config = read_config_file(path)
    assert config.model.image == TimmConfig(name="convnext_atto", pretrained=True)
    assert config.model.text == TransformersConfig(name="sentence-transformers/all-MiniLM-L6-v2", pooling="mean")
    write_config(config, tmp_path / "written.yaml")
    written = (tmp_path / "written.yaml").read_text("utf-8")
    assert "tower:" not in written
    assert "kind: transformers" in written
    assert read_run_config(tmp_path / "written.yaml") == config


def test_two_names_for_the_kind_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {image: {tower: timm, kind: vit, name: convnext_atto}}", "utf-8")
    with pytest.raises(ConfigError, match=r"model\.image has 'tower' and 'kind', which mean the same"):
        read_config_file(path)


def test_a_text_tower_without_a_kind_is_diptychs_own() -> None:
    plain = to_plain(CLIPConfig())
    assert "kind" not in plain["text"]
    assert from_plain(CLIPConfig, plain) == CLIPConfig()
    named = from_plain(CLIPConfig, {"text": {"kind": "text", "width": 64}})
    assert named.text == TextConfig(width=64)


def test_settings_of_another_kind_replace_the_whole_tower() -> None:
    config = merge(CLIPConfig(), {"text": {"kind": "transformers", "name": "bert"}})
    assert config.text == TransformersConfig(name="bert")
    assert merge(config, {"text": {"pooling": "cls"}}).text == TransformersConfig(name="bert", pooling="cls")
    assert merge(config, {"text": {"kind": "text"}}).text == TextConfig()


@pytest.mark.parametrize(
    "config",
    [
        CLIPConfig(image=timm_tower("convnext_atto", (32, 64), options={"depths": [1, 1, 1, 1]}, pooling="avg")),
        CLIPConfig(text=encoder_tower("bert", projection="mlp", projection_hidden=8)),
    ],
)
def test_a_config_survives_plain_data_and_can_be_hashed(config: CLIPConfig) -> None:
    assert from_plain(CLIPConfig, to_plain(config)) == config
    assert hash(config) == hash(from_plain(CLIPConfig, to_plain(config)))


@pytest.mark.parametrize(
    ("group", "plain", "message"),
    [
        ("text", {"kind": "tranformers", "name": "x"}, "'text.kind' is 'tranformers'; known: 'text', 'transformers'"),
        ("image", {"kind": "tim", "name": "x"}, "'image.kind' is 'tim'; known: 'vit', 'resnet', 'convnet', 'timm'"),
        (
            "image",
            {"kind": "timm", "name": "x", "pooing": "avg"},
            "unknown setting 'image.pooing'; did you mean 'image.pooling'",
        ),
        (
            "text",
            {"kind": "transformers", "name": "x", "poolin": 1},
            "unknown setting 'text.poolin'; did you mean 'text.pooling'",
        ),
        ("text", {"kind": "transformers", "name": ""}, "name is empty"),
        ("image", {"kind": "timm", "name": ""}, "name is empty"),
        (
            "text",
            {"kind": "transformers", "name": "x", "context_length": 2},
            "it must be at least 3 (start, end and one more token)",
        ),
        ("text", {"kind": "transformers", "name": "x", "vocab_size": -1}, "vocab_size is -1"),
        ("text", {"kind": "transformers", "name": "x", "projection_hidden": 0}, "must be at least 1"),
        ("text", {"kind": "transformers", "name": "x", "config": {"auto_map": {}}}, "which Diptych never runs"),
        (
            "text",
            {"kind": "transformers", "name": "x", "config": {"a": [{"auto_map": {}}]}},
            "which Diptych never runs",
        ),
        (
            "text",
            {"kind": "transformers", "name": "x", "config": {"a": {"attn_implementation": "someone/kernel"}}},
            "which Diptych never runs",
        ),
        (
            "text",
            {"kind": "transformers", "name": "x", "config": {"vision_config": {"model_type": "timm_wrapper"}}},
            "has model_type 'timm_wrapper', which stands for another model",
        ),
        ("text", {"kind": "transformers", "name": "x", "config": {"backbone": "a/b"}}, "has backbone 'a/b'"),
        ("text", {"kind": "transformers", "name": "x", "config": {"num_hidden_layers": 2**30}}, "must be at most 1024"),
        ("text", {"kind": "transformers", "name": "x", "config": {"num_labels": 2**30}}, "must be at most 65536"),
        ("image", {"kind": "timm", "name": "x", "options": {"checkpoint_path": "x.pth"}}, "has checkpoint_path"),
        ("image", {"kind": "timm", "name": "x", "options": {"pretrained_cfg": {}}}, "has pretrained_cfg"),
        ("text", {"kind": "transformers", "name": "x", "config": {"a": float("nan")}}, "not plain JSON"),
        ("text", {"kind": "transformers", "name": "x", "config": {"hidden_size": 2**50}}, "has a number above"),
        ("text", {"kind": "transformers", "name": "x", "config": {"max_position_embeddings": 2**30}}, "at most"),
        ("image", {"kind": "timm", "name": "x", "image_px": 9999}, "must be at most 4096"),
        ("image", {"kind": "timm", "name": "x", "image_px": -1}, "must be at least 1"),
    ],
)
def test_bad_settings_are_refused_in_one_line(group: str, plain: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        from_plain(CLIPConfig, {group: plain})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_where_weights_came_from_does_not_change_the_identity() -> None:
    one = CLIPConfig(image=timm_tower("convnext_atto", 64), text=encoder_tower("bert"))
    text = TransformersConfig(**{**vars(one.text), "name": "a/copy", "pretrained": True})
    image = TimmConfig(**{**vars(one.image), "pretrained": "here.pth", "transform": "timm"})
    other = CLIPConfig(image=image, text=text)
    assert _identity(one) == _identity(other)
    assert _identity(one) != _identity(CLIPConfig(image=one.image, text=encoder_tower("bert", pooling="cls")))
    assert _identity(one) != _identity(CLIPConfig(image=timm_tower("convnext_femto", 64), text=one.text))


def _identity(config: CLIPConfig) -> str:
    return model_identity(config, weights_sha256="", tokenizer_sha256="")


def test_a_tower_is_resolved_if_it_can_be_built() -> None:
    assert is_resolved(timm_tower("convnext_atto", 64))
    assert is_resolved(encoder_tower("bert"))
    assert not is_resolved(TimmConfig(name="convnext_atto"))
    assert not is_resolved(TransformersConfig(name="bert"))
