"""What `data shards --layout clip-benchmark` writes, read by CLIP_benchmark's own WebDataset builder."""

from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from diptych.data.sources.choice import open_source
from diptych.data.sources.splits import take_split
from diptych.data.write_shards import write_shards
from diptych.evaluation.retrieval import retrieval_ranks
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


def test_recalls_on_the_written_tars_equal_clip_benchmarks(flickr_folder: Path, tmp_path: Path) -> None:
    write_shards(open_source(f"flickr30k:{flickr_folder}"), tmp_path / "tars", layout="clip-benchmark")
    theirs = peers.benchmark_datasets.build_wds_dataset("x", _embed, "train", str(tmp_path / "tars"))
    source = take_split(open_source(str(tmp_path / "tars")), "train")
    captions = [source.captions(i) for i in range(len(source))]
    expected = peers.retrieval_metrics.evaluate(
        _Known(),
        [(torch.stack([emb]), [texts]) for emb, texts in theirs],
        _embed_texts,
        "cpu",
        amp=False,
        recall_k_list=[1],
    )
    to_text, to_image = retrieval_ranks(
        np.stack([_embed(decode(source[i].image)).numpy() for i in range(len(source))]),
        _embed_texts([text for texts in captions for text in texts]).numpy(),
        np.repeat(np.arange(len(source)), [len(texts) for texts in captions]),
        device=torch.device("cpu"),
    )
    assert to_text.recall().r1 == pytest.approx(expected["text_retrieval_recall@1"], abs=1e-6)
    assert to_image.recall().r1 == pytest.approx(expected["image_retrieval_recall@1"], abs=1e-6)


class _Known:
    """A model whose inputs are embeddings already."""

    @staticmethod
    def encode_image(emb: torch.Tensor) -> torch.Tensor:
        return emb

    encode_text = encode_image


def _embed(image: Image.Image) -> torch.Tensor:
    """A direction that depends on the picture's pixels alone."""
    return _direction(np.asarray(image).tobytes())


def _embed_texts(texts: list[str]) -> torch.Tensor:
    return torch.stack([_direction(text.encode()) for text in texts])


def _direction(content: bytes) -> torch.Tensor:
    generator = torch.Generator().manual_seed(int.from_bytes(sha256(content).digest()[:4], "big"))
    return torch.nn.functional.normalize(torch.randn(8, generator=generator), dim=0)
