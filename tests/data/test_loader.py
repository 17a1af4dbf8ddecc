import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from diptych.core.errors import ConfigError, DataError, DiptychWarning
from diptych.core.sample import Sample
from diptych.core.settings import from_plain
from diptych.data.batches import loader
from diptych.data.batches.batch import Batch
from diptych.data.batches.loader import DataConfig, Example, TrainingExamples, training_batches
from diptych.data.batches.rows import RowTable
from diptych.data.open_source import open_source
from diptych.data.sources.protocol import Source
from diptych.data.sources.subset import Subset
from diptych.device.packed_texts import PackingSpec
from diptych.images.augment import AugmentConfig
from diptych.images.transforms import PixelConfig
from diptych.tokenizers.character import CharacterTokenizer


def _batches(
    source: Source, *, count: int = 6, workers: int = 0, first_step: int = 0, batch_size: int = 4, seed: int = 0
) -> list[Batch]:
    tokenizer = CharacterTokenizer.train(["abcdefghijklmnopqrstuvwxyz0123456789"], context_length=64)
    examples = TrainingExamples(
        source,
        config=DataConfig(workers=workers),
        augment=AugmentConfig(crop_area=(0.5, 1.0), flip=0.5),
        pixels=PixelConfig(),
        image_px=16,
        seed=seed,
    )
    return list(islice(training_batches(examples, tokenizer, batch_size=batch_size, first_step=first_step), count))


def _row(examples: TrainingExamples, epoch: int, index: int) -> Example:
    row = examples[epoch, index]
    assert isinstance(row, Example)
    return row


def _assert_same(ours: list[Batch], theirs: list[Batch]) -> None:
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.pixels, b.pixels)
        assert torch.equal(a.ids, b.ids)
        assert torch.equal(a.lengths, b.lengths)
        assert torch.equal(a.positive_groups, b.positive_groups)
        assert (a.keys, a.captions, a.skipped, a.num_cut) == (b.keys, b.captions, b.skipped, b.num_cut)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [1, 2, 8])
def test_workers_change_nothing(workers: int, json_file: Path) -> None:
    (json_file.parent / "c.png").write_bytes(b"broken")
    source = open_source(f"json:{json_file}")
    _assert_same(_batches(source, workers=workers, batch_size=3), _batches(source, batch_size=3))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
def test_workers_pack_texts(json_file: Path) -> None:
    source, tokenizer = open_source(f"json:{json_file}"), CharacterTokenizer.train(["abcdefgh"], context_length=64)
    examples = replace(_examples(source, "random"), packing=PackingSpec(context_length=64, micro_batch=2))
    examples = replace(examples, config=replace(examples.config, workers=1))
    batch = next(training_batches(examples, tokenizer, batch_size=3))
    expected = PackingSpec(context_length=64, micro_batch=2).pack(batch.ids, batch.lengths, num_pairs=3)
    assert len(batch.packed) == len(expected) == 2
    for ours, theirs in zip(batch.packed, expected, strict=True):
        assert ours.limit == theirs.limit == 64
        for name, tensor in vars(theirs).items():
            assert name == "limit" or torch.equal(getattr(ours, name), tensor)


def test_starting_at_a_step_gives_what_it_would_have_been() -> None:
    source = open_source("shapes:20")
    _assert_same(_batches(source, count=7)[3:], _batches(source, count=4, first_step=3))


def test_seeds_differ_and_epochs_are_augmented_anew() -> None:
    source = open_source("shapes:1")  # One of train, 900 of val, 180 of novel.
    assert _batches(source, count=1)[0].keys != _batches(source, count=1, seed=1)[0].keys
    examples = TrainingExamples(
        source, config=DataConfig(), augment=AugmentConfig(), pixels=PixelConfig(), image_px=16, seed=0
    )
    views = {_row(examples, epoch, 5).pixels.tobytes() for epoch in range(5)}
    captions = {_row(examples, epoch, 5).caption for epoch in range(20)}
    assert len(views) == 5
    assert captions == set(source.captions(5))
    first = TrainingExamples(
        source, config=DataConfig(caption="first"), augment=AugmentConfig(), pixels=PixelConfig(), image_px=16, seed=0
    )
    assert {_row(first, epoch, 5).caption for epoch in range(9)} == {source.captions(5)[0]}


def test_a_broken_image_is_replaced_always_by_the_same_and_reported(json_file: Path) -> None:
    (json_file.parent / "b.png").write_bytes(b"")
    source = open_source(f"json:{json_file}")
    (batch,) = _batches(source, count=1)
    assert "b.png" not in batch.keys
    assert len(batch.keys) == 4
    assert {key for key, _ in batch.skipped} == {"b.png"}
    assert "b.png: " in batch.skipped[0][1]
    _assert_same([batch], _batches(source, count=1))
    (twice,) = [key for key in batch.keys if batch.keys.count(key) == 2][:1]
    rows = [row for row, key in enumerate(batch.keys) if key == twice]
    assert len(set(batch.positive_groups[rows].tolist())) == 1  # A picture that stands twice is its own positive.


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_but_broken_images_is_an_error_of_one_line(workers: int, json_file: Path) -> None:
    """Also when a worker process found out: its traceback is nothing for a user."""
    for name in "abcd":
        (json_file.parent / f"{name}.png").write_bytes(b"")
    with pytest.raises(DataError, match="50 unreadable images in a row") as caught:
        _batches(open_source(f"json:{json_file}"), count=1, workers=workers)
    assert "\n" not in str(caught.value)


class _Deadly(Subset):
    """Kills the process that reads its sample 3; with a mark on disk, only the first one."""

    def __init__(self, source: Source, mark: Path | None) -> None:
        super().__init__(source, range(len(source)))
        self.mark = mark
        self.home = os.getpid()

    def __getitem__(self, index: int) -> Sample:
        if index == 3 and os.getpid() != self.home and not (self.mark and self.mark.exists()):
            if self.mark:
                self.mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_when_a_worker_is_killed_others_go_on_with_the_same_batches(tmp_path: Path, json_file: Path) -> None:
    source = open_source(f"json:{json_file}")
    with pytest.warns(DiptychWarning, match=r"a data worker was killed at step [01]; restarted 2 workers"):
        batches = _batches(_Deadly(source, tmp_path / "killed"), workers=2)
    assert not getattr(signal.getsignal(signal.SIGCHLD), "__module__", "").startswith("torch.")
    _assert_same(batches, _batches(source))


def test_workers_that_die_again_and_again_are_an_error(json_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "_MAX_DEATHS", 1)
    with pytest.raises(
        DataError, match=r"were killed 1 times, most likely because memory ran out; .*--data\.workers 1"
    ):
        _batches(_Deadly(open_source(f"json:{json_file}"), None), workers=2)


def _examples(source: Source, caption: str) -> TrainingExamples:
    config = from_plain(DataConfig, {"caption": caption, "workers": 0})
    return TrainingExamples(
        source, config=config, augment=AugmentConfig(flip=0.5), pixels=PixelConfig(), image_px=16, seed=0
    )


def test_an_epoch_of_all_pairs_has_each_once(flickr_folder: Path) -> None:
    source = open_source(f"flickr30k:{flickr_folder}")
    examples = _examples(source, "all")
    assert len(examples) == len(RowTable(source, "all")) == 8
    tokenizer = CharacterTokenizer.train(["abcdefghijklmnopqrstuvwxyz0123456789"], context_length=64)
    batches = list(islice(training_batches(examples, tokenizer, batch_size=4), 4))
    for epoch in (batches[:2], batches[2:]):
        pairs = {(key, caption) for batch in epoch for key, caption in zip(batch.keys, batch.captions, strict=True)}
        assert pairs == {(source.key(i), caption) for i in range(4) for caption in source.captions(i)}
    views = [_row(examples, 0, i).pixels.tobytes() for i in (0, 1)]
    assert views[0] != views[1]  # Two captions of a picture, two crops of it.
    assert len(RowTable(source, "random")) == len(_examples(source, "random")) == 4


def test_joined_captions_are_one_text(flickr_folder: Path) -> None:
    source = open_source(f"flickr30k:{flickr_folder}")
    assert _row(_examples(source, "join"), 0, 0).caption == " ".join(source.captions(0))


def test_an_unreadable_picture_of_all_pairs_is_replaced(flickr_folder: Path) -> None:
    (flickr_folder / "images" / "2.jpg").write_bytes(b"")
    examples = _examples(open_source(f"flickr30k:{flickr_folder}"), "all")
    rows = [_row(examples, 0, i) for i in range(8)]
    assert {row.key for row in rows} == {"1.jpg", "3.jpg", "4.jpg"}
    assert {key for row in rows for key, _ in row.skipped} == {"2.jpg"}


def test_captions_that_are_cut_are_counted(json_file: Path) -> None:
    source = open_source(f"json:{json_file}")
    tokenizer = CharacterTokenizer.train(["picture"], context_length=6)
    examples = TrainingExamples(
        source, config=DataConfig(workers=0), augment=AugmentConfig(), pixels=PixelConfig(), image_px=16, seed=0
    )
    batch = next(training_batches(examples, tokenizer, batch_size=4))
    assert batch.num_cut == 4
    assert batch.ids.shape == (4, 6)


def test_flipped_rows_and_only_they_are_mirrored(json_file: Path) -> None:
    source = open_source(f"json:{json_file}")
    whole = AugmentConfig(crop_area=(1.0, 1.0), crop_ratio=(1.5, 1.5))
    make = {
        flip: TrainingExamples(
            source, config=DataConfig(), augment=replace(whole, flip=flip), pixels=PixelConfig(), image_px=16, seed=0
        )
        for flip in (0.0, 1.0)
    }
    for i in range(4):
        plain, flipped = _row(make[0.0], 0, i), _row(make[1.0], 0, i)
        assert plain.caption == flipped.caption
        assert (plain.pixels[:, :, ::-1] == flipped.pixels).all()


def test_words_are_left_out_anew_in_each_epoch(json_file: Path) -> None:
    source = open_source(f"json:{json_file}")
    whole, part = (
        TrainingExamples(
            source,
            config=DataConfig(caption="first"),
            augment=AugmentConfig(drop_words=share),
            pixels=PixelConfig(),
            image_px=16,
            seed=0,
        )
        for share in (0.0, 0.5)
    )
    captions = [_row(part, epoch, 0).caption for epoch in range(8)]
    assert captions == [_row(part, epoch, 0).caption for epoch in range(8)]
    assert len(set(captions)) > 1
    words = _row(whole, 0, 0).caption.split()
    assert all(set(caption.split()) <= set(words) for caption in captions)
    assert (_row(part, 3, 0).pixels == _row(whole, 3, 0).pixels).all(), "pictures are drawn before words"


@pytest.mark.parametrize(
    "wrong", [{"val_fraction": 0.0}, {"val_fraction": 1.0}, {"max_skipped": 1.0}, {"max_samples": 0}]
)
def test_impossible_data_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DataConfig(**wrong)  # type: ignore[arg-type]


def test_a_way_to_choose_captions_that_does_not_exist() -> None:
    with pytest.raises(ConfigError, match=r"caption.*last"):
        from_plain(DataConfig, {"caption": "last"})
