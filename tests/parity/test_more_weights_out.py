"""Tokenizers other than CLIP's, SigLIP's layout and a third activation: what the peers load gives the same embeddings."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.bundle.folder import Bundle
from diptych.bundle.open_bundle import export_bundle, open_bundle
from diptych.bundle.renaming import to_theirs
from diptych.bundle.siglip_names import timm_name, timm_names, timm_tower
from diptych.core.errors import BundleError, ConfigError
from diptych.inference.loaded import LoadedBundle
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.tokenizers.load_tokenizer import train_tokenizer
from tests import peers
from tests.conftest import draw_photos
from tests.parity.models import shaken

pytestmark = pytest.mark.filterwarnings("ignore:texts longer than 24 tokens were truncated")

TEXTS = ["a dog in the snow", "Two CHILDREN on a swing, laughing!", "a red circle", "", "the 1990s café", "long " * 40]
IMAGE = ViTConfig(image_px=48, patch_px=16, width=64, layers=2, heads=2)
TEXT = TextConfig(width=64, layers=2, heads=2, context_length=24)
SIGLIP_IMAGE = replace(IMAGE, layout="siglip", pooling="attention", activation="gelu_tanh")
SIGLIP_TEXT = replace(TEXT, layout="siglip", is_causal=False, activation="gelu_tanh")
SIGLIP = CLIPConfig(embed_dim=64, image=SIGLIP_IMAGE, text=SIGLIP_TEXT, init_logit_bias=-10.0)
KINDS = ["clip-bpe", "learned-bpe", "character"]


def _bundle(config: CLIPConfig, kind: Any) -> Bundle:
    size = 49408 if kind == "clip-bpe" else 300
    tokenizer = train_tokenizer(kind, TEXTS, vocab_size=size, context_length=config.text.context_length)
    text = replace(config.text, tokenizer=kind, vocab_size=tokenizer.vocab_size)
    torch.manual_seed(0)
    return Bundle(model=shaken(CLIP(replace(config, text=text))), tokenizer=tokenizer)


def _photos(folder: Path) -> list[Path]:
    draw_photos(folder, ["a.png", "b.png"])
    Image.effect_mandelbrot((70, 130), (-2, -1, 1, 1), 50).convert("RGB").save(folder / "d.png")
    return sorted(folder.iterdir())


def _hugging_face_embeddings(
    folder: Path, name: str, photos: Sequence[Path], **options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """transformers' whole path: its model and its processor."""
    model = getattr(peers.transformers, f"{name}Model").from_pretrained(folder).eval()
    processor = getattr(peers.transformers, f"{name}Processor").from_pretrained(folder, backend="pil")
    pictures = [Image.open(photo).convert("RGB") for photo in photos]
    inputs = processor(text=TEXTS, images=pictures, return_tensors="pt", truncation=True, **options)
    with torch.no_grad():
        out = model(**inputs)
    return out.image_embeds, out.text_embeds


def _open_clip_embeddings(folder: Path, photos: Sequence[Path]) -> tuple[torch.Tensor, torch.Tensor]:
    """open_clip's whole path: its model, its transform, its tokenizer."""
    name = f"local-dir:{folder}"
    model, preprocess = peers.open_clip.create_model_from_pretrained(name)
    tokens = peers.open_clip.get_tokenizer(name)(TEXTS)
    with torch.no_grad():
        stacked = torch.stack([preprocess(Image.open(photo)) for photo in photos])
        return model.eval().encode_image(stacked, normalize=True), model.encode_text(tokens, normalize=True)


def _assert_same(bundle: Bundle, photos: list[Path], theirs: tuple[torch.Tensor, torch.Tensor]) -> None:
    clip = LoadedBundle(bundle)
    for ours, other in zip((clip.encode_images(photos), clip.encode_texts(TEXTS)), theirs, strict=True):
        np.testing.assert_allclose(ours, other.numpy(), atol=1e-5)
        assert float(other.std(dim=0).max()) > 1e-3  # They do differ.


def _assert_read_back(bundle: Bundle, folder: Path) -> None:
    again = open_bundle(folder)
    assert again.identity == replace(bundle, model=again.model).identity
    for name, tensor in bundle.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], tensor), name
    np.testing.assert_array_equal(again.tokenizer.encode(TEXTS).ids, bundle.tokenizer.encode(TEXTS).ids)


@pytest.mark.parametrize("kind", KINDS[1:])
@pytest.mark.parametrize("to", ["open-clip", "hugging-face"])
def test_a_tokenizer_of_ones_own(kind: str, to: Any, tmp_path: Path) -> None:
    bundle, photos = _bundle(CLIPConfig(embed_dim=32, image=IMAGE, text=TEXT), kind), _photos(tmp_path / "photos")
    export_bundle(bundle, to, tmp_path / "out")
    if to == "open-clip":
        theirs = _open_clip_embeddings(tmp_path / "out", photos)
    else:
        theirs = _hugging_face_embeddings(tmp_path / "out", "CLIP", photos, padding=True)
    _assert_same(bundle, photos, theirs)
    _assert_read_back(bundle, tmp_path / "out")


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_loads_siglips_layout(kind: str, tmp_path: Path) -> None:
    bundle, photos = _bundle(SIGLIP, kind), _photos(tmp_path / "photos")
    export_bundle(bundle, "hugging-face", tmp_path / "out")
    theirs = _hugging_face_embeddings(tmp_path / "out", "Siglip", photos, padding="max_length")
    _assert_same(bundle, photos, theirs)
    _assert_read_back(bundle, tmp_path / "out")
    model = peers.transformers.AutoModel.from_pretrained(tmp_path / "out")
    assert (model.logit_scale.item(), model.logit_bias.item()) == (bundle.model.log_logit_scale.item(), -10.0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["clip-bpe", "learned-bpe"])
def test_open_clip_loads_siglips_layout(kind: str, tmp_path: Path) -> None:
    """open_clip uses timm's image towers, which have fixed sizes; the smallest has 90 million parameters."""
    tower = timm_tower("vit_base_patch32_siglip_256")
    assert tower is not None
    bundle = _bundle(CLIPConfig(embed_dim=768, image=tower, text=SIGLIP_TEXT, init_logit_bias=-10.0), kind)
    photos = _photos(tmp_path / "photos")
    export_bundle(bundle, "open-clip", tmp_path / "out")
    _assert_same(bundle, photos, _open_clip_embeddings(tmp_path / "out", photos))
    _assert_read_back(bundle, tmp_path / "out")


def test_timms_towers_have_their_names_and_shapes() -> None:
    """Build the towers on the `meta` device. timm's towers with mean pooling ("gap") are excluded."""
    timm = peers.timm
    names = [name for name in timm.list_models("vit_*siglip*") if "gap" not in name]
    assert all(timm_tower(name) for name in names)
    for name in (
        *("vit_base_patch16_siglip_224", "vit_base_patch32_siglip_256", "vit_so400m_patch14_siglip_224"),
        *("vit_so400m_patch14_siglip_384", "vit_giantopt_patch16_siglip_256"),
    ):
        tower = timm_tower(name)
        assert tower is not None
        assert timm_name(tower) == name
        with torch.device("meta"):
            theirs = timm.create_model(name, num_classes=0)
            ours = CLIP(CLIPConfig(embed_dim=tower.width, image=tower, text=SIGLIP_TEXT)).state_dict()
        mine = {
            name.removeprefix("visual.trunk."): tensor.shape
            for name, tensor in to_theirs(ours, timm_names(tower)).items()
        }
        assert mine == {name: tensor.shape for name, tensor in theirs.state_dict().items()}
        assert theirs.blocks[0].attn.num_heads == theirs.attn_pool.num_heads == tower.heads
        given = torch.linspace(-3, 3, 50)
        activation = torch.nn.functional.gelu(given, approximate="tanh" if tower.activation == "gelu_tanh" else "none")
        torch.testing.assert_close(theirs.blocks[0].mlp.act(given), activation, atol=1e-6, rtol=0)


def test_open_clip_loads_gelus_tanh_approximation_in_either_tower(tmp_path: Path) -> None:
    photos = _photos(tmp_path / "photos")
    for number, (image, text) in enumerate([("gelu_tanh", "gelu"), ("gelu", "gelu_tanh"), ("gelu_tanh", "gelu_tanh")]):
        towers: Any = {"image": replace(IMAGE, activation=image), "text": replace(TEXT, activation=text)}  # type: ignore[arg-type]
        bundle = _bundle(CLIPConfig(embed_dim=32, **towers), "clip-bpe")
        export_bundle(bundle, "open-clip", tmp_path / f"{number}")
        _assert_same(bundle, photos, _open_clip_embeddings(tmp_path / f"{number}", photos))
        _assert_read_back(bundle, tmp_path / f"{number}")


@pytest.mark.parametrize(
    ("config", "to", "message"),
    [
        (
            replace(SIGLIP, init_logit_bias=None),
            "hugging-face",
            "SiglipModel does not support its lack of a logit bias; ",
        ),
        (
            replace(SIGLIP, text=replace(TEXT, is_causal=False)),
            "hugging-face",
            "SigLIP's layout in only one of its towers",
        ),
        (replace(SIGLIP, image=replace(SIGLIP_IMAGE, pooling="mean")), "hugging-face", "its mean pooling"),
        (SIGLIP, "open-clip", "its image tower in SigLIP's layout, of a size that timm does not have"),
        (
            CLIPConfig(embed_dim=32, image=IMAGE, text=TEXT, init_logit_bias=0.0),
            "hugging-face",
            "CLIPModel .* its logit bias",
        ),
        (
            CLIPConfig(embed_dim=32, image=replace(IMAGE, activation="quick_gelu"), text=TEXT),
            "open-clip",
            "its two activations, quick_gelu and gelu",
        ),
    ],
)
def test_what_has_no_place_is_refused_by_name(config: CLIPConfig, to: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        export_bundle(_bundle(config, "character"), to, tmp_path / "out")


@pytest.mark.parametrize("to", ["open-clip", "hugging-face"])
def test_a_damaged_tokenizer_is_refused(to: Any, tmp_path: Path) -> None:
    export_bundle(_bundle(CLIPConfig(embed_dim=32, image=IMAGE, text=TEXT), "learned-bpe"), to, tmp_path / "out")
    (tmp_path / "out" / "diptych_learned-bpe.json").write_text("{}")
    with pytest.raises(BundleError, match=r"diptych_learned-bpe\.json: is damaged"):
        open_bundle(tmp_path / "out")
