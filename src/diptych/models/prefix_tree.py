"""Texts that begin alike, each beginning computed once.

In a causal tower a token sees only what stands before it. So what the tower computes for a token follows from the text up to
there, and texts that begin alike share it: ImageNet's eighty templates around its thousand names are 769,000 tokens of 328,000
beginnings, and 6,160,000 in padded rows. The tree of all beginnings has a node for each; a node's ancestors are the tokens
before it.

Shapes: B texts, T tokens of the longest, N nodes, A asking nodes.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor

from diptych.models.layers import AncestorIds

_WORTH_SHARING = 0.75
"""Share of tokens that a tree must not reach: a node's ancestors are gathered, which packed texts' are not."""


@dataclass(frozen=True)
class QueryNodes:
    """Nodes that ask their ancestors and themselves, by depth."""

    nodes: Int64[Tensor, " A"]
    paths: AncestorIds
    """For each depth, for each of its nodes in order: the nodes from the root to it."""


@dataclass(frozen=True)
class PrefixTree:
    """The beginnings of some texts. Nodes are numbered by depth."""

    token: Int64[Tensor, " N"]
    depth: Int64[Tensor, " N"]
    all_nodes: QueryNodes
    ends: QueryNodes
    """The nodes of last tokens, each once."""
    end_of_text: Int64[Tensor, " B"]
    """Of each text, which of `ends` is its own."""


def common_prefix_lengths(ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"]) -> Int64[ndarray, " B"]:
    """How many tokens each text has in common with the one before it; of the first, none.

    >>> common_prefix_lengths(np.array([[5, 6, 7], [5, 6, 0], [9, 6, 7]]), np.array([3, 2, 3])).tolist()
    [0, 2, 0]
    """
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    within = np.minimum(lengths[1:], lengths[:-1])[:, None] > np.arange(ids.shape[1])
    same = ((ids[1:] == ids[:-1]) & within).cumprod(axis=1).sum(axis=1)
    return np.concatenate([[0], same]).astype(np.int64)


def in_order(ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"]) -> Int64[ndarray, " B"]:
    """The order in which texts that begin alike are neighbours."""
    inside = np.arange(ids.shape[1]) < lengths[:, None]
    columns = np.where(inside, ids, -1).T[::-1]
    return np.lexsort(columns).astype(np.int64) if len(columns) else np.arange(len(ids))


def plan_sharing(
    ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"]
) -> tuple[Int64[ndarray, " B"], Int64[ndarray, " B"]] | None:
    """The order for a tree, and how many nodes each text adds; None where its nodes are too many of the texts' tokens."""
    order = in_order(ids, lengths)
    new = lengths[order] - common_prefix_lengths(ids[order], lengths[order])
    return None if new.sum() >= _WORTH_SHARING * lengths.sum() else (order, new)


def shared_tree(ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"], device: torch.device) -> PrefixTree | None:
    """The tree of texts in any order, where it is worth it."""
    sharing = plan_sharing(ids, lengths)
    if sharing is None:
        return None
    order, _ = sharing
    tree = prefix_tree(ids[order], lengths[order], device)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return replace(tree, end_of_text=tree.end_of_text[torch.from_numpy(rank).to(device)])


def prefix_tree(ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"], device: torch.device) -> PrefixTree:
    """The tree of texts that are in order (`in_order`); every length is at least 1."""
    depths = np.arange(int(lengths.max()))
    is_new = (depths >= common_prefix_lengths(ids, lengths)[:, None]) & (depths < lengths[:, None])
    counts = is_new.sum(axis=0)
    first = counts.cumsum() - counts
    node_of = first + is_new.cumsum(axis=0) - 1  # Beyond a text's end it means nothing.
    token = np.concatenate([ids[is_new[:, depth], depth] for depth in depths])
    paths = [node_of[is_new[:, depth], : depth + 1] for depth in depths]
    end_nodes = node_of[np.arange(len(ids)), lengths - 1]
    ends, representative, end_of_text = np.unique(end_nodes, return_index=True, return_inverse=True)
    end_lengths = lengths[representative]  # Nodes are numbered by depth, so these rise.
    end_paths = [node_of[representative[end_lengths == length], :length] for length in np.unique(end_lengths)]
    return PrefixTree(
        token=torch.from_numpy(token).to(device),
        depth=torch.from_numpy(depths.repeat(counts)).to(device),
        all_nodes=_asking(np.arange(len(token)), paths, device),
        ends=_asking(ends, end_paths, device),
        end_of_text=torch.from_numpy(end_of_text.reshape(-1)).to(device),
    )


def _asking(nodes: ndarray, paths: list[ndarray], device: torch.device) -> QueryNodes:
    return QueryNodes(
        torch.from_numpy(nodes.astype(np.int64)).to(device), tuple(torch.from_numpy(path).to(device) for path in paths)
    )
