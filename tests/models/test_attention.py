"""Every path of attention computes the same. Shapes: N tokens, S sequences, H heads of D numbers."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from diptych.models import attention
from diptych.models.attention import (
    LengthBucket,
    SequenceLayout,
    attend,
    attend_once,
    attend_paths,
    attend_pooled,
    mean_of_each,
)
from diptych.models.packing import layout_of, pack_texts

CPU = torch.device("cpu")
BUCKETS = (LengthBucket(3, 1), LengthBucket(1, 4), LengthBucket(2, 7))


def _layout(
    *, is_padded: bool, monkeypatch: pytest.MonkeyPatch, buckets: tuple[LengthBucket, ...] = BUCKETS
) -> SequenceLayout:
    if is_padded:
        monkeypatch.setattr(attention, "BUCKETED_DEVICES", frozenset())
    return SequenceLayout.of(buckets, CPU)


def _one_by_one(query: Tensor, key: Tensor, value: Tensor, layout: SequenceLayout, *, is_causal: bool) -> Tensor:
    """Attention as the formula has it, one sequence at a time."""
    lengths = [bucket.length for bucket in layout.buckets for _ in range(bucket.num)]
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    out = []
    for number, (first, last) in enumerate(pairwise(ends)):
        q = query[first:last] if len(query) == len(key) else query[number : number + 1]
        scores = torch.einsum("qhd,khd->hqk", q, key[first:last]) / q.shape[-1] ** 0.5
        if is_causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:], dtype=torch.bool).triu(1), -torch.inf)
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(dim=2), value[first:last]))
    return torch.cat(out)


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("queries", ["causal", "all", "one per sequence"])
def test_values_and_gradients_are_those_of_the_formula(
    is_padded: bool, queries: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = _layout(is_padded=is_padded, monkeypatch=monkeypatch)
    assert (layout.cu_seq is not None) == is_padded
    torch.manual_seed(0)
    num = layout.num_sequences if queries == "one per sequence" else layout.num_tokens
    query, key, value = (
        torch.randn(rows, 2, 8, dtype=torch.float64, requires_grad=True)
        for rows in (num, layout.num_tokens, layout.num_tokens)
    )
    ours = (
        attend_once(query, key, value, layout)
        if queries == "one per sequence"
        else attend(query, key, value, layout, is_causal=queries == "causal")
    )
    expected = _one_by_one(query, key, value, layout, is_causal=queries == "causal")
    _assert_same(ours, expected, (query, key, value))


@pytest.mark.parametrize("is_causal", [False, True])
def test_the_padded_path_makes_one_call_for_any_number_of_lengths(
    is_causal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    for num in (2, 30):
        layout = _layout(
            is_padded=True, monkeypatch=monkeypatch, buckets=tuple(LengthBucket(2, length) for length in range(1, num))
        )
        x = torch.randn(layout.num_tokens, 2, 8)
        with patch.object(
            functional, "scaled_dot_product_attention", wraps=functional.scaled_dot_product_attention
        ) as spy:
            attend(x, x, x, layout, is_causal=is_causal)
        calls.append(spy.call_count)
    assert calls == [1, 1]


def test_indices_of_a_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = _layout(is_padded=True, monkeypatch=monkeypatch, buckets=(LengthBucket(2, 1), LengthBucket(1, 3)))
    assert layout.cu_seq is not None
    assert layout.slots is not None
    assert layout.is_token is not None
    assert layout.cu_seq.tolist() == [0, 1, 2, 5]
    assert layout.slots.tolist() == [0, 3, 6, 7, 8]
    assert layout.is_token.tolist() == [[True, False, False], [True, False, False], [True, True, True]]
    assert (layout.num_sequences, layout.num_tokens, layout.max_length) == (3, 5, 3)


def _dense(
    query: Tensor, key: Tensor, value: Tensor, cu_query: Tensor, cu_key: Tensor, *_: object, **__: object
) -> Tensor:
    """`varlen_attn` on a CPU: attention among all tokens, with a mask."""
    rows, columns = (
        torch.searchsorted(ends, torch.arange(len(side), dtype=ends.dtype), right=True)
        for ends, side in ((cu_query, query), (cu_key, key))
    )
    q, k, v = (side.transpose(0, 1) for side in (query, key, value))  # H N D
    mask = rows[:, None] == columns[None, :]
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(0, 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("limit", [30, None])
@pytest.mark.parametrize("has_varlen", [True, False])
def test_compiled_code_serves_all_lengths(monkeypatch: pytest.MonkeyPatch, limit: int | None, has_varlen: bool) -> None:
    """The second layout has other numbers of sequences, lengths and tokens."""
    monkeypatch.setattr(attention, "BUCKETED_DEVICES", frozenset())
    monkeypatch.setattr(attention, "_varlen_kernel", lambda _query: _dense if has_varlen else None)
    compiled = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Any]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    torch.compiler.reset()
    step = torch.compile(attend, dynamic=True, backend=backend)
    for lengths in ((2, 3, 5), (1, 4, 7, 9)):
        layout = SequenceLayout.of(tuple(LengthBucket(2, length) for length in lengths), CPU, limit=limit)
        x = torch.randn(layout.num_tokens, 2, 8)
        expected = _one_by_one(x, x, x, layout, is_causal=False)
        torch.testing.assert_close(step(x, x, x, layout, is_causal=False), expected)
    assert len(compiled) == 1


@pytest.mark.parametrize("limit", [7, 30])
def test_the_arguments_of_the_kernel_for_many_lengths(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths are tensors of int32, the context length is the maximum, and one query per sequence has a maximum of 1."""
    calls: list[tuple[Any, ...]] = []

    def varlen_attn(query: Tensor, *rest: Any, window_size: tuple[int, int] = (-1, -1)) -> Tensor:
        calls.append((*rest[2:], window_size))
        return query

    from torch.nn.attention import varlen

    monkeypatch.setattr(varlen, "varlen_attn", varlen_attn)
    kernel = attention._import_varlen()
    monkeypatch.setattr(attention, "_varlen_kernel", lambda _query: kernel)
    layout = layout_of(pack_texts(torch.ones(2, 7, dtype=torch.int64), torch.tensor([7, 5]), context_length=limit))
    x = torch.randn(64, 2, 8)
    attend(x, x, x, layout, is_causal=True)
    attend(x, x, x, layout, is_causal=False)
    attend_once(x[: layout.num_sequences], x, x, layout)
    ends = [0, 5, 12, *range(19, 64, 7), 64]
    assert [(call[0].tolist(), call[1].tolist(), *call[2:]) for call in calls] == [
        (ends, ends, limit, limit, (-1, 0)),
        (ends, ends, limit, limit, (-1, -1)),
        (list(range(len(ends))), ends, 1, limit, (-1, -1)),
    ]
    assert {side.dtype for call in calls for side in call[:2]} == {torch.int32}


@pytest.mark.parametrize("is_padded", [False, True])
@pytest.mark.parametrize("has_hook", [False, True])
def test_one_query_over_tokens_that_are_not_projected(
    is_padded: bool, has_hook: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = _layout(is_padded=is_padded, monkeypatch=monkeypatch)
    torch.manual_seed(0)
    key, value = (torch.nn.Linear(16, 16).double() for _ in range(2))
    query = torch.randn(layout.num_sequences, 16, dtype=torch.float64, requires_grad=True)
    x = torch.randn(layout.num_tokens, 16, dtype=torch.float64, requires_grad=True)
    seen: list[Tensor] = []
    hook = seen.append if has_hook else None
    ours = attend_pooled(query, x, layout, key=key, value=value, heads=2, hook=hook)
    q, k, v = (side.unflatten(1, (2, 8)) for side in (query, key(x), value(x)))
    expected = _one_by_one(q, k, v, layout, is_causal=False).flatten(1)
    _assert_same(ours, expected, (query, x, *key.parameters(), *value.parameters()))
    assert sum(len(weights) for weights in seen) == (layout.num_sequences if has_hook else 0)


@pytest.mark.parametrize("is_padded", [False, True])
def test_a_hook_gets_the_weights_of_all_tokens(is_padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = _layout(is_padded=is_padded, monkeypatch=monkeypatch)
    torch.manual_seed(0)
    x = torch.randn(layout.num_tokens, 2, 8, dtype=torch.float64, requires_grad=True)
    seen: list[Tensor] = []
    ours = attend(x, x, x, layout, is_causal=False, hook=seen.append)
    _assert_same(ours, _one_by_one(x, x, x, layout, is_causal=False), (x,))
    assert all(torch.allclose(weights.sum(3), weights.new_ones(()), atol=1e-12) for weights in seen)
    assert len(seen) == (1 if is_padded else len(BUCKETS))


def test_paths_are_causal_attention_within_each_sequence(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = _layout(is_padded=False, monkeypatch=monkeypatch, buckets=(LengthBucket(2, 3),))
    torch.manual_seed(0)
    query, key, value = (torch.randn(6, 2, 8, dtype=torch.float64, requires_grad=True) for _ in range(3))
    by_depth = torch.tensor([0, 3, 1, 4, 2, 5])
    paths = (torch.tensor([[0], [3]]), torch.tensor([[0, 1], [3, 4]]), torch.tensor([[0, 1, 2], [3, 4, 5]]))
    ours = attend_paths(query[by_depth], key, value, paths)
    _assert_same(ours, _one_by_one(query, key, value, layout, is_causal=True)[by_depth], (query, key, value))


@pytest.mark.parametrize("is_padded", [False, True])
def test_the_mean_of_each_sequence(is_padded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = _layout(is_padded=is_padded, monkeypatch=monkeypatch)
    torch.manual_seed(0)
    x = torch.randn(layout.num_tokens, 4, dtype=torch.float64, requires_grad=True)
    lengths = [bucket.length for bucket in BUCKETS for _ in range(bucket.num)]
    _assert_same(mean_of_each(x, layout), torch.stack([part.mean(0) for part in x.split(lengths)]), (x,))


def _assert_same(ours: Tensor, expected: Tensor, inputs: tuple[Tensor, ...]) -> None:
    """The same values, and the same gradients of `inputs`."""
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    direction = torch.randn_like(ours)
    pairs = [torch.autograd.grad((out * direction).sum(), inputs) for out in (ours, expected)]
    for gradient, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, theirs, atol=1e-12, rtol=0)
