"""What makes batches fast on a GPU: pinned memory, the number of workers, and shared memory that is large enough."""

import os
import re
from dataclasses import dataclass, replace
from itertools import islice

import pytest
import torch
from torch import Tensor

from diptych.core.errors import DataError, DiptychWarning
from diptych.data.batches import loader, shared_memory
from diptych.data.batches.batch import Batch, ModelInput
from diptych.data.batches.loader import DataConfig, TrainingExamples, training_batches
from diptych.data.batches.shared_memory import Workers, plan_workers
from diptych.data.open_source import open_source
from diptych.images.augment import AugmentConfig
from diptych.images.transforms import PixelConfig
from diptych.tokenizers.character import CharacterTokenizer

CUDA, META = torch.device("cuda"), torch.device("meta")


@dataclass(frozen=True, kw_only=True)
class Part:
    """What a field of a later batch may hold."""

    ids: Tensor
    lengths: Tensor


@dataclass(frozen=True, kw_only=True)
class Parted(Batch):
    """A batch with a tuple of dataclasses."""

    parts: tuple[Part, ...]


def _batch() -> Parted:
    pixels, number = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    part = Part(ids=ids.clone(), lengths=number.clone())
    return Parted(
        pixels=pixels,
        ids=ids,
        lengths=number.clone(),
        text_of_row=number.clone(),
        positive_groups=number.clone(),
        positive_keys=ids.clone(),
        keys=("a", "b"),
        captions=("c", "d"),
        for_teacher=ModelInput(pixels=pixels.clone(), ids=ids.clone(), lengths=number.clone()),
        parts=(part, replace(part)),
    )


def test_all_tensors_but_lengths_move() -> None:
    batch = _batch()
    moved = batch.to(META, non_blocking=True)
    assert isinstance(moved, Parted)
    assert moved.for_teacher is not None
    assert (moved.keys, moved.captions) == (batch.keys, batch.captions)
    on_meta = [moved.pixels, moved.ids, moved.text_of_row, moved.positive_groups, moved.positive_keys]
    on_meta += [moved.for_teacher.pixels, moved.for_teacher.ids, *(part.ids for part in moved.parts)]
    assert all(tensor.is_meta for tensor in on_meta)
    on_host = [moved.lengths, moved.for_teacher.lengths, *(part.lengths for part in moved.parts)]
    assert not any(tensor.is_meta for tensor in on_host)
    assert not batch.pixels.is_meta


def test_all_tensors_but_lengths_are_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = list[Tensor]()

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor.clone()

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = _batch()
    copy = batch.pin_memory()
    assert len(pinned) == 9  # Five of the batch, two of the teacher's, one of each part.
    assert copy.pixels is not batch.pixels
    assert copy.lengths is batch.lengths


def test_the_size_of_a_batch_is_that_of_its_tensors() -> None:
    # Pixels and ids of two models; six times two numbers; keys; two parts with ids.
    assert _batch().num_bytes == 2 * (96 + 80) + 6 * 16 + 16 + 80 + 2 * 80 - 16


@pytest.mark.parametrize(("cores", "ranks", "expected"), [(1, 1, 1), (16, 1, 15), (64, 1, 63), (64, 8, 7)])
def test_a_gpu_is_fed_by_all_cores_but_one(
    monkeypatch: pytest.MonkeyPatch, cores: int, ranks: int, expected: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _process: set(range(cores)), raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(ranks))
    assert DataConfig().workers_on(CUDA) == expected
    assert DataConfig(workers=3).workers_on(CUDA) == 3
    assert DataConfig().workers_on(torch.device("cpu")) == max(1, min(8, cores // (2 * ranks)))


@pytest.mark.parametrize(
    ("num", "free", "expected"),
    [
        (0, 0, Workers(0, 4)),
        (2, None, Workers(2, 4)),
        (2, 1000, Workers(2, 4)),
        (15, 1000, Workers(15, 2)),
        (2, 120, Workers(2, 3)),
        (2, 40, Workers(2, 1)),
    ],
)
def test_batches_in_advance_fill_half_of_the_shared_memory(
    monkeypatch: pytest.MonkeyPatch, num: int, free: int | None, expected: Workers
) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: free)
    assert plan_workers(num, batch_bytes=10) == expected


def test_fewer_workers_where_one_batch_each_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 64 * 2**20)
    with pytest.warns(
        DiptychWarning, match=r"64 MB free, so only 3 of 15 workers read data; each needs a batch of 10 MB"
    ):
        assert plan_workers(15, batch_bytes=10 * 2**20) == Workers(3, 1)


def test_ranks_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 240)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert plan_workers(2, batch_bytes=10) == Workers(2, 3)


def _examples(workers: int) -> TrainingExamples:
    return TrainingExamples(
        open_source("shapes:32"),
        config=DataConfig(workers=workers),
        augment=AugmentConfig(),
        pixels=PixelConfig(),
        image_px=224,
        seed=0,
    )


def _first(workers: int) -> list[Batch]:
    tokenizer = CharacterTokenizer.train(["abc"], context_length=64)
    return list(islice(training_batches(_examples(workers), tokenizer, batch_size=8), 2))


def test_too_little_shared_memory_is_one_line_with_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: 2 * 2**20)
    with pytest.raises(DataError) as caught:
        _first(2)
    said = str(caught.value)
    assert "\n" not in said
    assert re.match(r"/dev/shm has 2 MB free; workers with batches of 2 MB need 5 MB\. ", said), said
    assert all(way in said for way in ("--shm-size=5m", "--ipc=host", "smaller batches", "--data.workers 0"))
    assert len(_first(0)) == 2


def _no_room(_tensor: Tensor) -> Tensor:
    raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1_2_3>: No space left on device (28)")


def test_a_worker_without_room_for_a_batch_ends_the_run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Tensor, "share_memory_", _no_room)
    with pytest.raises(DataError, match=r"/dev/shm has .* free; workers with batches of 2 MB need"):
        _first(1)


@pytest.mark.parametrize(
    "error", ["DataLoader worker (pid(s) 7) exited unexpectedly", "Pin memory thread exited unexpectedly"]
)
@pytest.mark.parametrize("free", [0, 1000])
def test_a_killed_worker_is_restarted_unless_memory_is_full(
    monkeypatch: pytest.MonkeyPatch, error: str, free: int
) -> None:
    monkeypatch.setattr(shared_memory, "free_bytes", lambda: free)
    starts = list[int]()

    def load_from(step: int) -> list[Batch]:
        starts.append(step)
        raise RuntimeError(error)

    batches = loader._restart_killed_workers(load_from, 5, num_workers=1, batch_bytes=10)  # type: ignore[arg-type]
    if free:
        with pytest.warns(DiptychWarning, match="killed at step 5"), pytest.raises(DataError, match="killed 3 times"):
            next(batches)
        assert starts == [5, 5, 5]
    else:
        with pytest.raises(DataError, match=r"/dev/shm has 0 MB free"):
            next(batches)
        assert starts == [5]
