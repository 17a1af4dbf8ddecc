"""What each rank of a test does: every case of a loss on its own rows, and every exchange; the results go to a file."""

import os
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed

from diptych.device import hardware
from diptych.device.distributed import ALONE, Ranks, all_ranks
from diptych.losses import tiles
from diptych.losses.distillation import tiled_distillation_loss
from diptych.losses.sigmoid import tiled_sigmoid_loss
from diptych.losses.tiled import tiled_clip_loss
from tests.losses.makers import pairs

NUM = 24
"""Rows of the joint batch, which two and three ranks share evenly."""


class Case(NamedTuple):
    """One loss, and the inputs it has beside the embeddings."""

    loss_of: Callable[..., Tensor]
    scalars: tuple[float, ...]
    grouped: bool = False
    options: dict[str, float] = {}  # noqa: RUF012  (nobody changes it)
    is_taught: bool = False
    dtype: torch.dtype = torch.float32


CASES = {
    "contrastive, scale 14": Case(tiled_clip_loss, (14.0,)),
    "contrastive, scale 100": Case(tiled_clip_loss, (100.0,)),
    "contrastive, groups, scale 14": Case(tiled_clip_loss, (14.0,), grouped=True),
    "contrastive, groups, smoothing, scale 100": Case(
        tiled_clip_loss, (100.0,), grouped=True, options={"label_smoothing": 0.1}
    ),
    "contrastive, smoothing, scale 14": Case(tiled_clip_loss, (14.0,), options={"label_smoothing": 0.1}),
    "contrastive, bfloat16, groups": Case(tiled_clip_loss, (14.0,), grouped=True, dtype=torch.bfloat16),
    "sigmoid": Case(tiled_sigmoid_loss, (10.0, -10.0)),
    "sigmoid, groups": Case(tiled_sigmoid_loss, (100.0, -10.0), grouped=True),
    "sigmoid, bfloat16, groups": Case(tiled_sigmoid_loss, (10.0, -10.0), grouped=True, dtype=torch.bfloat16),
    "distillation, scale 14": Case(tiled_distillation_loss, (14.0,), is_taught=True),
    "distillation, scale 100": Case(tiled_distillation_loss, (100.0,), is_taught=True),
}


def outcome(case: Case, rows: slice, *, ranks: Ranks) -> list[Tensor]:
    """Loss, and gradients of images, texts and scalars, of some rows of the joint batch."""
    # The last half is longer, so that ranks differ in how large their logits may be.
    lengths = torch.where(torch.arange(NUM) < NUM // 2, 1.0, 1.3)
    inputs = [
        emb.mul(lengths[:, None])[rows].to(case.dtype).requires_grad_() for emb in pairs(NUM, 5, likeness=0.5, seed=0)
    ]
    inputs += [torch.tensor(scalar, requires_grad=True) for scalar in case.scalars]
    others: list[Tensor] = []
    if case.grouped:  # Of every size from one to many; most span ranks; not in order, and far apart.
        others = [torch.randint(0, 12, (NUM,), generator=torch.Generator().manual_seed(1))[rows] * 1_000_003 - 5]
    if case.is_taught:
        others = [*(emb[rows] for emb in pairs(NUM, 7, likeness=0.3, seed=1)), torch.tensor(30.0)]
    loss = case.loss_of(*inputs, *others, **case.options, ranks=ranks)
    (3 * loss).backward()
    return [loss.detach(), *(tensor.grad for tensor in inputs if tensor.grad is not None)]


def small_tiles() -> None:
    """Tiles of 4 x 6, so that every kind of edge occurs."""
    tiles.TILE_ROWS, tiles.TILE_COLUMNS = 4, 6


def own_side(rank: int) -> None:
    """As on a GPU, where the first rank has a larger card: a tile of it holds its whole matrix."""
    side = NUM if rank == 0 else NUM // 4
    hardware.HOST_DEVICES = frozenset()
    tiles._side = lambda _device: side  # type: ignore[assignment]


def work(rank: int, size: int, folder: Path) -> None:
    """All that one rank does."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meeting"
    distributed.init_process_group("gloo", meeting, timedelta(seconds=60), rank=rank, world_size=size)
    small_tiles()
    ranks = all_ranks()
    rows = ranks.rows(NUM // size)
    results: dict[str, Any] = {name: outcome(case, rows, ranks=ranks) for name, case in CASES.items()}
    results["alone"] = outcome(CASES["sigmoid, groups"], slice(0, NUM), ranks=ALONE)
    results["exchanges"] = _exchanges(ranks)
    own_side(rank)
    results["different cards"] = {name: outcome(case, rows, ranks=ranks) for name, case in CASES.items()}
    torch.save(results, folder / f"{rank}.pt")
    distributed.destroy_process_group()
    os._exit(0)  # As `device.launch.leave` does: now and then PyTorch aborts while it is taken down.


def _exchanges(ranks: Ranks) -> dict[str, Any]:
    ours = torch.arange(4.0).view(2, 2).T + 10 * ranks.rank  # Not contiguous.
    joint = torch.arange(2.0 * ranks.size) + ranks.rank
    before = joint.clone()
    found = {
        "ranks": tuple(ranks),
        "gather_rows": ranks.gather_rows(ours),
        "scatter_sum": ranks.scatter_sum(joint),
        "sum": ranks.sum(joint),
        "max": ranks.max(joint),
        "ring_shift": ranks.ring_shift(ours),
        "gather_objects": ranks.gather_objects({"rank": ranks.rank}),
    }
    return {**found, "unchanged": torch.equal(joint, before)}
