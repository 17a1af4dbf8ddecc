"""Prefix sharing: common prefixes of texts are encoded once.

In a causal tower a token attends only to earlier tokens, so its activations depend only on the text up to that token. Texts
with a common prefix share its activations. The prompts of ImageNet (80 templates for 1,000 classes) have 6,160,000 tokens
with padding, 769,000 without, and 328,000 distinct prefixes. The prefix tree has one node per distinct prefix; the ancestors
of a node are the tokens before it.

Shapes: B texts, T tokens of the longest text, N nodes, A query nodes.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from torch import Tensor

from diptych.models.attention import AncestorIds

_MAX_NODE_SHARE = 0.75
"""Sharing needs fewer nodes than this share of the tokens, because gathering the ancestors of nodes takes time."""


@dataclass(frozen=True)
class QueryNodes:
    """Nodes that attend to their ancestors and themselves, sorted by depth."""

    nodes: Int64[Tensor, " A"]
    paths: AncestorIds
    """One tensor (nodes, depth + 1) per depth: for each node of that depth, the nodes from the root to it."""


@dataclass(frozen=True)
class PrefixTree:
    """The distinct prefixes of some texts, one node each. Nodes are numbered by depth."""

    token: Int64[Tensor, " N"]
    """The id of the last token of each prefix."""
    depth: Int64[Tensor, " N"]
    """The position of that token in its text; 0 for a root."""
    all_nodes: QueryNodes
    """All nodes."""
    ends: QueryNodes
    """The distinct nodes of the texts' last tokens."""
    end_of_text: Int64[Tensor, " B"]
    """For each text the index of its last token in `ends`."""


def common_prefix_lengths(ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"]) -> Int64[ndarray, " B"]:
    """For each text the number of leading tokens that it shares with the previous text; 0 for the first text.

    >>> common_prefix_lengths(np.array([[5, 6, 7], [5, 6, 0], [9, 6, 7]]), np.array([3, 2, 3])).tolist()
    [0, 2, 0]
    """
    if not len(ids):
        return np.zeros(0, dtype=np.int64)
    is_in_both = np.minimum(lengths[1:], lengths[:-1])[:, None] > np.arange(ids.shape[1])
    same = ((ids[1:] == ids[:-1]) & is_in_both).cumprod(axis=1).sum(axis=1)
    return np.concatenate([[0], same]).astype(np.int64)


def in_order(ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"]) -> Int64[ndarray, " B"]:
    """A permutation that sorts the texts by their tokens, so that texts with a common prefix are adjacent."""
    is_token = np.arange(ids.shape[1]) < lengths[:, None]
    columns = np.where(is_token, ids, -1).T[::-1]
    return np.lexsort(columns).astype(np.int64) if len(columns) else np.arange(len(ids))


def plan_sharing(
    ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"]
) -> tuple[Int64[ndarray, " B"], Int64[ndarray, " B"]] | None:
    """Decide whether prefix sharing saves more than 25 % of the tokens.

    Returns:
        The sorted order of the texts (`in_order`) and the number of nodes that each text adds to the tree, in that order; None
        if sharing does not save enough.
    """
    order = in_order(ids, lengths)
    new = lengths[order] - common_prefix_lengths(ids[order], lengths[order])
    return None if new.sum() >= _MAX_NODE_SHARE * lengths.sum() else (order, new)


def shared_tree(ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"], device: torch.device) -> PrefixTree | None:
    """The prefix tree of texts in any order; None if sharing does not save enough (`plan_sharing`)."""
    sharing = plan_sharing(ids, lengths)
    if sharing is None:
        return None
    order, _ = sharing
    tree = prefix_tree(ids[order], lengths[order], device)
    inverse_perm = np.argsort(order)
    return replace(tree, end_of_text=tree.end_of_text[torch.from_numpy(inverse_perm).to(device)])


def prefix_tree(ids: Int64[ndarray, "B T"], lengths: Int64[ndarray, " B"], device: torch.device) -> PrefixTree:
    """The prefix tree of texts that are sorted by `in_order`. Every length must be at least 1."""
    depths = np.arange(int(lengths.max()))
    # Whether the token at each depth adds a node: it lies beyond the prefix shared with the previous text.
    is_new = (depths >= common_prefix_lengths(ids, lengths)[:, None]) & (depths < lengths[:, None])
    counts = is_new.sum(axis=0)
    first_node = counts.cumsum() - counts
    node_of = first_node + is_new.cumsum(axis=0) - 1  # B T; undefined beyond the end of a text.
    token = np.concatenate([ids[is_new[:, depth], depth] for depth in depths])
    paths = [node_of[is_new[:, depth], : depth + 1] for depth in depths]
    end_nodes = node_of[np.arange(len(ids)), lengths - 1]
    ends, representative, end_of_text = np.unique(end_nodes, return_index=True, return_inverse=True)
    end_lengths = lengths[representative]  # In ascending order, because nodes are numbered by depth.
    end_paths = [node_of[representative[end_lengths == length], :length] for length in np.unique(end_lengths)]
    return PrefixTree(
        token=torch.from_numpy(token).to(device),
        depth=torch.from_numpy(depths.repeat(counts)).to(device),
        all_nodes=_query_nodes(np.arange(len(token)), paths, device),
        ends=_query_nodes(ends, end_paths, device),
        end_of_text=torch.from_numpy(end_of_text.reshape(-1)).to(device),
    )


def _query_nodes(nodes: ndarray, paths: list[ndarray], device: torch.device) -> QueryNodes:
    return QueryNodes(
        torch.from_numpy(nodes.astype(np.int64)).to(device), tuple(torch.from_numpy(path).to(device) for path in paths)
    )
