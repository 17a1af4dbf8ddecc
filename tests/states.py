"""A small state of training with all that a checkpoint must bring back."""

from typing import Any

import torch
from torch import Tensor, nn

from diptych.training.checkpoint.state import TrainingState


class Small(nn.Module):
    """Matrices, a scalar, a frozen layer, a buffer, and a layer that never takes part."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.first = nn.Linear(width, 6)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.norm = nn.BatchNorm1d(6)
        self.last = nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.unused = nn.Linear(2, 2)

    def forward(self, values: Tensor) -> Tensor:
        """Some numbers."""
        out: Tensor = self.last(self.norm(self.frozen(self.first(values)))) * self.scale
        return out


class Average:
    """A running mean of the weights."""

    def __init__(self, model: nn.Module) -> None:
        self.num = 0
        self.weights = {name: value.detach().clone() for name, value in model.named_parameters()}

    def update(self, model: nn.Module) -> None:
        """One step of the mean."""
        self.num += 1
        for name, value in model.named_parameters():
            self.weights[name.removeprefix("module.")].lerp_(value.detach(), 0.3)

    def state_dict(self) -> dict[str, Any]:
        """As an average has it: a number, and tensors one room deeper."""
        return {"num": self.num, "weights": self.weights, "none": {}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The same, back."""
        assert state_dict["none"] == {}
        self.num = state_dict["num"]
        for name, value in state_dict["weights"].items():
            self.weights[name].copy_(value)


def optimizers_of(model: nn.Module) -> tuple[torch.optim.Optimizer, ...]:
    """One for matrices, one for the rest, the frozen ones among them."""
    matrices = [p for p in model.parameters() if p.ndim == 2 and p.requires_grad]
    rest = [p for p in model.parameters() if p.ndim != 2 or not p.requires_grad]
    muon = getattr(torch.optim, "Muon", None)  # Since 2.9.
    first = muon(matrices, lr=0.02) if muon is not None else torch.optim.SGD(matrices, lr=0.02, momentum=0.9)
    groups: list[dict[str, Any]] = [{"params": rest[:2], "lr_factor": 0.5, "weight_decay": 0.1}, {"params": rest[2:]}]
    return first, torch.optim.AdamW(groups, lr=0.01, fused=True)


def make_state(seed: int, *, width: int = 4) -> TrainingState:
    """A fresh one; other seeds have other weights."""
    torch.manual_seed(seed)
    model = Small(width)
    return TrainingState(model=model, optimizers=optimizers_of(model), extras={"average": Average(model)})


def step(state: TrainingState, seed: int, *, width: int = 4) -> None:
    """One step on noise."""
    batch = torch.randn(8, width, generator=torch.Generator().manual_seed(seed))
    state.model(batch).square().mean().backward()
    for optimizer in state.optimizers:
        optimizer.step()
        optimizer.zero_grad()
    for average in state.extras.values():
        assert isinstance(average, Average)
        average.update(state.model)


def whole(value: Any) -> Any:
    """Shards put together."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def everything(state: TrainingState) -> dict[str, Any]:
    """All values by name, shards put together, wrappers looked through."""
    model = state.model.module if isinstance(state.model, nn.parallel.DistributedDataParallel) else state.model
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {f"model {name}": whole(value).clone() for name, value in model.state_dict().items()}
    for i, optimizer in enumerate(state.optimizers):
        for parameter, values in optimizer.state.items():
            found |= {f"{i} {names[parameter]} {key}": whole(value) for key, value in values.items()}
        for j, group in enumerate(optimizer.param_groups):
            found |= {f"{i} {j} {key}": value for key, value in group.items() if key != "params"}
    for extra, holder in state.extras.items():
        for key, value in holder.state_dict().items():
            inner = value.items() if isinstance(value, dict) else [("", value)]
            found |= {f"{extra} {key} {name}": whole(one) for name, one in inner}
    return found


def assert_same(one: TrainingState, other: TrainingState) -> None:
    """Bit for bit."""
    assert_same_values(everything(one), everything(other))


def assert_same_values(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    """Bit for bit, types and all."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, Tensor):
            assert value.dtype == theirs[name].dtype, name
            assert torch.equal(value, theirs[name]), name
        else:
            assert value == theirs[name], name
