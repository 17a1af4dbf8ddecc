"""Texts that share beginnings: the same embeddings, fewer tokens."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from diptych.inference.loaded import LoadedBundle
from diptych.models import prefix_tree as tree_module
from diptych.models import towers
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from diptych.models.prefix_tree import PrefixTree, common_prefix_lengths, in_order, prefix_tree
from diptych.models.text_transformer import TextTransformer
from tests.conftest import TINY_MODEL

CONFIG: CLIPConfig = replace(TINY_MODEL, text=replace(TINY_MODEL.own_text, layers=3))


def _padded(texts: list[list[int]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    lengths = np.array([len(text) for text in texts], dtype=np.int64)
    ids = np.zeros((len(texts), int(lengths.max())), dtype=np.int64)
    for row, text in enumerate(texts):
        ids[row, : len(text)] = text
    return ids, lengths


@given(st.lists(st.lists(st.integers(1, 3), min_size=1, max_size=6), min_size=1, max_size=20))
def test_a_tree_gives_what_the_texts_give(texts: list[list[int]]) -> None:
    torch.manual_seed(0)
    model = CLIP(CONFIG).eval()
    ids, lengths = _padded(texts)
    order = in_order(ids, lengths)
    ids, lengths = ids[order], lengths[order]
    tree = prefix_tree(ids, lengths, torch.device("cpu"))
    with torch.no_grad():
        packed = torch.from_numpy(np.concatenate([row[:length] for row, length in zip(ids, lengths, strict=True)]))
        expected = model.encode_text(
            packed, torch.from_numpy(lengths)
        )  # Texts one after another are never made a tree.
        torch.testing.assert_close(model.encode_text_tree(tree), expected, rtol=1e-5, atol=1e-6)
    beginnings = {tuple(text[:end]) for text in texts for end in range(1, len(text) + 1)}
    assert len(tree.token) == len(beginnings)
    assert int((lengths - common_prefix_lengths(ids, lengths)).sum()) == len(beginnings)


def test_many_prompts_are_encoded_by_trees(clip: LoadedBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [
        f"a {size} photo of a {name}" for name in ("dog", "cat", "blue bird", "dog") for size in ("small", "large")
    ]
    trees = []

    def noted(*given: Any) -> PrefixTree:
        trees.append(prefix_tree(*given))
        return trees[-1]

    monkeypatch.setattr(towers, "prefix_tree", noted)
    monkeypatch.setattr(towers, "_NODES_PER_BATCH", 20)
    shared = clip.encode_texts(prompts)
    assert len(trees) > 1
    monkeypatch.setattr(TextTransformer, "supports_prefix_sharing", False)
    np.testing.assert_allclose(shared, clip.encode_texts(prompts), atol=1e-6)
    assert len(clip.encode_texts([])) == 0


def test_only_causal_towers_that_read_the_end_share() -> None:
    assert CLIP(CONFIG).text_tower.supports_prefix_sharing
    for change in ({"is_causal": False}, {"pooling": "mean"}):
        text = replace(CONFIG.text, **change)
        assert not CLIP(replace(CONFIG, text=text)).text_tower.supports_prefix_sharing


def test_gradients_through_a_tree_are_those_of_the_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    tower = CLIP(CONFIG).text_tower
    ids, lengths = _padded([[1, 5, 6, 2], [1, 5, 7, 2], [1, 5, 6, 2], [1, 5, 2], [1, 5, 6, 8, 2]])
    weights = torch.randn(5, CONFIG.embed_dim)
    grads = []
    for supports_prefix_sharing in (True, False):
        monkeypatch.setattr(TextTransformer, "supports_prefix_sharing", supports_prefix_sharing)
        monkeypatch.setattr(tree_module, "_MAX_NODE_SHARE", 1.0)
        tower.zero_grad()
        (tower(torch.from_numpy(ids), torch.from_numpy(lengths)) * weights).sum().backward()
        grads.append(
            {name: parameter.grad.clone() for name, parameter in tower.named_parameters() if parameter.grad is not None}
        )
    for name, grad in grads[1].items():
        torch.testing.assert_close(grads[0][name], grad, rtol=1e-4, atol=1e-5)
