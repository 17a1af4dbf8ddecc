"""Find the weights in a checkpoint: select the dict and the set of weights, and remove prefixes of names.

Training programs store weights next to other objects, and wrappers add prefixes to the names. Many checkpoints contain two
sets: the weights of the last step ("raw"), and weights averaged over the steps ("ema"), which usually evaluate better.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from torch import Tensor

from diptych.bundle.weights_facts import WeightsChoice
from diptych.core.errors import BundleError, ConfigError, unknown_name

_AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema")
_RAW = ("state_dict", "model", "model_state_dict")
_MAX_NESTING = 4
_PARALLEL = re.compile(r"^(module\.|_orig_mod\.)+")
_COUNTER = "n_averaged"
"""A buffer that only state dicts of PyTorch's `AveragedModel` have. Their other names start with `module.`."""
_ROOTS = ("visual.", "vision_model.", "image_tower.")
"""Prefixes of names in the state dict of a CLIP model without wrappers."""
_WRAPPERS = re.compile(r"((model|clip|clip_model|net|module|_orig_mod)\.)+")
"""Prefixes of a model that is an attribute of another module, such as a `LightningModule`."""


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """The weights of a checkpoint."""

    tensors: dict[str, Tensor]
    """The tensors by name, without the prefixes of wrappers."""
    note: str | None = None
    """Which weights were selected, in words; None if the checkpoint contains only one set of one model."""


def find_state_dict(content: Any, path: Path, choice: WeightsChoice | None = None) -> StateDict:
    """Return the weights in the content of a checkpoint.

    Args:
        content: what the file contains.
        path: the file, for messages.
        choice: which weights to return; by default the averaged weights if the file has them, as in timm.

    Raises:
        BundleError: the file has no named weights, or not the chosen ones.
        ConfigError: there is no such choice.
    """
    if choice is not None and choice not in get_args(WeightsChoice):
        raise ConfigError(unknown_name("value of weights", choice, get_args(WeightsChoice)))
    found, kinds, name = _unwrapped(content, choice)
    if choice is not None and choice not in kinds:
        have, lacks = ("averaged", "raw") if choice == "raw" else ("raw", "averaged")
        raise BundleError(f"{path}: has only {have} weights, no {lacks} ones; omit --weights {choice}")
    is_named = isinstance(found, dict) and all(isinstance(key, str) for key in found)
    named = {key: value for key, value in found.items() if isinstance(value, Tensor)} if is_named else {}
    named.pop(_COUNTER, None)
    tensors = {_PARALLEL.sub("", key): value for key, value in named.items()}
    if not tensors:
        raise BundleError(f"{path}: holds no weights by name")
    tensors, prefix_note = _without_wrapper(tensors, path)
    notes = [_choice_note(kinds, name, choice), prefix_note]
    return StateDict(tensors=tensors, note="; ".join(note for note in notes if note) or None)


def _unwrapped(content: Any, choice: WeightsChoice | None) -> tuple[Any, set[str], str | None]:
    """Return the innermost dict, the kinds of weights in the file, and the key of the averaged weights."""
    kinds: set[str] = set()
    name: str | None = None
    for _ in range(_MAX_NESTING):
        if not isinstance(content, dict):
            break
        averaged, raw = (_first_dict(content, names) for names in (_AVERAGED, _RAW))
        if averaged is None and raw is None:
            break
        if averaged is not None:
            name = averaged
            kinds |= {"ema"} if raw is None and not _holds_tensors(content) else {"ema", "raw"}
        use_averaged = averaged is not None and choice != "raw"
        if use_averaged or raw is not None:
            content = content[averaged if use_averaged else raw]
        else:
            break
    if isinstance(content, dict) and _COUNTER in content and not kinds:
        return content, {"ema"}, _COUNTER
    return content, kinds or {"raw"}, name


def _first_dict(content: Mapping[Any, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if isinstance(content.get(name), dict)), None)


def _holds_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) and name != _COUNTER for name, value in content.items())


def _choice_note(kinds: set[str], name: str | None, choice: WeightsChoice | None) -> str | None:
    if "ema" not in kinds:
        return None
    if kinds == {"ema"}:
        return f"averaged ({name})"
    taken, other = ("raw", "averaged") if choice == "raw" else ("averaged", "raw")
    return f"{taken}; the file also has {other} ones (--weights {'ema' if choice == 'raw' else 'raw'})"


def _without_wrapper(tensors: dict[str, Tensor], path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Return the tensors of a wrapped model without the wrapper's prefix and own tensors, and a note about left-out tensors."""
    if any(name.startswith(_ROOTS) for name in tensors):
        return tensors, None
    prefixes = {match[0] for name in tensors for match in [_WRAPPERS.match(name)] if match}
    prefixes = {prefix for prefix in prefixes if any(name.startswith(_with_roots(prefix)) for name in tensors)}
    if not prefixes:
        return tensors, None
    if len(prefixes) > 1:
        first, second, *_ = sorted(prefixes)
        raise BundleError(f"{path}: holds several models, {first}* and {second}*; save the state dict of one of them")
    (prefix,) = prefixes
    inner = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    num_left = len(tensors) - len(inner)
    return inner, f"only tensors under {prefix}*, {num_left} others ignored" if num_left else None


def _with_roots(prefix: str) -> tuple[str, ...]:
    return tuple(prefix + root for root in _ROOTS)
