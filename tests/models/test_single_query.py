"""One query a sequence hears the same without keys and values of the tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.cpu.linear import GELU, CpuLinear
from diptych.models.attention import LengthBucket, SequenceLayout, split_buckets
from diptych.models.layers import Attention
from diptych.models.modified_resnet import MapAttentionPool
from diptych.models.single_query import single_query_attention

LAYOUT = SequenceLayout((LengthBucket(3, 2), LengthBucket(1, 4), LengthBucket(2, 7)))


def _given() -> tuple[Attention, Tensor, Tensor]:
    """Attention with biases, a query a sequence, tokens of all; in float64."""
    torch.manual_seed(0)
    attention = Attention(16, 4).double()
    for linear in (attention.key, attention.value):
        nn.init.normal_(linear.bias)
    num = sum(bucket.num * bucket.length for bucket in LAYOUT.buckets)
    asking = torch.randn(6, 16, dtype=torch.float64, requires_grad=True)
    return attention, asking, torch.randn(num, 16, dtype=torch.float64, requires_grad=True)


def _by_keys_and_values(query: Tensor, x: Tensor, key: nn.Module, value: nn.Module) -> Tensor:
    heard, first = [], 0
    for tokens in split_buckets(x, LAYOUT):
        part = query[first : first + len(tokens), None]
        q, k, v = (side.unflatten(2, (4, 4)).transpose(1, 2) for side in (part, key(tokens), value(tokens)))
        heard.append(functional.scaled_dot_product_attention(q, k, v).flatten(1))
        first += len(tokens)
    return torch.cat(heard)


def test_results_and_gradients_are_those_of_keys_and_values() -> None:
    attention, query, x = _given()
    asked = (query, x, *attention.key.parameters(), *attention.value.parameters())
    direction = torch.randn(6, 16, dtype=torch.float64)
    folded = single_query_attention(query, split_buckets(x, LAYOUT), attention.key, attention.value, heads=4)
    plain = _by_keys_and_values(query, x, attention.key, attention.value)
    torch.testing.assert_close(folded, plain, atol=1e-12, rtol=0)
    for ours, theirs in zip(
        torch.autograd.grad((folded * direction).sum(), asked),
        torch.autograd.grad((plain * direction).sum(), asked),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_the_watcher_is_told_weights_through_which_a_gradient_flows() -> None:
    attention, query, x = _given()
    told: list[Tensor] = []
    attention.hook = told.append
    out = attention.pooled(query, x, LAYOUT)
    assert [tuple(weights.shape) for weights in told] == [(3, 4, 1, 2), (1, 4, 1, 4), (2, 4, 1, 7)]
    assert all(torch.allclose(weights.sum(dim=3), weights.new_ones(1)) for weights in told)
    assert all(grad.abs().sum() > 0 for grad in torch.autograd.grad(out.square().sum(), told))


class _Adapted(nn.Module):
    """A linear map and what an adapter adds to it."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear, self.added = linear, nn.Linear(16, 16, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + self.added(x)
        return out


def test_what_took_the_place_of_a_map_is_asked_itself() -> None:
    attention, asking, x = _given()
    adapted = _Adapted(attention.value)
    attention.value = adapted  # type: ignore[assignment]
    plain = attention.out(_by_keys_and_values(attention.query(asking), x, attention.key, adapted))
    torch.testing.assert_close(attention.pooled(asking, x, LAYOUT), plain, atol=1e-12, rtol=0)


def test_the_watcher_is_told_the_same_weights_beside_an_adapted_map() -> None:
    attention, asking, x = _given()
    told: list[Tensor] = []
    attention.hook = told.append
    attention.pooled(asking, x, LAYOUT)
    attention.value = _Adapted(attention.value)  # type: ignore[assignment]
    attention.pooled(asking, x, LAYOUT)
    for folded, by_keys in zip(told[: len(LAYOUT.buckets)], told[len(LAYOUT.buckets) :], strict=True):
        torch.testing.assert_close(folded, by_keys, atol=1e-12, rtol=0)


def test_a_resnets_pooling_asks_what_took_the_place_of_a_map() -> None:
    torch.manual_seed(0)
    pooling = MapAttentionPool((2, 2), 16, 4, 8).double()
    places = torch.randn(3, 16, 2, 2, dtype=torch.float64)
    plain = pooling(places)
    adapted = _Adapted(pooling.key)
    pooling.key = adapted  # type: ignore[assignment]
    nn.init.zeros_(adapted.added.weight)
    torch.testing.assert_close(pooling(places), plain, atol=1e-12, rtol=0)
    nn.init.normal_(adapted.added.weight)
    assert (pooling(places) - plain).abs().max() > 1e-3


def test_an_adapter_that_subclasses_linear_is_called() -> None:
    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class DoubledOfCpu(CpuLinear):
        def forward(self, x: Tensor, *, gelu: GELU | None = None) -> Tensor:
            return 2 * super().forward(x, gelu=gelu)

    attention, query, x = _given()
    doubled = Doubled(16, 16, dtype=torch.float64)
    for adapted in (doubled, DoubledOfCpu(attention.value)):
        attention.value = adapted
        plain = attention.out(_by_keys_and_values(attention.query(query), x, attention.key, adapted))
        torch.testing.assert_close(attention.pooled(query, x, LAYOUT), plain, atol=1e-12, rtol=0)
