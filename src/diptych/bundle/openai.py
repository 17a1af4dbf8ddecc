"""OpenAI's names of weights, which open_clip also uses, and the architecture implied by a file of weights in this naming.

A file of weights does not contain the activation, and a model with the wrong activation silently gives wrong features. The
activation is known only if the file has the extra entries of OpenAI's own archives; otherwise the user must name it.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from diptych.bundle.libraries import check_openai_names
from diptych.bundle.renaming import Rename, from_theirs, norm, same, shaped, stacked, transposed
from diptych.bundle.siglip_names import timm_names
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError, ConfigError
from diptych.core.program import command
from diptych.images.transforms import height_width
from diptych.models.clip import CLIP
from diptych.models.config import (
    Activation,
    CLIPConfig,
    ConvNetConfig,
    ImageConfig,
    ResNetConfig,
    TextConfig,
    ViTConfig,
)
from diptych.presets import preset as preset_config

MARKS = ("input_resolution", "context_length", "vocab_size")
"""Extra entries that only OpenAI's own archives contain."""
_DERIVED = (*MARKS, "attn_mask")
_IMAGE_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104, 1792: 112}
"""Width of an attention head by tower width, for the image towers H, g, bigG and e of open_clip; in all others it is 64."""
_TEXT = ("text_projection", "positional_embedding", "token_embedding.", "transformer.", "ln_final.")


def openai_names(config: CLIPConfig) -> list[Rename]:
    """Return the mapping between Diptych's tensor names and OpenAI's, with open_clip's additions for SigLIP's layout."""
    image, text = config.image, config.text
    table = [
        *_image_names(image),
        same("text_tower.token_emb.weight", "token_embedding.weight"),
        same("text_tower.position_emb", "positional_embedding"),
        *_blocks("text_tower.transformer", "transformer", text.layers),
        *norm("text_tower.norm_post", "ln_final"),
        *(
            norm("text_tower.projection", "text_projection")
            if text.layout == "siglip"
            else [transposed("text_tower.projection.weight", "text_projection")]
        ),
        same("log_logit_scale", "logit_scale"),
    ]
    return table if config.init_logit_bias is None else [*table, same("logit_bias", "logit_bias")]


def _image_names(image: ImageConfig) -> list[Rename]:
    assert not isinstance(image, ConvNetConfig)  # `check_openai_names` and `check_open_clip` reject it.
    if isinstance(image, ResNetConfig):
        return _resnet_names(image)
    return timm_names(image) if image.layout == "siglip" else _vit_names(image)


def _vit_names(image: ViTConfig) -> list[Rename]:
    return [
        shaped("image_tower.stem.embed.weight", "visual.conv1.weight", (3, *height_width(image.patch_px))),
        same("image_tower.class_emb", "visual.class_embedding"),
        same("image_tower.position_emb", "visual.positional_embedding"),
        *norm("image_tower.norm_pre", "visual.ln_pre"),
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
    plain = {}
    for name, tensor in weights.items():
        short = name.removeprefix("text.") if name.startswith(tuple(f"text.{part}" for part in _TEXT)) else name
        if short.removeprefix("text.") not in _DERIVED and not short.endswith(".attn_mask"):
            plain[short] = tensor.reshape(()) if short.startswith("logit_") and tensor.numel() == 1 else tensor
    return CLIP.from_weights(config, from_theirs(plain, openai_names(config), config, what=what))


def read_openai(path: Path, *, activation: Activation | None, preset: str | None) -> CLIP:
    """Return the model in a file of weights.

    Args:
        path: the file.
        activation: the activation with which the model was trained; None if the file or the preset implies it.
        preset: name of the architecture; None to infer it from the tensors.

    Raises:
        BundleError: the file cannot be read, has other names, or the activation is unknown or contradicts the file.
        ConfigError: the preset does not exist, or OpenAI's naming does not support it.
    """
    weights = read_weights(path)
    if any(name.startswith("vision_model.") for name in weights):
        raise BundleError(f"{path}: is in Hugging Face's format; pass the folder, which contains config.json")
    is_openai_archive = all(name in weights for name in MARKS)
    if preset is not None:
        config = preset_config(preset)
        check_openai_names(config, what="OpenAI's naming")
    else:
        known: Activation | None = "quick_gelu" if is_openai_archive else None
        config = _inferred(weights, activation or known, path)
    if is_openai_archive and config.text.activation != "quick_gelu":
        raise BundleError(f"{path}: is OpenAI's, which was trained with quick_gelu, not with {config.text.activation}")
    if activation is not None and activation != config.text.activation:
        raise BundleError(f"activation {activation} contradicts {preset}, which has {config.text.activation}")
    return load_openai(weights, config, what=str(path))


def _inferred(weights: Mapping[str, Tensor], activation: Activation | None, path: Path) -> CLIPConfig:
    """Return the architecture inferred from names and shapes, as in OpenAI's `build_model`."""
    shapes = {name.removeprefix("text."): tensor.shape for name, tensor in weights.items()}
    try:
        image = _inferred_vit(shapes) if "visual.proj" in shapes else _inferred_resnet(shapes)
        width = shapes["ln_final.weight"][0]
        text = TextConfig(
            tokenizer="clip-bpe",
            vocab_size=shapes["token_embedding.weight"][0],
            context_length=shapes["positional_embedding"][0],
            width=width,
            layers=_count(shapes, "transformer.resblocks."),
            heads=_heads(width),
            mlp_ratio=shapes["transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
        )
        config = CLIPConfig(
            embed_dim=shapes["text_projection"][1],
            image=image,
            text=text,
            init_logit_bias=0.0 if "logit_bias" in shapes else None,
        )
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        first = ", ".join(sorted(weights)[:3])
        raise BundleError(f"{path}: is not in OpenAI's naming; its first tensors are {first}") from None
    except ConfigError as error:
        raise BundleError(f"{path}: {error}") from None
    if activation is None:
        raise BundleError(
            f"{path}: does not say which activation it was trained with, and the wrong one gives wrong features; use "
            "--activation quick_gelu (OpenAI's weights, and open_clip's models named -quickgelu) or --activation gelu to "
            f"{command('import')}, or activation= to diptych.load"
        )
    return _with_activation(config, activation)


def _inferred_vit(shapes: Mapping[str, tuple[int, ...]]) -> ViTConfig:
    width, _, *patch = shapes["visual.conv1.weight"]
    side = round((shapes["visual.positional_embedding"][0] - 1) ** 0.5)
    return ViTConfig(
        image_px=patch[0] * side if patch[0] == patch[1] else (patch[0] * side, patch[1] * side),
        patch_px=patch[0] if patch[0] == patch[1] else (patch[0], patch[1]),
        width=width,
        layers=_count(shapes, "visual.transformer.resblocks."),
        heads=_heads(width, _IMAGE_HEAD_WIDTHS.get(width, 64)),
        mlp_ratio=shapes["visual.transformer.resblocks.0.mlp.c_fc.weight"][0] / width,
    )


def _inferred_resnet(shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig:
    width = shapes["visual.conv3.weight"][0]
    side = round((shapes["visual.attnpool.positional_embedding"][0] - 1) ** 0.5)
    first, second, third, fourth = (_count(shapes, f"visual.layer{stage}.") for stage in (1, 2, 3, 4))
    return ResNetConfig(image_px=32 * side, layers=(first, second, third, fourth), width=width, heads=width // 2)


def _heads(width: int, head_width: int = 64) -> int:
    if width % head_width:
        raise ConfigError(
            f"width {width} is not a multiple of {head_width}, so the number of heads cannot be inferred; add --preset"
        )
    return width // head_width


def _count(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Return the number of numbered modules under a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in shapes if name.startswith(prefix)})


def _with_activation(config: CLIPConfig, activation: Activation) -> CLIPConfig:
    image = replace(config.image, activation=activation) if isinstance(config.image, ViTConfig) else config.image
    return replace(config, image=image, text=replace(config.text, activation=activation))
