"""Layers for CPUs compute the same as PyTorch's, with oneDNN and less memory where that pays."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from diptych.cpu import linear
from diptych.cpu.linear import CpuLinear, optimize
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.models.layers import MLP

SMALL = CLIPConfig(
    embed_dim=8,
    image=ViTConfig(image_px=32, patch_px=8, width=16, layers=2, heads=2),
    text=TextConfig(vocab_size=16, context_length=32, width=16, layers=2, heads=2),
)


@pytest.fixture(autouse=True)
def _amd(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "cpu_vendor", lambda: "AuthenticAMD")


def num_onednn_products(compute: Callable[[], object]) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        compute()
    return sum(event.count for event in profiler.key_averages() if event.key == "mkldnn::_linear_pointwise")


def check_equal(fast: nn.Module, plain: nn.Module, x: Tensor) -> None:
    """Compare outputs and gradients, which may be computed twice from one graph."""
    x_fast, x_plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = fast(x_fast), plain(x_plain)
    weights = torch.randn_like(expected)
    for is_first in (True, False):
        (out * weights).sum().backward(retain_graph=is_first)
        (expected * weights).sum().backward(retain_graph=is_first)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x_fast.grad, x_plain.grad)
    for ours, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=2e-4, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1024, 48), (32, 50, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_result_and_gradients_equal_pytorchs(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(48, 80, bias=bias)
    fast = CpuLinear(copy.deepcopy(plain))
    assert (
        num_onednn_products(lambda: check_equal(fast, plain, torch.randn(*shape))) == 3
    )  # The input's gradient twice.


def _with_layers_replaced(mlp: MLP) -> nn.Module:
    model = CLIP(SMALL)
    model.image_tower.add_module("tried", mlp)
    optimize(model)
    return model.image_tower.get_submodule("tried")


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh", "quick_gelu"])
@pytest.mark.parametrize("shape", [(1024, 48), (4, 5, 48), (0, 48)])
def test_an_mlp_equals_that_of_the_model(shape: tuple[int, ...], activation: str) -> None:
    torch.manual_seed(0)
    plain = MLP(48, ratio=2, activation=activation)  # type: ignore[arg-type]
    fast = _with_layers_replaced(copy.deepcopy(plain))
    x = torch.randn(*shape)
    check_equal(fast, plain, x)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), plain(x))


def test_an_mlp_saves_the_input_of_gelu_but_not_its_output() -> None:
    saved: list[torch.Size] = []

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor.shape)
        return tensor

    mlp = _with_layers_replaced(MLP(48, ratio=2, activation="gelu"))
    with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor):
        mlp(torch.randn(7, 48, requires_grad=True))
    assert saved.count(torch.Size([7, 96])) == 1


def test_frozen_weights_get_no_gradient() -> None:
    fast = CpuLinear(nn.Linear(8, 8).requires_grad_(False))
    x = torch.randn(2048, 8, requires_grad=True)
    assert num_onednn_products(lambda: fast(x).sum().backward()) == 2
    assert x.grad is not None
    assert fast.weight.grad is None
    assert not fast(x.detach()).requires_grad


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 8),
        torch.randn(0, 8),
        torch.randn(2048, 8, dtype=torch.float64),
        torch.randn(2048, 8, device="meta"),
    ],
    ids=["few", "none", "doubles", "meta"],
)
def test_other_inputs_do_not_use_onednn(x: Tensor) -> None:
    layer = CpuLinear(nn.Linear(8, 4, dtype=x.dtype, device=x.device))
    assert num_onednn_products(lambda: layer(x)) == 0
    assert layer(x).shape == (len(x), 4)


def test_autocast_does_not_use_onednn() -> None:
    layer, x = CpuLinear(nn.Linear(8, 4)), torch.randn(2048, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert num_onednn_products(lambda: layer(x)) == 0
        assert layer(x).dtype == torch.bfloat16


def test_only_images_use_onednn_because_texts_have_varying_lengths() -> None:
    model = CLIP(SMALL)
    pixels, ids, lengths = torch.randn(128, 3, 32, 32), torch.randint(16, (128, 32)), torch.full((128,), 32)
    assert num_onednn_products(lambda: model.encode_image(pixels)) == 0
    optimize(model)
    assert num_onednn_products(lambda: model.encode_image(pixels)) > 0
    assert num_onednn_products(lambda: model.encode_text(ids, lengths)) == 0


def test_an_optimized_model_has_the_same_parameters_and_embeddings() -> None:
    torch.manual_seed(0)
    plain = CLIP(SMALL)
    fast = copy.deepcopy(plain)
    parameters = dict(fast.named_parameters())
    optimize(fast)
    optimize(fast)  # A second call changes nothing.
    assert {name: id(parameter) for name, parameter in fast.named_parameters()} == {
        name: id(parameter) for name, parameter in parameters.items()
    }
    pixels, ids, lengths = torch.randn(16, 3, 32, 32), torch.randint(16, (16, 32)), torch.full((16,), 32)
    torch.testing.assert_close(fast.encode_image(pixels), plain.encode_image(pixels))
    torch.testing.assert_close(fast.encode_text(ids, lengths), plain.encode_text(ids, lengths))


def test_models_on_other_devices_stay_as_they_are() -> None:
    model = CLIP(SMALL).to("meta")
    kinds = [type(module) for module in model.modules()]
    optimize(model)
    assert [type(module) for module in model.modules()] == kinds


def test_a_layer_may_be_replaced_after_the_optimization() -> None:
    mlp = _with_layers_replaced(MLP(48, ratio=2, activation="gelu"))
    x, plain = torch.randn(7, 48), nn.Linear(96, 48)
    mlp.add_module("2", plain)
    torch.testing.assert_close(mlp(x), plain(nn.functional.gelu(mlp.get_submodule("0")(x))))


def test_evaluation_mode_is_kept() -> None:
    model = CLIP(SMALL).eval()
    optimize(model)
    assert not any(module.training for module in model.modules())
