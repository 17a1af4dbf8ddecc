"""The state of a run as named tensors, through `torch.distributed.checkpoint`: whole or in shards, read by any number of ranks.

Importing it costs half a second; `checkpoint.py` does so when it first saves or loads. The names: `model/NAME`,
`optimizer/I/NAME/KEY` (a parameter's state), `groups/I` (an optimizer's settings), `extra/EXTRA/PATH`.
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

from diptych.core.distributed import Ranks
from diptych.core.errors import RunError
from diptych.training.checkpoint.files import JsonReader, JsonWriter, SafePlanner
from diptych.training.checkpoint.state import TrainingState
from diptych.training.parallel.tensors import is_sharded


def write_tensors(folder: Path, state: TrainingState, ranks: Ranks) -> None:
    """Write the state into the folder; every rank its part."""
    named: dict[str, Any] = {f"model/{name}": value for name, value in _model_state(state.model).items()}
    names = _parameter_names(state.model)
    for i, optimizer in enumerate(state.optimizers):
        named[f"groups/{i}"] = _groups(optimizer, names)
        for parameter, values in optimizer.state.items():
            named |= {f"optimizer/{i}/{names[parameter]}/{key}": value for key, value in values.items()}
    named |= _flat(_extra_states(state), "extra/")
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    with _silence_warning():
        save(named, storage_writer=JsonWriter(folder), planner=planner, no_dist=ranks.size == 1)


def read_tensors(folder: Path, state: TrainingState, ranks: Ranks) -> None:
    """Fill the state from the folder, bit for bit; every rank its part.

    The optimizers need not have stepped: no step is taken for the sake of their state, as PyTorch's own
    `get_optimizer_state_dict` does, which would leave its counters one too high.

    Raises:
        RunError: names or shapes are not those of the folder.
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
    """Where each value is read into: the model's own tensors, and new ones for the rest."""
    by_name = {name: parameter for parameter, name in _parameter_names(state.model).items()}
    extras = _flat(_extra_states(state), "extra/")
    rooms: dict[str, Any] = {f"model/{name}": value for name, value in _model_state(state.model).items()}
    for name, kind in saved.items():
        match name.split("/"):
            case "optimizer", _, *parameter, _:
                rooms[name] = _allocate_target(kind, like=by_name.get("/".join(parameter)))
            case "extra", *_:
                rooms[name] = _allocate_target(kind, like=extras.get(name))
            case "groups", _:
                rooms[name] = None
    return rooms


def _check_names(named: Mapping[str, Any], saved: Mapping[str, Any], state: TrainingState) -> None:
    """What one has and the other lacks, or has in another shape."""
    for name in sorted(named.keys() ^ saved.keys()):
        raise RunError(f"{name} is not in it" if name in named else f"it holds {name}, which this run has not")
    groups = {name for name in saved if name.startswith("groups/")}
    if len(groups) != len(state.optimizers):
        raise RunError(f"it holds the state of {len(groups)} optimizers, this run has {len(state.optimizers)}")
    extras = {name.split("/")[1] for name in saved if name.startswith("extra/")}
    for extra in sorted(extras ^ state.extras.keys()):
        raise RunError(f"the state of '{extra}' is in only one of checkpoint and run")
    for name, value in named.items():
        if isinstance(value, Tensor) and value.shape != saved[name].size:
            raise RunError(f"{name} has the shape {list(saved[name].size)} in it, and {list(value.shape)} in this run")


def _model_state(model: nn.Module) -> dict[str, Any]:
    """Weights and buffers by the bare model's names. PyTorch's function for wrapped ones loads its compiler."""
    return model.state_dict() if _is_bare(model) else get_model_state_dict(model)


def _is_bare(model: nn.Module) -> bool:
    """Whether it is wrapped in nothing and whole."""
    own = dict(model.named_parameters())
    return list(_parameter_names(model).values()) == list(own) and not any(map(is_sharded, own.values()))


def _parameter_names(model: nn.Module) -> dict[Tensor, str]:
    """As the bare model has them, whatever it is wrapped in."""
    wrappers = {"_orig_mod", "_checkpoint_wrapped_module"}
    root: Any = model
    while isinstance(root, nn.parallel.DistributedDataParallel) or hasattr(root, "_orig_mod"):
        root = root.module if isinstance(root, nn.parallel.DistributedDataParallel) else root._orig_mod
    return {
        parameter: ".".join(part for part in name.split(".") if part not in wrappers)
        for name, parameter in root.named_parameters()
    }


def _groups(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str]) -> list[dict[str, Any]]:
    """The settings of each group, and its parameters by name."""
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
    for (
        number,
        values,
    ) in states.items():  # PyTorch casts state to the parameter's type, which half precision would lose.
        held = optimizer.state[parameters[number]]
        for key, value in values.items():
            if isinstance(value, Tensor) and held[key].dtype != value.dtype:
                held[key] = value.to(held[key].device)


def _allocate_target(saved: Any, *, like: Any) -> Any:
    """Where a value is read into: a tensor on the device, and in the shards, of the one that it belongs to."""
    if not hasattr(saved, "properties"):
        return None
    dtype = saved.properties.dtype
    if isinstance(like, Tensor) and like.shape == saved.size:
        return torch.zeros_like(like, dtype=dtype, requires_grad=False)
    return torch.empty(saved.size, dtype=dtype)


def _extra_states(state: TrainingState) -> dict[str, Any]:
    return {extra: holder.state_dict() for extra, holder in state.extras.items()}


def _flat(nested: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat |= _flat(value, f"{prefix}{key}/") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def _nested(flat: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, value in flat.items():
        if name.startswith(prefix):
            *rooms, last = name[len(prefix) :].split("/")
            inside = nested
            for room in rooms:
                inside = inside.setdefault(room, {})
            inside[last] = value
    return nested


@contextmanager
def _silence_warning() -> Iterator[None]:
    """PyTorch warns that it saves in a single process, which is what was asked for."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")
        yield
