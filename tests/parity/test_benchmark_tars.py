"""What `data shards --layout clip-benchmark` writes, read by CLIP_benchmark's own WebDataset builder."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.cli.main import main
from diptych.data.open_source import open_source
from diptych.data.tools.write_shards import write_shards
from diptych.images.decode import decode
from diptych.inference.loaded import load
from tests import peers
from tests.conftest import draw_photos
from tests.data.makers import class_folder
from tests.parity.models import KnownEmbeddings

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
        assert all(np.array_equal(rows[n][0], np.asarray(decode(source[i].image))) for n, i in enumerate(indices))
    again = open_source(str(tmp_path / "tars"))
    assert {again.captions(i) for i in range(4)} == {source.captions(i) for i in range(4)}


def test_clip_benchmark_reads_classes_and_templates(tmp_path: Path) -> None:
    source = open_source(class_folder(tmp_path / "set"))
    write_shards(source, tmp_path / "tars", layout="clip-benchmark")
    theirs = peers.benchmark_datasets.build_wds_dataset("x", np.asarray, "train", str(tmp_path / "tars"))
    assert theirs.classes == list(source.classes) == ["dog", "sea lion"]
    assert theirs.templates[0] == "a photo of a {c}"
    assert [label for _, label in theirs] == [0, 0, 1, 1]


@pytest.mark.filterwarnings("ignore:texts longer than 24 tokens")
def test_recalls_of_the_command_equal_clip_benchmarks(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Thirty pictures of two captions each, read by both from the same tars, embedded by one bundle."""
    names = [f"{i}.png" for i in range(30)]
    draw_photos(tmp_path / "set", names)
    rows = [{"image": name, "captions": [f"a {name[0]}", f"word {name}"], "split": "test"} for name in names]
    (tmp_path / "set" / "rows.json").write_text(json.dumps(rows), "utf-8")
    write_shards(open_source(f"json:{tmp_path / 'set' / 'rows.json'}"), tmp_path / "tars", layout="clip-benchmark")
    embedder = load(tiny_bundle, device="cpu").embedder
    theirs = peers.benchmark_datasets.build_wds_dataset(
        "x", lambda image: torch.from_numpy(embedder.encode_images([image])[0]), "test", str(tmp_path / "tars")
    )
    expected = peers.retrieval_metrics.evaluate(
        KnownEmbeddings(),
        [(torch.stack([emb]), [texts]) for emb, texts in theirs],
        lambda texts: torch.from_numpy(embedder.encode_texts(texts)),
        "cpu",
        amp=False,
        recall_k_list=[1, 5, 10],
    )
    capsys.readouterr()
    command = ["evaluate", "retrieval", str(tiny_bundle), "--data", str(tmp_path / "tars"), "--split", "test"]
    assert main([*command, "--no-cache", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["protocol"]["images"] == 30
    for k in (1, 5, 10):
        assert report["image_to_text"][f"r{k}"] == pytest.approx(expected[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert report["text_to_image"][f"r{k}"] == pytest.approx(expected[f"image_retrieval_recall@{k}"], abs=1e-6)
