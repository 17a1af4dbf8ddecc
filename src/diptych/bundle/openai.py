"""OpenAI's tensor names, which open_clip also uses, and open_clip's additions for later models."""

from collections.abc import Mapping

from torch import Tensor

from diptych.bundle.open_clip_towers import IGNORED, timm_tower_names, transformers_tower_names
from diptych.bundle.renaming import Rename, from_theirs, norm, same, shaped, stacked, transposed
from diptych.bundle.siglip_names import timm_names
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ConvNetConfig, ResNetConfig, TextConfig, TimmConfig, ViTConfig

MARKS = ("input_resolution", "context_length", "vocab_size")
"""Extra entries that only OpenAI's own archives contain."""
_DERIVED = (*MARKS, "attn_mask")
_TEXT = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.", "cls_emb")
_PREFIXED_TEXT = tuple(f"text.{part}" for part in _TEXT)
_DECODER = "text_decoder."
"""Prefix of CoCa's caption decoder, which embeddings do not need."""
_QUERY = "visual.attn_pool.query"
_SCALES = {".ls_1.gamma": ".attn.out_proj", ".ls_2.gamma": ".mlp.c_proj"}
"""Suffixes of LayerScale's factors in a block, and of the last layer of each branch."""


def openai_names(config: CLIPConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names and OpenAI's, with open_clip's additions."""
    text = _text_names(config.text) if isinstance(config.text, TextConfig) else transformers_tower_names(config)
    table = [*_image_names(config), *text, same("log_logit_scale", "logit_scale")]
    return table if config.init_logit_bias is None else [*table, same("logit_bias", "logit_bias")]


def _text_names(text: TextConfig) -> list[Rename]:
    has_bias = text.layout == "siglip" if text.has_projection_bias is None else text.has_projection_bias
    if not text.has_projection:
        projection = []
    elif has_bias:  # A linear layer instead of a matrix.
        projection = norm("text_tower.projection", "text_projection")
    else:
        projection = [transposed("text_tower.projection.weight", "text_projection")]
    return [
        same("text_tower.token_emb.weight", "token_embedding.weight"),
        same("text_tower.position_emb", "positional_embedding"),
        *([same("text_tower.appended_emb", "cls_emb")] if text.pooling == "appended" else []),
        *_blocks("text_tower.transformer", "transformer", text.layers),
        *norm("text_tower.norm_post", "ln_final"),
        *projection,
    ]


def _image_names(config: CLIPConfig) -> list[Rename]:
    image = config.image
    assert not isinstance(image, ConvNetConfig)  # `check_openai_names` and `check_open_clip` reject it.
    if isinstance(image, TimmConfig):
        return timm_tower_names(config)
    if isinstance(image, ResNetConfig):
        return _resnet_names(image)
    if image.layout == "siglip":
        return timm_names(image)
    return _vit_names(image) + (_pool_names(image, config.embed_dim) if image.pooling == "coca" else [])


def _pool_names(image: ViTConfig, embed_dim: int) -> list[Rename]:
    """Return the entries for CoCa's pooling. Only its first query contributes to the embedding."""
    ours, theirs, sides = "image_tower.pool", "visual.attn_pool", ("query", "key", "value")
    if image.width == embed_dim:
        weights = [stacked([f"{ours}.{side}.weight" for side in sides], f"{theirs}.attn.in_proj_weight")]
    else:
        weights = [same(f"{ours}.{side}.weight", f"{theirs}.attn.{side[0]}_proj_weight") for side in sides]
    return [
        Rename((f"{ours}.query_emb",), _QUERY, lambda parts: parts[0][None], lambda whole: [whole[0]]),
        *norm(f"{ours}.norm_query", f"{theirs}.ln_q"),
        *norm(f"{ours}.norm_token", f"{theirs}.ln_k"),
        *weights,
        stacked([f"{ours}.{side}.bias" for side in sides], f"{theirs}.attn.in_proj_bias"),
        *norm(f"{ours}.out", f"{theirs}.attn.out_proj"),
    ]


def _vit_names(image: ViTConfig) -> list[Rename]:
    return [
        shaped("image_tower.stem.embed.weight", "visual.conv1.weight", (3, *height_width(image.patch_px))),
        same("image_tower.class_emb", "visual.class_embedding"),
        same("image_tower.position_emb", "visual.positional_embedding"),
        *(norm("image_tower.norm_pre", "visual.ln_pre") if image.has_norm_pre else []),
        *_blocks("image_tower.transformer", "visual.transformer", image.layers),
        *norm("image_tower.norm_post", "visual.ln_post"),
        transposed("image_tower.projection.weight", "visual.proj"),
    ]


def _blocks(ours: str, theirs: str, layers: int) -> list[Rename]:
    table = []
    for i in range(layers):
        mine, other = f"{ours}.blocks.{i}", f"{theirs}.resblocks.{i}"
        table += norm(f"{mine}.norm_1", f"{other}.ln_1")
        for part in ("weight", "bias"):
            names = [f"{mine}.attention.{name}.{part}" for name in ("query", "key", "value")]
            table.append(stacked(names, f"{other}.attn.in_proj_{part}"))
        table += norm(f"{mine}.attention.out", f"{other}.attn.out_proj")
        table += norm(f"{mine}.norm_2", f"{other}.ln_2")
        table += norm(f"{mine}.mlp.0", f"{other}.mlp.c_fc")
        table += norm(f"{mine}.mlp.2", f"{other}.mlp.c_proj")
    return table


def _resnet_names(image: ResNetConfig) -> list[Rename]:
    table = []
    for i in (1, 2, 3):
        table += _conv_and_norm("image_tower", "visual", i)
    for stage, num_blocks in enumerate(image.layers):
        for block in range(num_blocks):
            ours, theirs = f"image_tower.stages.{stage}.{block}", f"visual.layer{stage + 1}.{block}"
            for i in (1, 2, 3):
                table += _conv_and_norm(ours, theirs, i)
            if block == 0:
                table.append(same(f"{ours}.shortcut.0.weight", f"{theirs}.downsample.0.weight"))
                table += _batch_norm(f"{ours}.shortcut.1", f"{theirs}.downsample.1")
    pool, theirs = "image_tower.pool", "visual.attnpool"
    table.append(same(f"{pool}.position_emb", f"{theirs}.positional_embedding"))
    for ours, other in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "c_proj")):
        table += norm(f"{pool}.{ours}", f"{theirs}.{other}")
    return table


def _conv_and_norm(ours: str, theirs: str, i: int) -> list[Rename]:
    conv = same(f"{ours}.conv_{i}.weight", f"{theirs}.conv{i}.weight")
    return [conv, *_batch_norm(f"{ours}.norm_{i}", f"{theirs}.bn{i}")]


def _batch_norm(ours: str, theirs: str) -> list[Rename]:
    running = [same(f"{ours}.{name}", f"{theirs}.{name}") for name in ("running_mean", "running_var")]
    count = same(f"{ours}.num_batches_tracked", f"{theirs}.num_batches_tracked", default=0)
    return [*norm(ours, theirs), *running, count]


def load_openai(weights: Mapping[str, Tensor], config: CLIPConfig, *, what: str) -> CLIP:
    """Return a model with weights in OpenAI's naming; open_clip's prefix `text.` of the text tower is accepted.

    Args:
        weights: tensors by OpenAI's names.
        config: the config of the model.
        what: name of the file, which starts the messages.

    Raises:
        BundleError: tensors are missing, unexpected, not finite, or of another shape; the message names them.
    """
    plain = plain_names(weights, has_own_text=isinstance(config.text, TextConfig))
    return CLIP.from_weights(config, from_theirs(plain, openai_names(config), config, what=what))


def plain_names(weights: Mapping[str, Tensor], *, has_own_text: bool = True) -> dict[str, Tensor]:
    """Return OpenAI's or open_clip's weights under the names of `openai_names`, without those that embeddings do not need.

    The function removes the prefix `text.` of the text tower, CoCa's decoder, and all but the first query of CoCa's pooling. It
    multiplies LayerScale's factors into the preceding layers, which gives the same features.

    Args:
        weights: tensors by the names in a file.
        has_own_text: whether the text tower is open_clip's own, not a transformers encoder.

    >>> import torch
    >>> list(plain_names({"text.ln_final.weight": torch.ones(2), "text_decoder.ln_final.weight": torch.ones(2)}))
    ['ln_final.weight']
    """
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        short = name.removeprefix("text.") if has_own_text and name.startswith(_PREFIXED_TEXT) else name
        is_derived = short.removeprefix("text.") in _DERIVED or short.endswith(".attn_mask") or name in IGNORED
        if is_derived or short.startswith(_DECODER):
            continue
        is_number = short.startswith("logit_") and tensor.numel() == 1
        plain[short] = tensor.reshape(()) if is_number else tensor[:1] if short == _QUERY else tensor
    return _without_scales(plain)


def _without_scales(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    for name in list(weights):
        for suffix, layer in _SCALES.items():
            owner = name.removesuffix(suffix) + layer
            parts = [f"{owner}.{part}" for part in ("weight", "bias")]
            scale = weights[name]
            fits = all(part in weights and weights[part].shape[:1] == scale.shape for part in parts)
            if name.endswith(suffix) and fits:  # Otherwise it is reported as an unexpected tensor.
                del weights[name]
                weights |= {part: (weights[part].float().T * scale.float()).T for part in parts}
    return weights
