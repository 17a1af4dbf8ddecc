"""Write a model as a folder that `transformers` loads: `CLIPModel` or `SiglipModel`, and the processor of the same name."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from diptych.bundle.foreign_tokenizer import (
    END,
    START,
    transformers_tokenizer_files,
    with_hub_marks,
    write_own_tokenizer,
)
from diptych.bundle.hugging_face import ACTIVATIONS, CONFIG, WEIGHTS, hub_vocabulary, hugging_face_names
from diptych.bundle.libraries import check_hugging_face, is_siglip
from diptych.bundle.processor import processor_config
from diptych.bundle.renaming import to_theirs
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.models.layers import hidden_width, norm_eps
from diptych.tokenizers.clip_bpe import clip_merges
from diptych.tokenizers.protocol import Tokenizer


def write_hugging_face(model: CLIP, tokenizer: Tokenizer, folder: Path) -> None:
    """Write the folder that `from_pretrained` of `CLIPModel` and `CLIPProcessor` loads, or of `SiglipModel` and its processor.

    Raises:
        ConfigError: the class does not support a feature of the model; the message names it.
    """
    config = model.config
    check_hugging_face(config)
    weights = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    save_file(to_theirs(weights, hugging_face_names(config)), folder / WEIGHTS[0], metadata={"format": "pt"})
    _write_json(folder / CONFIG, _config_of(config, tokenizer))
    _write_json(folder / "preprocessor_config.json", _processor_of(config))
    if config.text.tokenizer == "clip-bpe" and not is_siglip(config):
        _write_clip_tokenizer(tokenizer, folder)
    else:
        _write_tokenizer(tokenizer, config, folder)


def _write_clip_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write the tokenizer in the format of OpenAI's models, for `CLIPTokenizer`."""
    _write_json(folder / "vocab.json", hub_vocabulary())
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in clip_merges())]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    files = transformers_tokenizer_files(tokenizer, with_mask=True)
    _write_json(folder / "tokenizer.json", with_hub_marks(files["tokenizer.json"]))
    special_tokens = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": END}
    _write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.context_length, **special_tokens},
    )
    _write_json(folder / "special_tokens_map.json", special_tokens)


def _write_tokenizer(tokenizer: Tokenizer, config: CLIPConfig, folder: Path) -> None:
    if config.text.tokenizer == "sentencepiece":
        _write_sentence_pieces(tokenizer, config, folder)
        return
    files = transformers_tokenizer_files(tokenizer, with_mask=not is_siglip(config))  # SigLIP attends to the padding.
    for name, content in files.items():
        _write_json(folder / name, content)
    write_own_tokenizer(tokenizer, config.text.tokenizer, folder)


def _write_sentence_pieces(tokenizer: Tokenizer, config: CLIPConfig, folder: Path) -> None:
    """Write the files of `SiglipTokenizer`, whose code has the text preparation of SigLIP and no other."""
    tokenizer.save(folder / "spiece.model")
    names = {
        "eos_token": "</s>",
        "pad_token": "</s>" if tokenizer.pad_id == tokenizer.end_id else "<pad>",
        "unk_token": "<unk>",
    }
    settings = {
        "tokenizer_class": "SiglipTokenizer",
        "do_lower_case": True,
        "model_max_length": tokenizer.context_length,
    }
    _write_json(folder / "tokenizer_config.json", {**settings, "model_input_names": ["input_ids"], **names})
    _write_json(folder / "special_tokens_map.json", names)
    write_own_tokenizer(tokenizer, "sentencepiece", folder)


def _config_of(config: CLIPConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    image, text = config.image, config.own_text
    assert isinstance(image, ViTConfig)
    name = "siglip" if is_siglip(config) else "clip"
    width = "projection_size" if name == "siglip" else "projection_dim"
    return {
        "architectures": ["SiglipModel" if name == "siglip" else "CLIPModel"],
        "model_type": name,
        "vision_config": {
            "model_type": f"{name}_vision_model",
            "image_size": height_width(image.image_px)[0],
            "patch_size": height_width(image.patch_px)[0],
            **({} if name == "siglip" else {width: config.embed_dim}),
            **_tower_of(image),
        },
        "text_config": {
            "model_type": f"{name}_text_model",
            "vocab_size": text.vocab_size,
            "max_position_embeddings": text.context_length,
            "bos_token_id": tokenizer.start_id,
            "eos_token_id": tokenizer.end_id,
            "pad_token_id": _pad_id(config, tokenizer),
            width: config.embed_dim,
            **_tower_of(text),
        },
        **({} if name == "siglip" else _clip_settings(config)),
        "torch_dtype": "float32",
    }


def _clip_settings(config: CLIPConfig) -> dict[str, Any]:
    return {"projection_dim": config.embed_dim, "logit_scale_init_value": -math.log(config.init_temperature)}


def _pad_id(config: CLIPConfig, tokenizer: Tokenizer) -> int | None:
    """`CLIPTokenizer` pads with the end token, which a causal text tower does not attend to."""
    return tokenizer.end_id if config.text.tokenizer == "clip-bpe" and not is_siglip(config) else tokenizer.pad_id


def _tower_of(tower: ViTConfig | TextConfig) -> dict[str, Any]:
    theirs = {ours: name for name, ours in ACTIVATIONS.items()}
    return {
        "hidden_size": tower.width,
        "intermediate_size": hidden_width(tower.width, tower.mlp_ratio),
        "num_hidden_layers": tower.layers,
        "num_attention_heads": tower.heads,
        "hidden_act": theirs[tower.activation],
        "layer_norm_eps": norm_eps(tower),
        "attention_dropout": 0.0,
    }


def _processor_of(config: CLIPConfig) -> dict[str, Any]:
    """Return a `CLIPImageProcessor`, or a `SiglipImageProcessor`, which cannot crop, for SigLIP's layout without cropping."""
    content = processor_config(config)
    if not is_siglip(config):
        return content
    if not content["do_center_crop"]:
        content["image_processor_type"] = "SiglipImageProcessor"
        del content["do_center_crop"], content["crop_size"]
    return {"processor_class": "SiglipProcessor", **content}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
