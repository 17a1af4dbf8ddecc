import io

import pytest
import torch
from torch import Tensor, nn

from diptych.core.errors import ConfigError, RunError
from diptych.training.optim.ema import WeightAverage


def _model(width: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, width, 1), nn.BatchNorm2d(width))


def _weight(model: nn.Module) -> Tensor:
    return model.get_parameter("0.weight").detach()


def _moves(model: nn.Module, seed: int) -> None:
    """Other weights, other statistics."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(torch.randn(tensor.shape, generator=generator))
            else:
                tensor.add_(seed + 1)


def _copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_average_is_that_of_the_formula_and_buffers_are_the_last() -> None:
    model = _model()
    average = WeightAverage(model, decay=0.3)
    twins = {name: parameter.detach().double() for name, parameter in model.named_parameters()}
    for step in range(1, 6):
        _moves(model, step)
        average.update(model)
        decay = min(0.3, (1 + step) / (10 + step))
        twins = {name: decay * twins[name] + (1 - decay) * p.detach() for name, p in model.named_parameters()}
    assert decay == 0.3
    last = _copies(model)
    assert average.num_updates == 5
    target = _model()
    average.copy_to(target)
    for name, tensor in target.state_dict().items():
        if name in twins:
            torch.testing.assert_close(tensor, twins[name].float())
            assert not torch.allclose(tensor, last[name])
        else:
            assert torch.equal(tensor, last[name])
    assert {"1.running_mean", "1.num_batches_tracked"} == set(last) - set(twins) - {"1.running_var"}
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, last[name])


def test_the_first_updates_forget_the_start() -> None:
    model = _model()
    average = WeightAverage(model, decay=0.9999)
    start = _weight(model).clone()
    _moves(model, 1)
    average.update(model)
    torch.testing.assert_close(average.weights["0.weight"], start.lerp(_weight(model), 9 / 11))


def test_half_precision_is_averaged_in_float32() -> None:
    model = _model().to(torch.bfloat16)
    average = WeightAverage(model, decay=0.999)
    start = _weight(model).float()
    with torch.no_grad():
        _weight(model).add_(1.0)
    moved = _weight(model).float()
    average.update(model)
    assert average.weights["0.weight"].dtype == torch.float32
    torch.testing.assert_close(average.weights["0.weight"], start.lerp(moved, 9 / 11))
    average.copy_to(model)
    assert _weight(model).dtype == torch.bfloat16
    assert torch.equal(_weight(model), average.weights["0.weight"].to(torch.bfloat16))


def test_a_restored_average_goes_on_bit_for_bit() -> None:
    model = _model()
    unbroken = WeightAverage(model, decay=0.99)
    for step in range(3):
        _moves(model, step)
        unbroken.update(model)
    file = io.BytesIO()
    torch.save(unbroken.state_dict(), file)
    file.seek(0)
    resumed = WeightAverage(_model(), decay=0.99)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for step in range(3, 6):
        _moves(model, step)
        unbroken.update(model)
        resumed.update(model)
    assert resumed.num_updates == unbroken.num_updates == 6
    for mine, theirs in ((resumed.weights, unbroken.weights), (resumed.buffers, unbroken.buffers)):
        assert list(mine) == list(theirs)
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_weights_that_stand_still_keep_every_bit() -> None:
    model = _model()
    before = _copies(model)
    average = WeightAverage(model, decay=0.99)
    for _ in range(20):
        average.update(model)
    average.copy_to(model)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_a_model_without_buffers() -> None:
    model = nn.Linear(2, 2)
    average = WeightAverage(model, decay=0.5)
    average.update(model)
    average.copy_to(model)
    assert average.buffers == {}


def test_another_models_state_is_refused_and_changes_nothing() -> None:
    average = WeightAverage(_model(), decay=0.9)
    before = {name: tensor.clone() for name, tensor in average.weights.items()}
    other = WeightAverage(_model(width=1), decay=0.9)  # Of a shape that would be broadcast.
    other.update(_model(width=1))
    missing = average.state_dict()
    del missing["buffers"]["1.running_var"]
    for state, name in ((other.state_dict(), "0.bias"), (missing, "1.running_var")):
        with pytest.raises(RunError, match=f"belong to another model: {name}"):
            average.load_state_dict(state)
    assert average.num_updates == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in average.weights.items())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_impossible_decays_are_refused(decay: float) -> None:
    with pytest.raises(ConfigError, match=f"is {decay}"):
        WeightAverage(nn.Linear(1, 1), decay=decay)
