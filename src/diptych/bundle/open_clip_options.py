"""Check options in open_clip's configs, and read options that both towers share."""

from collections.abc import Mapping
from typing import Any

from diptych.core.errors import ConfigError

BLOCKS: dict[str, Any] = {
    "block_type": None,
    "qk_norm": False,
    "scaled_cosine_attn": False,
    "scale_heads": False,
    "scale_attn_inner": False,
    "scale_attn": False,
    "scale_fc": False,
}
"""Block options of both towers, each with the only value that Diptych supports."""
HARMLESS = {
    "output_tokens", "pad_id", "eos_id", "attn_pooler_queries", "attn_pooler_heads", "timm_model_pretrained", "timm_pool",
    "timm_proj", "timm_proj_bias", "timm_drop", "timm_drop_path", "hf_model_pretrained", "hf_proj_type", "hf_pooler_type",
}  # fmt: skip
"""Options without an effect, or that are read together with another option."""


def object_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return an object of the file without null values, which stand for defaults.

    Raises:
        ConfigError: the value is not an object.
    """
    found = content.get(name, {} if name == "preprocess_cfg" else None)
    if not isinstance(found, dict):
        raise ConfigError(f"{name} is {found!r:.40}, not an object")
    return {key: value for key, value in found.items() if value is not None}


def activation_of(tower: Mapping[str, Any], activation: str) -> str:
    """Return the activation of a tower.

    Raises:
        ConfigError: `act_kwargs` has options other than the approximation of GELU.
    """
    options = tower.get("act_kwargs")
    if options in (None, {}, {"approximate": "none"}):
        return activation
    if options == {"approximate": "tanh"} and activation == "gelu":
        return "gelu_tanh"
    raise ConfigError(f"a tower has act_kwargs {options!r} with {activation}, which Diptych does not support")


def norm_eps_of(where: str, tower: Mapping[str, Any], *, default: float = 1e-5) -> dict[str, float]:
    """Return the setting `norm_eps`, or nothing if the epsilon is the default of the layout.

    Raises:
        ConfigError: `norm_kwargs` has options other than the epsilon.
    """
    options = tower.get("norm_kwargs") or {}
    if not isinstance(options, dict) or set(options) - {"eps"}:
        raise ConfigError(f"{where} has norm_kwargs {options!r:.80}; Diptych supports only eps")
    eps = options.get("eps", 1e-5)
    return {} if eps == default else {"norm_eps": eps}


def check_options(where: str, given: Mapping[str, Any], known: set[str], only: Mapping[str, Any]) -> None:
    """Raise an error that names the first unsupported option.

    Args:
        where: name of the object, for messages.
        given: options in the file.
        known: options for which any value is supported.
        only: options with a single supported value.
    """
    for name, value in given.items():
        if name in only and value != only[name] and value:
            raise ConfigError(f"{where} has {name} {value!r}, which Diptych does not support")
    refuse_unknown(where, set(given) - known - set(only) - HARMLESS)


def refuse_unknown(where: str, names: set[str]) -> None:
    """Raise an error that names the unknown options, if there are any."""
    if names:
        raise ConfigError(f"{where} has {', '.join(sorted(names))}, which Diptych does not know")
