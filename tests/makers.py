"""Factories for tests of several packages: damaged files, models with random weights."""

from pathlib import Path
from typing import Any

import torch

from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TimmConfig, TransformersConfig
from diptych.models.text_transformer import TextTransformer


def flip_bit(path: Path, bit: int | None = None) -> None:
    """Flip one bit of a file, by default the lowest one of its middle byte."""
    content = bytearray(path.read_bytes())
    if bit is None:
        bit = 8 * (len(content) // 2)
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def timm_tower(name: str, image_px: int | tuple[int, int], **settings: Any) -> TimmConfig:
    """The resolved config of an image tower of timm."""
    return TimmConfig(name=name, image_px=image_px, transform="config", **settings)


TIMM_TOWERS = {
    "timm vit": timm_tower(
        "vit_tiny_patch16_224", (16, 32), options={"depth": 2, "embed_dim": 16, "num_heads": 2, "patch_size": 8}
    ),
    "timm convnext": timm_tower(
        "convnext_atto", (32, 64), options={"depths": [1, 1, 1, 1], "dims": [8, 8, 16, 16]}, projection="mlp"
    ),
    "timm efficientnet-lite": timm_tower("tf_efficientnet_lite0", (32, 64)),
    "timm swin": timm_tower(
        "swin_tiny_patch4_window7_224",
        (32, 64),
        options={"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
}
"""Small image towers of timm; Swin has buffers that a file of weights does not contain."""


def encoder_tower(
    model_type: str, *, vocab_size: int = 60, context_length: int = 9, **settings: Any
) -> TransformersConfig:
    """The resolved config of a small text encoder of transformers."""
    architecture = {
        "model_type": model_type,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": context_length + (2 if model_type == "xlm-roberta" else 0),
        "pad_token_id": 1 if model_type == "xlm-roberta" else 0,
        **_MORE_OF_ENCODERS.get(model_type, {}),
    }
    given = {"pooling": "mean", "tokenizer": "character", **settings}
    return TransformersConfig(
        name=model_type, config=architecture, vocab_size=vocab_size, context_length=context_length, **given
    )


_MORE_OF_ENCODERS = {
    "modernbert": {
        **{"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2},
        **{"global_attn_every_n_layers": 2, "local_attention": 4},
    }
}
ENCODER_TOWERS = {
    "bert, mean": encoder_tower("bert"),
    "bert, pooler": encoder_tower("bert", pooling="pooler", projection="mlp"),
    "xlm-roberta, last": encoder_tower("xlm-roberta", pooling="last"),
    "modernbert, cls": encoder_tower("modernbert", pooling="cls"),
}
"""Small text encoders of transformers."""


def randomized(config: CLIPConfig, *, seed: int = 0) -> CLIP:
    """A model in evaluation mode in which no parameter or statistic keeps its initial value, such as 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    model = CLIP(config).eval()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point() and tensor.ndim:
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.mul_(0.5 + noise).add_((noise - 0.5).abs() * 0.2)
    return model


def own_text_tower(model: CLIP) -> TextTransformer:
    """The text tower of a model whose text tower is Diptych's own."""
    assert isinstance(model.text_tower, TextTransformer)
    return model.text_tower
