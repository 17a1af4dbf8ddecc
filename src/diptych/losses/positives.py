"""Rows of one group are positives of each other: sums over them. Shapes: N and M rows, G groups, E embedding."""

import torch
from jaxtyping import Float, Int64
from torch import Tensor


def group_sums(
    emb: Float[Tensor, "N E"], number: Int64[Tensor, " N"], wanted: Int64[Tensor, " M"], num_groups: int
) -> Float[Tensor, "M E"]:
    """For each group wanted, the sum of the embeddings that bear its number.

    >>> group_sums(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([0, 1, 0]), torch.tensor([0, 2]), 3).tolist()
    [[5.0], [0.0]]
    """
    return emb.new_zeros(num_groups, emb.shape[1]).index_add_(0, number, emb)[wanted]


def group_numbers(groups: Int64[Tensor, " N"]) -> tuple[Int64[Tensor, " N"], Int64[Tensor, " N"]]:
    """For each row the number of its group, below N, and how many rows bear it; the host reads no value of a device.

    >>> [each.tolist() for each in group_numbers(torch.tensor([7, 3, 7, 9]))]
    [[1, 0, 1, 3], [2, 1, 2, 1]]
    """
    ordered = groups.sort().values
    number = torch.searchsorted(ordered, groups)
    return number, torch.searchsorted(ordered, groups, right=True) - number


def numbers_among(known: Int64[Tensor, " G"], groups: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """Where each group first stands in `known`, which is sorted; G, one past the end, where it is not there.

    >>> numbers_among(torch.tensor([2, 5]), torch.tensor([5, 3, 2, 9])).tolist()
    [1, 2, 0, 2]
    """
    place = torch.searchsorted(known, groups)
    found = known[place.clamp(max=len(known) - 1)] == groups
    return torch.where(found, place, len(known))
