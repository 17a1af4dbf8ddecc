"""Saves and loads the training state as named tensors by `torch.distributed.checkpoint`, for any number of ranks.

Importing this module takes half a second, so `store.py` imports it when it first saves or loads. The names are `model/NAME`,
`optimizer/I/NAME/KEY` (state of a parameter), `groups/I` (settings of an optimizer) and `extra/EXTRA/PATH`.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.state_dict import get_model_state_dict, set_model_state_dict
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from diptych.core.errors import RunError
from diptych.device.distributed import Ranks
from diptych.training.checkpoint.files import JsonReader, JsonWriter, SafePlanner
from diptych.training.checkpoint.state import TrainingState
from diptych.training.parallel.tensors import is_sharded


def write_tensors(folder: Path, state: TrainingState, ranks: Ranks) -> None:
    """Write the state to a folder. All ranks must call it; each writes its part."""
    named: dict[str, Any] = {f"model/{name}": value for name, value in _model_state(state.model).items()}
    names = _parameter_names(state.model)
    for i, optimizer in enumerate(state.optimizers):
        named[f"groups/{i}"] = _groups(optimizer, names)
        for parameter, values in optimizer.state.items():
            named |= {f"optimizer/{i}/{names[parameter]}/{key}": value for key, value in values.items()}
    named |= _extra_states(state)
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _silence_warning():
        save(named, storage_writer=JsonWriter(folder), planner=planner, no_dist=ranks.size == 1)


def read_tensors(folder: Path, state: TrainingState, ranks: Ranks) -> None:
    """Load the state from a folder, bit for bit. All ranks must call it; each reads its part.

    The optimizers may be new. Unlike PyTorch's `get_optimizer_state_dict`, this function does not take a step to initialize
    their state, which would leave the step counters one too high.

    Raises:
        RunError: names or shapes of the state differ from those in the folder.
    """
    reader = JsonReader(folder)
    saved: dict[str, Any] = reader.read_metadata().state_dict_metadata
    named = _allocate_targets(saved, state)
    _check_names(named, saved, state)
    planner = SafePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _silence_warning():
        load(named, storage_reader=reader, planner=planner, no_dist=ranks.size == 1)
    loaded, names = _nested(named, "extra/"), _parameter_names(state.model)
    weights = {name.removeprefix("model/"): value for name, value in named.items() if name.startswith("model/")}
    set_state = nn.Module.load_state_dict if _is_bare(state.model) else set_model_state_dict
    set_state(state.model, weights)
    for i, optimizer in enumerate(state.optimizers):
        _fill_optimizer(optimizer, named, i, names)
    for extra, holder in state.extras.items():
        holder.load_state_dict(loaded[extra])


def _allocate_targets(saved: Mapping[str, Any], state: TrainingState) -> dict[str, Any]:
    """The targets into which the values are read, by name: the model's own tensors, and new tensors for all others."""
    by_name = {name: parameter for parameter, name in _parameter_names(state.model).items()}
    extras = _extra_states(state)
    targets: dict[str, Any] = {f"model/{name}": value for name, value in _model_state(state.model).items()}
    for name, kind in saved.items():
        match name.split("/"):
            case "optimizer", _, *parameter, _:
                targets[name] = _allocate_target(kind, like=by_name.get("/".join(parameter)))
            case "extra", *_:
                targets[name] = _allocate_target(kind, like=extras.get(name))
            case "groups", _:
                targets[name] = None
    return targets


def _check_names(named: Mapping[str, Any], saved: Mapping[str, Any], state: TrainingState) -> None:
    """Raise a RunError for the first name or shape that differs between the state and the checkpoint."""
    for name in sorted(named.keys() ^ saved.keys()):
        raise RunError(f"{name} is not in it" if name in named else f"it contains {name}, which this run does not have")
    groups = {name for name in saved if name.startswith("groups/")}
    if len(groups) != len(state.optimizers):
        raise RunError(f"it contains the state of {len(groups)} optimizers, this run has {len(state.optimizers)}")
    extras = {name.split("/")[1] for name in saved if name.startswith("extra/")}
    for extra in sorted(extras ^ state.extras.keys()):
        raise RunError(f"only one of checkpoint and run has the state of '{extra}'")
    for name, value in named.items():
        if isinstance(value, Tensor) and value.shape != saved[name].size:
            raise RunError(f"{name} has the shape {list(saved[name].size)} in it, and {list(value.shape)} in this run")


def _model_state(model: nn.Module) -> dict[str, Any]:
    """Weights and buffers by their names in the unwrapped model. PyTorch's function for wrapped models imports its compiler."""
    return model.state_dict() if _is_bare(model) else get_model_state_dict(model)


def _is_bare(model: nn.Module) -> bool:
    """Whether a model is neither wrapped nor sharded."""
    own = dict(model.named_parameters())
    return list(_parameter_names(model).values()) == list(own) and not any(map(is_sharded, own.values()))


def _parameter_names(model: nn.Module) -> dict[Tensor, str]:
    """The name of each parameter in the unwrapped model."""
    wrappers = {"_orig_mod", "_checkpoint_wrapped_module"}
    root: Any = model
    while isinstance(root, nn.parallel.DistributedDataParallel) or hasattr(root, "_orig_mod"):
        root = root.module if isinstance(root, nn.parallel.DistributedDataParallel) else root._orig_mod
    return {
        parameter: ".".join(part for part in name.split(".") if part not in wrappers)
        for name, parameter in root.named_parameters()
    }


def _groups(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> list[dict[str, Any]]:
    """The settings of each parameter group, and the names of its parameters."""
    return [
        {
            **{key: value for key, value in group.items() if key not in {"params", "param_names"}},
            "params": [names[parameter] for parameter in group["params"]],
        }
        for group in optimizer.param_groups
    ]


def _fill_optimizer(
    optimizer: torch.optim.Optimizer, named: Mapping[str, Any], i: int, names: Mapping[Tensor, str]
) -> None:
    groups: list[dict[str, Any]] = named[f"groups/{i}"]
    if [sorted(group["params"]) for group in groups] != [sorted(g["params"]) for g in _groups(optimizer, names)]:
        raise RunError(f"optimizer {i} has its parameters in other groups")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states: dict[int, dict[str, Any]] = {}
    for number, parameter in enumerate(parameters):
        prefix = f"optimizer/{i}/{names[parameter]}/"
        values = {name[len(prefix) :]: value for name, value in named.items() if name.startswith(prefix)}
        if values:
            states[number] = values
    numbers = iter(range(len(parameters)))
    plain_groups = [{**group, "params": [next(numbers) for _ in group["params"]]} for group in groups]
    optimizer.load_state_dict({"state": states, "param_groups": plain_groups})
    # `load_state_dict` casts the state to the dtype of its parameter; restore the saved dtype.
    for number, values in states.items():
        loaded = optimizer.state[parameters[number]]
        for key, value in values.items():
            if isinstance(value, Tensor) and loaded[key].dtype != value.dtype:
                loaded[key] = value.to(loaded[key].device)


def _allocate_target(saved: Any, *, like: Any) -> Any:
    """A new tensor to read a saved one into, with device and sharding of `like` if the shapes match; None for plain values."""
    if not hasattr(saved, "properties"):
        return None
    dtype = saved.properties.dtype
    if isinstance(like, Tensor) and like.shape == saved.size:
        return torch.zeros_like(like, dtype=dtype, requires_grad=False)
    return torch.empty(saved.size, dtype=dtype)


def _extra_states(state: TrainingState) -> dict[str, Any]:
    return _flat({extra: holder.state_dict() for extra, holder in state.extras.items()}, "extra/")


def _flat(nested: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _nested(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        if name.startswith(prefix):
            *parents, last = name[len(prefix) :].split("/")
            inner = nested
            for parent in parents:
                inner = inner.setdefault(parent, {})
            inner[last] = value
    return nested


@contextmanager
def _silence_warning() -> Iterator[None]:
    """Suppress PyTorch's warning that a checkpoint is saved by a single process, which is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
