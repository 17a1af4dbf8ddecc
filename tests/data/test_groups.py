"""Positive groups on a device, against the union-find of the host."""

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.core.components import connected_ids
from diptych.data.batches.groups import connected_ids_on_device, positive_group_ids
from diptych.device import hardware
from diptych.device.distributed import ALONE

Rows = list[tuple[int, int]]


def _shuffled(rows: Rows, seed: int) -> Rows:
    """The rows in another order, with keys renamed: the order of neither says which rows are near one another."""
    draw = random.Random(seed)
    names = [draw.getrandbits(63) - 2**62 for _ in range(max(max(row) for row in rows) + 1)]
    renamed = [(names[a], names[b]) for a, b in rows]
    draw.shuffle(renamed)
    return renamed


def _chain(num: int) -> Rows:
    return [(i, i + 1) for i in range(num)]


def _star(num: int) -> Rows:
    return [(0, i + 1) for i in range(num)]


def _tree(num: int) -> Rows:
    return [(i + 1, (i + 1) // 2) for i in range(num)]


def _stars_on_a_chain(num: int) -> Rows:
    width = max(2, int(num**0.5))
    return [(i // width, i // width + 1) if i % width == 0 else (i // width, num + i) for i in range(num)]


def _pairs(num: int) -> Rows:
    """Captions that two images share."""
    return [(i, num + i // 2) for i in range(num)]


def _chains_and_stars(num: int) -> Rows:
    third = num // 3 + 1
    return [
        *_chain(third),
        *((a + num, b + num) for a, b in _star(third)),
        *((a + 2 * num, b + 2 * num) for a, b in _tree(third)),
    ]


def _zigzag(num: int) -> Rows:
    """A chain whose rows alternate between the beginning and the end of the batch."""
    order = [i // 2 if i % 2 else num - 1 - i // 2 for i in range(num)]
    return [_chain(num)[i] for i in order]


@pytest.mark.parametrize("shape", [_chain, _star, _tree, _stars_on_a_chain, _pairs, _chains_and_stars, _zigzag])
@pytest.mark.parametrize("num", [1, 2, 3, 7, 64, 1000, 4097])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_components_of_any_shape_are_found(shape: Callable[[int], Rows], num: int, seed: int | None) -> None:
    rows = shape(num) if seed is None else _shuffled(shape(num), seed)
    _check(np.array(rows, dtype=np.int64).reshape(-1, 2))


@given(num=st.integers(1, 300), num_keys=st.integers(1, 4), num_values=st.integers(1, 600), seed=st.integers(0, 10**6))
def test_random_components_are_found(*, num: int, num_keys: int, num_values: int, seed: int) -> None:
    _check(np.random.default_rng(seed).integers(-num_values, num_values, (num, num_keys)))


def _check(keys: Any) -> None:
    assert connected_ids_on_device(torch.from_numpy(keys)).tolist() == connected_ids(keys).tolist()


def test_on_a_device_no_value_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one, and as many operations for rows without a common key as for a chain."""
    calls: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
            calls.append(func._schema.name)
            return func(*args, **(kwargs or {}))

    monkeypatch.setattr(hardware, "HOST_DEVICES", frozenset[str]())
    counts = []
    for rows in (_chain(1024), [(2 * i, 2 * i + 1) for i in range(1024)]):
        calls.clear()
        with Record():  # type: ignore[no-untyped-call]
            ids = positive_group_ids(torch.tensor(rows), ALONE)
        assert not {"aten::_local_scalar_dense", "aten::nonzero", "aten::_unique2"} & set(calls)
        counts.append(len(calls))
        assert ids.tolist() == connected_ids(np.array(rows)).tolist()
    assert counts[0] == counts[1]


def test_without_keys_each_row_is_its_own_group(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "HOST_DEVICES", frozenset[str]())
    assert positive_group_ids(torch.empty(3, 0, dtype=torch.int64), ALONE).tolist() == [0, 1, 2]
