"""What `data shards --layout clip-benchmark` writes, read by CLIP_benchmark's own WebDataset builder."""

from pathlib import Path

import numpy as np
import pytest

from diptych.data.sources.choice import open_source
from diptych.data.write_shards import write_shards
from diptych.images.decode import decode
from tests import peers
from tests.data.makers import class_folder

pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning", "ignore:WebDataset.shardshuffle"
)


def test_clip_benchmark_reads_captions_and_splits(flickr_folder: Path, tmp_path: Path) -> None:
    source = open_source(f"flickr30k:{flickr_folder}")
    write_shards(source, tmp_path / "tars", layout="clip-benchmark", per_shard=1)
    for split, indices in (("train", [0, 1]), ("val", [2]), ("test", [3])):
        theirs = peers.benchmark_datasets.build_wds_dataset("x", np.asarray, split, str(tmp_path / "tars"))
        rows = list(theirs)
        assert [captions for _, captions in rows] == [list(source.captions(i)) for i in indices]
        assert all(np.array_equal(rows[n][0], decode(source[i].image)) for n, i in enumerate(indices))
    again = open_source(str(tmp_path / "tars"))
    assert {again.captions(i) for i in range(4)} == {source.captions(i) for i in range(4)}


def test_clip_benchmark_reads_classes_and_templates(tmp_path: Path) -> None:
    source = open_source(class_folder(tmp_path / "set"))
    write_shards(source, tmp_path / "tars", layout="clip-benchmark")
    theirs = peers.benchmark_datasets.build_wds_dataset("x", np.asarray, "train", str(tmp_path / "tars"))
    assert theirs.classes == list(source.classes) == ["dog", "sea lion"]
    assert theirs.templates[0] == "a photo of a {c}"
    assert [label for _, label in theirs] == [0, 0, 1, 1]
