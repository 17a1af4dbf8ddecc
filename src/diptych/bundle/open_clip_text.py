"""Convert open_clip's `text_cfg` to the config of a text tower: tokenizer, text preparation, causal mask and pooling.

Without a causal mask, open_clip pads each text to the context length and attends to the padding. Diptych calls this SigLIP's
layout.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.bundle.foreign_tokenizer import (
    own_tokenizer_file,
    preparation_of,
    tokenizer_file_of,
    with_open_clip_cleaning,
)
from diptych.bundle.open_clip_options import BLOCKS, activation_of, check_options, norm_eps_of
from diptych.bundle.open_clip_towers import transformers_tower_config
from diptych.bundle.tower_folders import tower_folder
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import from_plain, read_json
from diptych.models.config import TextConfig, TransformersConfig
from diptych.tokenizers.clip_bpe import VOCAB_SIZE
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.preparation import TextPreparation
from diptych.tokenizers.protocol import END

TOKENIZER = "tokenizer.json"
"""Name of the tokenizer file in a folder. open_clip reads it if `hf_tokenizer_name` has any value."""
ARCHITECTURE = "text_config.json"
"""Name of the file with the config of a transformers text encoder, next to open_clip's own config."""
_SIZES = ("context_length", "width", "heads", "layers", "mlp_ratio")
_KNOWN = {
    *_SIZES, "pool_type", "final_ln_after_pool", "act_kwargs", "norm_kwargs", "vocab_size", "hf_tokenizer_name",
    "tokenizer_kwargs", "embed_cls", "no_causal_mask", "proj_bias", "proj_type", "ls_init_value", "hf_model_name",
}  # fmt: skip
_CLIP_END = VOCAB_SIZE - 1
_POOLING_OF_PADDED = {"last": "eot", "first": "cls", "argmax": "end"}
"""Diptych's pooling in SigLIP's layout, by open_clip's name."""


def text_config(
    text: Mapping[str, Any], activation: str, *, folder: Path | None, embed_dim: int
) -> TextConfig | TransformersConfig:
    """Return the config of a text tower.

    Args:
        text: `text_cfg`, without nulls.
        activation: the activation that `quick_gelu` in the model's config selects.
        folder: the folder of the model; None if there is no tokenizer file.
        embed_dim: dimension of the embeddings.

    Raises:
        ConfigError: the tower has a feature that Diptych does not support; the message names it.
        BundleError: a tokenizer file is missing or damaged.
    """
    kind, preparation = _tokenizer(text, folder)
    if text.get("hf_model_name"):
        tower = transformers_tower_config(text, _architecture(text, folder), embed_dim=embed_dim)
        return replace(tower, tokenizer=kind, preparation=preparation)
    check_options("text_cfg", text, _KNOWN, {**BLOCKS, "tokenizer_mode": None})
    plain: dict[str, Any] = {name: text[name] for name in _SIZES if name in text}
    plain |= {
        "tokenizer": kind,
        "vocab_size": text.get("vocab_size", VOCAB_SIZE),
        "activation": activation_of(text, activation),
        **({"preparation": preparation} if kind == "pretrained" else {}),
    }
    if text.get("no_causal_mask"):
        plain |= _padded(text, kind)
    else:
        plain |= _causal(text, kind, preparation)
    return from_plain(TextConfig, plain, what="text_cfg")


def _architecture(text: Mapping[str, Any], folder: Path | None) -> dict[str, Any]:
    """Return the config of a transformers text encoder, which open_clip's config only names.

    The source is `text_config.json` in the folder or, if there is none, the hub or its cache.
    """
    name = text["hf_model_name"]
    if not isinstance(name, str):
        raise ConfigError(f"text_cfg has hf_model_name {name!r}, which is not a string")
    path = None if folder is None else folder / ARCHITECTURE
    if path is None or not path.is_file():
        try:
            path = tower_folder(name, with_weights=False) / "config.json"
        except (BundleError, ConfigError) as error:
            raise BundleError(
                f"the model needs the config of the text encoder {name}; save its config.json as {ARCHITECTURE} in the folder "
                f"({error!s:.200})"
            ) from None
    content = read_json(path)
    if not isinstance(content, dict) or "model_type" not in content:
        raise BundleError(f"{path}: is not a transformers config, because it has no model_type")
    return content


def _padded(text: Mapping[str, Any], kind: TokenizerKind) -> dict[str, Any]:
    """Return the settings of a tower without a causal mask."""
    pool_type = text.get("pool_type", "argmax")
    if text.get("embed_cls"):
        raise ConfigError("text_cfg has embed_cls with no_causal_mask, which Diptych does not support")
    if pool_type == "eos" and kind == "clip-bpe" and text.get("eos_id", 2) == _CLIP_END:
        pool_type = "argmax"  # The largest id is the end token's.
    if pool_type not in _POOLING_OF_PADDED:
        raise ConfigError(f"text_cfg has pool_type {pool_type!r} with no_causal_mask, which Diptych does not support")
    return {
        "layout": "siglip",
        "is_causal": False,
        "pooling": _POOLING_OF_PADDED[pool_type],
        **_projection(text, has_bias_by_default=True),
        **norm_eps_of("text_cfg", text, default=1e-6),
    }


def _causal(text: Mapping[str, Any], kind: TokenizerKind, preparation: TextPreparation) -> dict[str, Any]:
    """Return the settings of a tower with a causal mask."""
    shared = {**_projection(text, has_bias_by_default=False), **norm_eps_of("text_cfg", text)}
    if text.get("embed_cls"):
        if text.get("pad_id", 0) != 0:
            raise ConfigError(f"text_cfg has embed_cls with pad_id {text['pad_id']}; Diptych supports only 0")
        return {**shared, "pooling": "appended"}
    end_id = {"clip-bpe": _CLIP_END, "pretrained": preparation.end_id}.get(kind, END)
    pool_type = text.get("pool_type", "argmax")
    if pool_type not in ({"argmax", "eos"} if kind == "clip-bpe" else {"eos"}):
        supported = "'argmax' and 'eos'" if kind == "clip-bpe" else "'eos'"
        raise ConfigError(f"text_cfg has pool_type {pool_type!r}; Diptych supports {supported} with this tokenizer")
    if pool_type == "eos" and text.get("eos_id", 2) != end_id:
        whose = "only CLIP's" if kind == "clip-bpe" else "only that of this tokenizer"
        raise ConfigError(f"text_cfg has eos_id {text.get('eos_id', 2)}; Diptych supports {whose}, {end_id}")
    return shared


def _projection(text: Mapping[str, Any], *, has_bias_by_default: bool) -> dict[str, bool]:
    kind = text.get("proj_type", "linear")
    if kind not in ("linear", "none"):
        raise ConfigError(f"text_cfg has proj_type {kind!r}, which Diptych does not support")
    has_bias = bool(text.get("proj_bias", False))
    return {
        **({"has_projection": False} if kind == "none" else {}),
        **({} if has_bias == has_bias_by_default or kind == "none" else {"has_projection_bias": has_bias}),
    }


def _tokenizer(text: Mapping[str, Any], folder: Path | None) -> tuple[TokenizerKind, TextPreparation]:
    """Return the kind of tokenizer, and the text preparation if the folder contains the tokenizer."""
    found = None if folder is None else own_tokenizer_file(folder)
    if folder is not None and found is not None:
        return found[0], preparation_of(folder)
    if not text.get("hf_tokenizer_name"):
        if text.get("tokenizer_kwargs"):
            raise ConfigError(f"text_cfg has tokenizer_kwargs {text['tokenizer_kwargs']!r:.80} with CLIP's tokenizer")
        return "clip-bpe", TextPreparation()
    kind, path = ("clip-bpe", None) if folder is None else tokenizer_file_of(folder)
    if folder is None or path is None:
        raise BundleError(
            f"{'the folder' if folder is None else folder}: holds no {TOKENIZER}, but the model needs the tokenizer "
            f"{text['hf_tokenizer_name']}; copy its files into the folder"
        )
    return kind, preparation_of(folder) if kind == "clip-bpe" else _preparation(text, folder)


def _preparation(text: Mapping[str, Any], folder: Path) -> TextPreparation:
    """Return the text preparation of the tokenizer in the folder, including open_clip's own cleaning."""
    options = text.get("tokenizer_kwargs") or {}
    if not isinstance(options, dict) or set(options) - {"clean", "strip_sep_token"}:
        raise ConfigError(f"text_cfg has tokenizer_kwargs {options!r:.80}; Diptych supports clean and strip_sep_token")
    found = with_open_clip_cleaning(
        preparation_of(folder),
        clean=options.get("clean", "whitespace"),
        strip_sep_token=bool(options.get("strip_sep_token")),
    )
    return replace(found, stops_at_end=text.get("pool_type") == "eos")
