"""Write a model as a folder that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` load."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from diptych.bundle.hugging_face import (
    ACTIVATIONS,
    CONFIG,
    END,
    FILTERS,
    START,
    WEIGHTS,
    hub_vocabulary,
    hugging_face_names,
)
from diptych.bundle.renaming import to_theirs
from diptych.core.errors import ConfigError
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.models.layers import hidden_width
from diptych.tokenizers.clip_bpe import clip_merges


def write_hugging_face(model: CLIP, folder: Path) -> None:
    """Write the folder that `CLIPModel.from_pretrained` and `CLIPProcessor.from_pretrained` load.

    Raises:
        ConfigError: `CLIPModel` does not support a feature of the model; the message names it.
    """
    config = model.config
    check_hugging_face(config)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    save_file(to_theirs(weights, hugging_face_names(config)), folder / WEIGHTS[0], metadata={"format": "pt"})
    _write_json(folder / CONFIG, _config_of(config))
    _write_json(folder / "preprocessor_config.json", _processor_of(config))
    _write_json(folder / "vocab.json", hub_vocabulary())
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in clip_merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    special_tokens = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": config.text.context_length, **special_tokens},
    )
    _write_json(folder / "special_tokens_map.json", special_tokens)


def check_hugging_face(config: CLIPConfig) -> None:
    """Check that `transformers.CLIPModel` supports a model.

    Raises:
        ConfigError: `CLIPModel` does not support a feature of the model; the message names it.
    """
    image, text = config.image, config.text
    reasons = []
    if not isinstance(image, ViTConfig):
        reasons.append("its ResNet")
    else:
        (height, width), (patch_height, patch_width) = height_width(image.image_px), height_width(image.patch_px)
        reasons += ["its convolutional stem"] if image.stem == "conv" else []
        reasons += [f"its {image.pooling} pooling"] if image.pooling != "cls" else []
        reasons += (
            ["its pictures or patches that are not square"] if height != width or patch_height != patch_width else []
        )
    reasons += ["SigLIP's layout"] if text.layout == "siglip" else []
    reasons += [] if text.is_causal else ["its bidirectional text tower"]
    reasons += [] if text.pooling == "eot" else [f"its text tower's {text.pooling} pooling"]
    reasons += [] if text.tokenizer == "clip-bpe" else [f"its {text.tokenizer} tokenizer"]
    reasons += ["its logit bias"] if config.init_logit_bias is not None else []
    if reasons:
        raise ConfigError(f"Hugging Face's CLIPModel does not support {', '.join(reasons)}")


def _config_of(config: CLIPConfig) -> dict[str, Any]:
    image, text = config.image, config.text
    assert isinstance(image, ViTConfig)
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.embed_dim,
        "logit_scale_init_value": -math.log(config.init_temperature),
        "vision_config": {
            "model_type": "clip_vision_model",
            "image_size": height_width(image.image_px)[0],
            "patch_size": height_width(image.patch_px)[0],
            **_tower_of(image, config.embed_dim),
        },
        "text_config": {
            "model_type": "clip_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
            "pad_token_id": 49407,
            **_tower_of(text, config.embed_dim),
        },
        "torch_dtype": "float32",
    }


def _tower_of(tower: ViTConfig | TextConfig, embed_dim: int) -> dict[str, Any]:
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    return {
        "hidden_size": tower.width,
        "intermediate_size": hidden_width(tower.width, tower.mlp_ratio),
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": theirs[tower.activation],
        "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0,
        "projection_dim": embed_dim,
    }


def _processor_of(config: CLIPConfig) -> dict[str, Any]:
    side = height_width(config.image.image_px)[0]
    numbers = {name: number for number, name in FILTERS.items()}
    return {
        "image_processor_type": "CLIPImageProcessor",
        **dict.fromkeys(("do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"), True),
        "size": {"shortest_edge": side},
        "crop_size": {"height": side, "width": side},
        "resample": numbers[config.pixels.interpolation],
        "rescale_factor": 1 / 255,
        "image_mean": list(config.pixels.mean),
        "image_std": list(config.pixels.std),
    }


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
