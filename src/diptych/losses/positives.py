"""Sums over positive groups: rows of one group are positives of each other. Shapes: N and M rows, G groups, E embedding."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def group_sums(
    emb: Float[Tensor, "N E"], group_idx: Int64[Tensor, " N"], selected: Int64[Tensor, " M"], num_groups: int
) -> Float[Tensor, "M E"]:
    """For each index in `selected`, the sum of the embeddings of that group; `group_idx` is the group of each row.

    >>> group_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 0]), torch.tensor([0, 2]), 3).tolist()
    [[5.0], [0.0]]
    """
    return emb.new_zeros(num_groups, emb.shape[1]).index_add_(0, group_idx, emb)[selected]


def group_numbers(groups: Int64[Tensor, " N"]) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]:
    """For each row an index of its group, below N, and the size of the group. No value is copied from a GPU to the host.

    >>> [each.tolist() for each in group_numbers(torch.tensor([7, 3, 7, 9]))]
    [[1, 0, 1, 3], [2, 1, 2, 1]]
    """
    ordered = groups.sort().values
    group_idx = torch.searchsorted(ordered, groups)
    return group_idx, torch.searchsorted(ordered, groups, right=True) - group_idx


def numbers_among(known: Int64[Tensor, " G"], groups: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """The first index of each group in the sorted tensor `known`; G if `known` does not contain the group.

    >>> numbers_among(torch.tensor([2, 5]), torch.tensor([5, 3, 2, 9])).tolist()
    [1, 2, 0, 2]
    """
    idx = torch.searchsorted(known, groups)
    is_known = known[idx.clamp(max=len(known) - 1)] == groups
    return torch.where(is_known, idx, len(known))
