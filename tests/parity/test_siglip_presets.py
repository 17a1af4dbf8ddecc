"""The presets of SigLIP and SigLIP 2 have the tensors of the published models. All models are built on the `meta` device."""

import pytest
import torch
from torch import nn

from diptych.bundle.renaming import to_theirs
from diptych.bundle.siglip_names import hugging_face_siglip_names, timm_tower
from diptych.core.errors import ConfigError
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ViTConfig
from diptych.models.layers import hidden_width
from diptych.presets import PRESETS, preset
from diptych.tokenizers.load_tokenizer import train_tokenizer
from tests import peers

NAMES = [name for name in PRESETS if name.startswith(("siglip-", "siglip2-"))]
OPEN_CLIP = {
    "siglip-b-16-224": "ViT-B-16-SigLIP",
    "siglip-b-16-256-multilingual": "ViT-B-16-SigLIP-i18n-256",
    "siglip-l-16-384": "ViT-L-16-SigLIP-384",
    "siglip-so400m-14-224": "ViT-SO400M-14-SigLIP",
    "siglip-so400m-14-384": "ViT-SO400M-14-SigLIP-384",
    "siglip-so400m-16-256-multilingual": "ViT-SO400M-16-SigLIP-i18n-256",
    "siglip2-b-32-256": "ViT-B-32-SigLIP2-256",
    "siglip2-l-16-512": "ViT-L-16-SigLIP2-512",
    "siglip2-so400m-16-512": "ViT-SO400M-16-SigLIP2-512",
    "siglip2-giant-16-384": "ViT-gopt-16-SigLIP2-384",
}


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _peer_config(config: CLIPConfig) -> object:
    image, text = config.image, config.own_text
    assert isinstance(image, ViTConfig)
    towers = [
        {
            "hidden_size": tower.width,
            "intermediate_size": hidden_width(tower.width, tower.mlp_ratio),
            "num_hidden_layers": tower.layers,
            "num_attention_heads": tower.heads,
        }
        for tower in (image, text)
    ]
    sizes = {"image_size": height_width(image.image_px)[0], "patch_size": height_width(image.patch_px)[0]}
    words = {
        "vocab_size": text.vocab_size,
        "max_position_embeddings": text.context_length,
        "projection_size": config.embed_dim,
    }
    return peers.transformers.SiglipConfig(vision_config={**towers[0], **sizes}, text_config={**towers[1], **words})


@pytest.mark.parametrize("name", [name for name in NAMES if preset(name).own_text.has_projection])
def test_a_preset_has_the_tensors_of_the_peers_model(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        theirs = peers.transformers.SiglipModel._from_config(_peer_config(config))
    ours = CLIP.without_memory(config)
    assert _count(ours) == _count(theirs)
    mine = to_theirs(ours.state_dict(), hugging_face_siglip_names(config))
    assert {n: t.shape for n, t in mine.items()} == {n: t.shape for n, t in theirs.state_dict().items()}


@pytest.mark.parametrize("name", list(OPEN_CLIP))
def test_a_preset_has_the_number_of_parameters_of_open_clips_model(name: str) -> None:
    content = peers.open_clip.get_model_config(OPEN_CLIP[name])
    del content["custom_text"]
    with torch.device("meta"):
        theirs = peers.open_clip.model.CustomTextCLIP(**content)
    assert _count(CLIP.without_memory(preset(name))) == _count(theirs)
    tower, image = timm_tower(content["vision_cfg"]["timm_model_name"]), preset(name).image
    assert tower is not None
    assert isinstance(image, ViTConfig)
    assert (tower.grid, tower.width, tower.layers) == (image.grid, image.width, image.layers)


def test_training_a_preset_needs_a_tokenizer() -> None:
    text = preset("siglip2-b-32-256").text
    with pytest.raises(ConfigError, match=r"cannot be trained on captions; name a model .*--init.*learned-bpe"):
        train_tokenizer(text.tokenizer, ["a dog"], vocab_size=text.vocab_size, context_length=text.context_length)
