"""SigLIP's names of tensors: those of `transformers.SiglipModel`, and those of timm's image towers, which open_clip uses."""

from collections.abc import Mapping

from diptych.bundle.renaming import Rename, norm, same, shaped, stacked
from diptych.images.transforms import height_width
from diptych.models.config import Activation, CLIPConfig, ViTConfig
from diptych.models.layers import hidden_width

_PARTS = ("weight", "bias")
_QUERY_KEY_VALUE = ("query", "key", "value")

_TIMM_SIZES = {
    "base": (768, 12, 12, 3072),
    "large": (1024, 24, 16, 4096),
    "so400m": (1152, 27, 16, 4304),
    "giantopt": (1536, 40, 16, 6144),
}
"""Width, layers, heads and hidden width by the name of the size."""
_TIMM_TOWERS: dict[tuple[str, int, int], Activation] = {
    **{("base", 16, side): "gelu" for side in (224, 256, 384, 512)},
    **{("large", 16, side): "gelu" for side in (256, 384)},
    **{("so400m", 14, side): "gelu" for side in (224, 378, 384)},
    **dict.fromkeys([("base", 32, 256), ("large", 16, 512)], "gelu_tanh"),
    **{("so400m", 16, side): "gelu_tanh" for side in (256, 384, 512)},
    **{("giantopt", 16, side): "gelu_tanh" for side in (256, 384)},
}
"""Activation of each of timm's towers, by size, patch side and image side (timm 1.0)."""


def timm_name(image: ViTConfig) -> str | None:
    """Return timm's name for an image tower in SigLIP's layout; None if timm has no such size and activation.

    >>> siglip = ViTConfig(patch_px=16, layout="siglip", pooling="attention")
    >>> timm_name(siglip), timm_name(ViTConfig(patch_px=32, layout="siglip", pooling="attention"))
    ('vit_base_patch16_siglip_224', None)
    """
    if image.layout != "siglip" or image.pooling != "attention" or image.stem != "patch":
        return None
    shape = (image.width, image.layers, image.heads, hidden_width(image.width, image.mlp_ratio))
    for (size, patch, side), activation in _TIMM_TOWERS.items():
        given = (image.patch_px, image.image_px, image.activation)
        if _TIMM_SIZES[size] == shape and given == (patch, side, activation):
            return f"vit_{size}_patch{patch}_siglip_{side}"
    return None


def timm_tower(name: str) -> ViTConfig | None:
    """Return the config of the image tower with this name in timm; None for any other name.

    >>> timm_tower("vit_so400m_patch14_siglip_224").width, timm_tower("resnet50")
    (1152, None)
    """
    for (size, patch, side), activation in _TIMM_TOWERS.items():
        if name == f"vit_{size}_patch{patch}_siglip_{side}":
            width, layers, heads, hidden = _TIMM_SIZES[size]
            return ViTConfig(
                image_px=side,
                patch_px=patch,
                width=width,
                layers=layers,
                heads=heads,
                mlp_ratio=hidden / width,
                activation=activation,
                pooling="attention",
                layout="siglip",
            )
    return None


def timm_names(image: ViTConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names and timm's, below open_clip's prefix."""
    theirs, pool, mine = "visual.trunk", "visual.trunk.attn_pool", "image_tower.pool.attention"
    side = (3, *height_width(image.patch_px))
    table = [
        shaped("image_tower.stem.embed.weight", f"{theirs}.patch_embed.proj.weight", side),
        same("image_tower.stem.embed.bias", f"{theirs}.patch_embed.proj.bias"),
        Rename(
            ("image_tower.position_emb",), f"{theirs}.pos_embed", lambda parts: parts[0][None], lambda whole: [whole[0]]
        ),
        *norm("image_tower.norm_post", f"{theirs}.norm"),
        _one_row("image_tower.pool.query", f"{pool}.latent"),
        *norm(f"{mine}.query", f"{pool}.q"),
        *(stacked([f"{mine}.key.{part}", f"{mine}.value.{part}"], f"{pool}.kv.{part}") for part in _PARTS),
        *norm(f"{mine}.out", f"{pool}.proj"),
        *norm("image_tower.pool.norm", f"{pool}.norm"),
        *norm("image_tower.pool.mlp.0", f"{pool}.mlp.fc1"),
        *norm("image_tower.pool.mlp.2", f"{pool}.mlp.fc2"),
    ]
    pairs = {"norm_1": "norm1", "attention.out": "attn.proj", "norm_2": "norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"}
    for i in range(image.layers):
        ours, block = f"image_tower.transformer.blocks.{i}", f"{theirs}.blocks.{i}"
        table += _pairs(ours, block, pairs)
        for part in _PARTS:
            table.append(
                stacked([f"{ours}.attention.{n}.{part}" for n in _QUERY_KEY_VALUE], f"{block}.attn.qkv.{part}")
            )
    return table


def hugging_face_siglip_names(config: CLIPConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names and those of `transformers.SiglipModel`."""
    image = config.image
    assert isinstance(image, ViTConfig)
    vision, text, pool = "vision_model.embeddings", "text_model.embeddings", "vision_model.head"
    side = (3, *height_width(image.patch_px))
    query_key_value = [f"image_tower.pool.attention.{name}" for name in _QUERY_KEY_VALUE]
    return [
        shaped("image_tower.stem.embed.weight", f"{vision}.patch_embedding.weight", side),
        same("image_tower.stem.embed.bias", f"{vision}.patch_embedding.bias"),
        same("image_tower.position_emb", f"{vision}.position_embedding.weight"),
        *_siglip_blocks("image_tower", "vision_model", image.layers),
        *norm("image_tower.norm_post", "vision_model.post_layernorm"),
        _one_row("image_tower.pool.query", f"{pool}.probe"),
        *(stacked([f"{n}.{part}" for n in query_key_value], f"{pool}.attention.in_proj_{part}") for part in _PARTS),
        *norm("image_tower.pool.attention.out", f"{pool}.attention.out_proj"),
        *norm("image_tower.pool.norm", f"{pool}.layernorm"),
        *norm("image_tower.pool.mlp.0", f"{pool}.mlp.fc1"),
        *norm("image_tower.pool.mlp.2", f"{pool}.mlp.fc2"),
        same("text_tower.token_emb.weight", f"{text}.token_embedding.weight"),
        same("text_tower.position_emb", f"{text}.position_embedding.weight"),
        *_siglip_blocks("text_tower", "text_model", config.own_text.layers),
        *norm("text_tower.norm_post", "text_model.final_layer_norm"),
        *norm("text_tower.projection", "text_model.head"),
        _one_number("log_logit_scale", "logit_scale"),
        _one_number("logit_bias", "logit_bias"),
    ]


def _siglip_blocks(ours: str, theirs: str, layers: int) -> list[Rename]:
    pairs = {
        **{"norm_1": "layer_norm1", "norm_2": "layer_norm2", "mlp.0": "mlp.fc1", "mlp.2": "mlp.fc2"},
        **{f"attention.{name}": f"self_attn.{name[0]}_proj" for name in _QUERY_KEY_VALUE},
        "attention.out": "self_attn.out_proj",
    }
    return [
        rename
        for i in range(layers)
        for rename in _pairs(f"{ours}.transformer.blocks.{i}", f"{theirs}.encoder.layers.{i}", pairs)
    ]


def _pairs(ours: str, theirs: str, pairs: Mapping[str, str]) -> list[Rename]:
    return [rename for mine, other in pairs.items() for rename in norm(f"{ours}.{mine}", f"{theirs}.{other}")]


def _one_row(ours: str, theirs: str) -> Rename:
    """Return the entry of a vector that the other library stores with the shape (1, 1, width)."""
    return Rename((ours,), theirs, lambda parts: parts[0][None, None], lambda whole: [whole.flatten()])


def _one_number(ours: str, theirs: str) -> Rename:
    """Return the entry of a number that the other library stores with the shape (1,)."""
    return Rename((ours,), theirs, lambda parts: parts[0].reshape(1), lambda whole: [whole.reshape(())])
