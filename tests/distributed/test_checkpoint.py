"""Two ranks and one process write the same checkpoints and read each other's."""

import errno
import os
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.multiprocessing.spawn import spawn

from diptych.core.errors import BusyError, RunError
from diptych.device.distributed import all_ranks
from diptych.training.checkpoint.state import TrainingState
from diptych.training.checkpoint.store import Progress, load_checkpoint, save_checkpoint
from diptych.training.run_folder import LOCK, hold_run_folder
from tests.states import Average, assert_same, assert_same_values, everything, make_state, step

PROGRESS = Progress(step=3, elapsed_s=1.0, best_metric=0.5, best_step=2, skipped=())


def _wrapped(kind: str, seed: int) -> TrainingState:
    """As a bare one, trained by ranks; AdamW for all, since Muon's matrices must be whole."""
    state = make_state(seed)
    model: Any = state.model
    if kind == "sharded":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        fully_shard(model, mesh=mesh, ignored_params={model.scale})
    elif kind == "ddp":
        model = nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    parameters = list(state.model.parameters())
    groups: list[dict[str, Any]] = [{"params": parameters[:3], "lr_factor": 0.5}, {"params": parameters[3:6]}]
    first = torch.optim.AdamW(groups, lr=0.01)
    second = torch.optim.SGD(parameters[6:], lr=0.01, momentum=0.9)
    return TrainingState(model=model, optimizers=(first, second), extras={"average": Average(state.model)})


def _work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=timedelta(minutes=1)
    )
    try:
        for kind in ("ddp", "sharded"):
            _save(kind, folder)
            _load(kind, folder, rank)
        _one_rank_fails(folder, rank)
        _refused_on_all(folder)
        _locked_on_all(folder / "locked")
    finally:
        dist.destroy_process_group()
    os._exit(0)  # As `device.launch.leave` does: now and then PyTorch aborts while it is taken down.


def _save(kind: str, folder: Path) -> None:
    state = _wrapped(kind, 0)
    for i in range(3):
        step(state, i)
    save_checkpoint(folder / kind, state, PROGRESS, all_ranks(), config={})
    values = everything(state)  # Putting shards together needs every rank.
    if dist.get_rank() == 0:
        torch.save(values, folder / f"{kind}.pt")


def _load(kind: str, folder: Path, rank: int) -> None:
    """What one process saved, and what the other kind did; the newest of which is damaged."""
    for source in ("bare", "ddp", kind):
        state, said = _wrapped(kind, 1), list[str]()
        assert load_checkpoint(folder / source, state, all_ranks(), config={}, on_message=said.append) == PROGRESS
        assert len(said) == (rank == 0 and source == "bare")
        assert_same_values(everything(state), torch.load(folder / f"{source}.pt", weights_only=True))


def _one_rank_fails(folder: Path, rank: int) -> None:
    before = set((folder / "ddp" / "checkpoints").iterdir())
    dist.barrier()  # The first rank begins with its folder as soon as it gets here.

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        if rank == 1:
            patch.setattr(os, "fsync", full)
        with pytest.raises(RunError, match=r"could not be saved \(No space left on device\); the one before is kept"):
            save_checkpoint(folder / "ddp", _wrapped("sharded", 0), replace(PROGRESS, step=4), all_ranks(), config={})
    dist.barrier()
    assert set((folder / "ddp" / "checkpoints").iterdir()) == before


def _refused_on_all(folder: Path) -> None:
    for run, config, says in (("ddp", {"seed": 1}, "written with seed"), ("none", {}, "has no checkpoint")):
        with pytest.raises(RunError, match=says):
            load_checkpoint(folder / run, _wrapped("ddp", 0), all_ranks(), config=config, on_message=print)


def _locked_on_all(run: Path) -> None:
    """The ranks of a run share its lock; those of another one are all refused."""
    with hold_run_folder(run, overwrite=False, resume=False, ranks=all_ranks()):
        assert (run / LOCK).exists()
        with (
            pytest.raises(BusyError, match="stop it, or choose another folder"),
            hold_run_folder(run, overwrite=True, resume=False, ranks=all_ranks()),
        ):
            pass


def test_two_ranks_and_one_process_read_each_others(tmp_path: Path) -> None:
    alone = _wrapped("bare", 2)
    step(alone, 0)
    place = save_checkpoint(tmp_path / "bare", alone, PROGRESS, all_ranks(), config={})
    shutil.copytree(place, place.with_name("step-00000009"))
    (place.with_name("step-00000009") / "manifest.json").unlink()
    torch.save(everything(alone), tmp_path / "bare.pt")
    spawn(_work, args=(tmp_path,), nprocs=2)
    for kind in ("ddp", "sharded"):
        state = _wrapped("bare", 1)
        assert load_checkpoint(tmp_path / kind, state, all_ranks(), config={}, on_message=print) == PROGRESS
        assert_same_values(everything(state), torch.load(tmp_path / f"{kind}.pt", weights_only=True))
        twin = _wrapped("bare", 1)
        load_checkpoint(tmp_path / kind, twin, all_ranks(), config={}, on_message=print)
        step(state, 5)
        step(twin, 5)
        assert_same(state, twin)
