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
from diptych.models.attention import LengthBucket, SequenceLayout, attend, attend_once

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
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    direction = torch.randn_like(ours)
    pairs = [torch.autograd.grad((out * direction).sum(), (query, key, value)) for out in (ours, expected)]
    for gradient, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(gradient, theirs, atol=1e-12, rtol=0)


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
    assert layout.cu_seq.tolist() == [0, 1, 2, 5]
    assert layout.slots.tolist() == [0, 3, 6, 7, 8]


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
@pytest.mark.parametrize(("limit", "num_compiled"), [(30, 1), (None, 2)])
def test_with_a_limit_compiled_code_serves_all_lengths(
    monkeypatch: pytest.MonkeyPatch, limit: int | None, num_compiled: int
) -> None:
    """The other layout has another longest sequence, which without a limit is a number in the compiled code."""
    monkeypatch.setattr(attention, "BUCKETED_DEVICES", frozenset())
    monkeypatch.setattr(attention, "_has_varlen", lambda _query: True)
    monkeypatch.setattr(attention, "_varlen_kernel", lambda: (_dense, {}))
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
    assert len(compiled) == num_compiled
