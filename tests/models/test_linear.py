"""The maps that are faster give what PyTorch's own give."""

import pytest
import torch
from torch import Tensor, nn

from diptych.models import linear
from diptych.models.config import TextConfig
from diptych.models.layers import MLP
from diptych.models.linear import Linear
from diptych.models.text_transformer import TextTransformer


@pytest.fixture
def products(monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """The products that oneDNN was asked for, on what counts as an AMD processor."""
    taken: list[torch.Size] = []
    product = linear._product

    def counted(left: Tensor, right: Tensor, bias: Tensor | None = None, *, by_onednn: bool) -> Tensor:
        if by_onednn:
            taken.append(left.shape)
        return product(left, right, bias, by_onednn=by_onednn)

    monkeypatch.setattr(linear, "_is_onednn_faster", lambda: True)
    monkeypatch.setattr(linear, "_product", counted)
    return taken


@pytest.mark.parametrize("shape", [(1024, 48), (32, 50, 48)])
@pytest.mark.parametrize("bias", [True, False])
def test_result_and_gradients_are_those_of_pytorch(
    shape: tuple[int, ...], bias: bool, products: list[torch.Size]
) -> None:
    torch.manual_seed(0)
    fast = Linear(48, 80, bias=bias)
    plain = nn.Linear(48, 80, bias=bias)
    plain.load_state_dict(fast.state_dict())
    x = torch.randn(*shape)
    x_fast, x_plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = fast(x_fast), plain(x_plain)
    weights = torch.randn_like(expected)
    (out * weights).sum().backward()
    (expected * weights).sum().backward()

    assert len(products) == 2  # Forward, and the input's gradient.
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x_fast.grad, x_plain.grad)
    for mine, theirs in zip(fast.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("shape", [(1024, 48), (4, 5, 48), (0, 48)])
@pytest.mark.usefixtures("products")
def test_an_mlp_that_computes_gelu_again_gives_what_pytorchs_gives(shape: tuple[int, ...], approximate: str) -> None:
    torch.manual_seed(0)
    ours = MLP(48, ratio=2, activation="gelu" if approximate == "none" else "gelu_tanh")
    theirs = nn.Sequential(nn.Linear(48, 96), nn.GELU(approximate=approximate), nn.Linear(96, 48))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(*shape)
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    out, expected = ours(x_ours), theirs(x_theirs)
    weights = torch.randn_like(expected)
    for number in range(2):  # The graph may be walked twice.
        (out * weights).sum().backward(retain_graph=number == 0)
        (expected * weights).sum().backward(retain_graph=number == 0)

    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(x_ours.grad, x_theirs.grad)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, atol=1e-4, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), expected)


def test_an_mlp_keeps_what_comes_before_gelu_and_not_what_comes_after() -> None:
    kept: list[torch.Size] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        MLP(48, ratio=2, activation="gelu")(torch.randn(7, 48, requires_grad=True))
    assert kept.count(torch.Size([7, 96])) == 1


def test_what_is_locked_gets_no_gradient(products: list[torch.Size]) -> None:
    fast = Linear(8, 8).requires_grad_(False)
    x = torch.randn(2048, 8, requires_grad=True)
    fast(x).sum().backward()
    assert x.grad is not None
    assert fast.weight.grad is None
    assert not fast(x.detach()).requires_grad
    assert len(products) == 3


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(3, 8),
        torch.randn(0, 8),
        torch.randn(2048, 8, dtype=torch.float64),
        torch.randn(2048, 8, device="meta"),
    ],
    ids=["few", "none", "doubles", "without memory"],
)
def test_all_else_goes_pytorchs_way(x: Tensor, products: list[torch.Size]) -> None:
    layer = Linear(8, 4, dtype=x.dtype, device=x.device)
    assert layer(x).shape == (len(x), 4)
    assert not products


def test_texts_go_pytorchs_way(products: list[torch.Size]) -> None:
    tower = TextTransformer(TextConfig(vocab_size=16, context_length=32, width=8, layers=2, heads=2), embed_dim=4)
    tower(torch.randint(16, (64, 32)), torch.full((64,), 32)).sum().backward()
    assert not products


def test_mixed_precision_is_left_to_autocast(products: list[torch.Size]) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(8, 4)(torch.randn(2048, 8)).dtype == torch.bfloat16
    assert not products
