"""Several sources as one."""

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest

from diptych.core.errors import DataError
from diptych.data.batches.loader import DataConfig, TrainingExamples, training_batches
from diptych.data.open_source import open_source
from diptych.data.sources.splits import take_split
from diptych.data.sources.subset import take_few
from diptych.images.augment import AugmentConfig
from diptych.images.transforms import PixelConfig
from diptych.tokenizers.character import CharacterTokenizer
from tests.conftest import draw_photos
from tests.data.makers import class_folder, shards_folder


def _captioned(folder: Path, num: int) -> str:
    names = [f"{i:03d}.png" for i in range(num)]
    draw_photos(folder / "images", names)
    (folder / "captions.txt").write_text("".join(f"{name}\tcaption {name}\n" for name in names), "utf-8")
    return str(folder)


def test_a_sample_is_in_the_split_that_it_is_in_alone(tmp_path: Path) -> None:
    one, two = _captioned(tmp_path / "one", 40), _captioned(tmp_path / "two", 10)
    mixed = take_split(open_source(f"mix: {one} + {two}"), "val", val_fraction=0.4)
    alone = [take_split(open_source(spec), "val", val_fraction=0.4) for spec in (one, two)]
    expected = [f"{part}/{source.key(i)}" for part, source in enumerate(alone) for i in range(len(source))]
    assert [mixed.key(i) for i in range(len(mixed))] == expected
    assert len(expected) > 4


def test_batches_have_their_shares_and_workers_change_nothing(tmp_path: Path) -> None:
    one, two = _captioned(tmp_path / "one", 45), _captioned(tmp_path / "two", 5)
    source = take_few(open_source(f"mix: 0.5*{one} + 0.5*{two}"), 45)
    tokenizer = CharacterTokenizer.train(["abcdefghijklmnopqrstuvwxyz0123456789"], context_length=64)
    walks = []
    for workers, first_step in ((0, 0), (2, 0), (0, 3)):
        examples = TrainingExamples(
            source,
            config=DataConfig(workers=workers, positives_in_batch="apart"),
            augment=AugmentConfig(),
            pixels=PixelConfig(),
            image_px=16,
            seed=0,
        )
        walks.append(list(islice(training_batches(examples, tokenizer, batch_size=8, first_step=first_step), 10)))
    assert [batch.keys for batch in walks[0]] == [batch.keys for batch in walks[1]]
    assert [batch.keys for batch in walks[0]][3:] == [batch.keys for batch in walks[2]][:7]
    assert all(bool((a.pixels == b.pixels).all()) for a, b in zip(walks[0], walks[1], strict=True))
    parts = Counter(key[0] for batch in walks[0] for key in batch.keys)
    assert 38 <= parts["1"] <= 42


def test_classes_and_tars_are_joined(tmp_path: Path) -> None:
    classes, shards = class_folder(tmp_path / "classes"), shards_folder(tmp_path / "shards")
    source = open_source(f"mix: {shards} + {classes}")
    assert source.classes == ("dog", "sea lion")
    labels = [source.classes[label] for i in range(len(source)) if (label := source.label(i)) is not None]
    assert Counter(labels) == {"dog": 4 + 4, "sea lion": 2}
    assert source.block_ends is not None
    assert source.block_ends.tolist() == [3, 4, 10]
    assert source.parts == ((4, 0.4), (10, 0.6))
    part = take_split(source, "val", val_fraction=1e-9)
    assert part.parts == ((0, 0.4), (2, 0.6))


@pytest.mark.parametrize(
    ("location", "message"),
    [
        (" shapes:5", "with spaces around the plus"),
        ("shapes:5+shapes:6", "with spaces around the plus"),
        (" 1*shapes:5 + shapes:6", "only some sources have a share"),
        (" 0*shapes:5 + 1*shapes:6", r"the shares are 0, 1; each is a number above 0"),
        (" 0.1.2*shapes:5 + 1*shapes:6", r"the shares are 0\.1\.2, 1"),
        (" shapes:5 + shape:6", "unknown source kind 'shape'; did you mean 'shapes'"),
    ],
)
def test_a_mixture_says_how_it_is_written(location: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_source(f"mix:{location}")
