"""Connected components equal those of a search through the graph, and chains of any order are fast enough."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from diptych.core.components import Components, connected_ids


@given(arrays(np.int64, st.tuples(st.integers(0, 30), st.integers(0, 3)), elements=st.integers(0, 20)))
def test_rows_that_share_a_key_are_connected(keys: np.ndarray[tuple[int, int], np.dtype[np.int64]]) -> None:
    expected, rows = list(range(len(keys))), keys.tolist()
    for start in range(len(rows)):
        reached, waiting = {start}, [start]
        while waiting:
            row = waiting.pop()
            near = {other for other in range(len(rows)) if set(rows[row]) & set(rows[other])} - reached
            reached |= near
            waiting += near
        expected[start] = min(reached)
    assert connected_ids(keys).tolist() == expected


@pytest.mark.parametrize("order", ["ascending", "descending", "random"])
def test_a_chain_is_one_component(order: str) -> None:
    """With paths that grow by one per edge, the time is quadratic: 40,000 members take two seconds."""
    members = {
        "ascending": np.arange(300_000),
        "descending": np.arange(300_000)[::-1],
        "random": np.random.default_rng(0).permutation(300_000),
    }[order]
    components = Components(len(members))
    components.join(members[1:], members[:-1])
    assert not components.first().any()
    assert not components.find(members).any()
