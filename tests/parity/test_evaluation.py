"""Figures against those of the peers, on the same embeddings and on the same model."""

from typing import Any

import numpy as np
import pytest
import torch

from diptych.bundle.folder import Bundle
from diptych.bundle.open_bundle import export_bundle
from diptych.data.sources.templates import resolve_templates
from diptych.evaluation.retrieval import retrieval_ranks
from diptych.inference.classify import class_embeddings
from diptych.inference.embedder import Embedder
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.tokenizers.clip_bpe import ClipBPETokenizer
from tests import peers
from tests.parity.models import KnownEmbeddings

SMALL = CLIPConfig(
    embed_dim=32,
    image=ViTConfig(image_px=32, patch_px=16, width=64, layers=1, heads=1),
    text=TextConfig(tokenizer="clip-bpe", vocab_size=49408, context_length=77, width=64, layers=2, heads=2),
)


def test_recalls_equal_clip_benchmarks() -> None:
    generator = torch.Generator().manual_seed(0)
    image_emb = torch.nn.functional.normalize(torch.randn(60, 8, generator=generator), dim=1)
    noise = torch.randn(60, 5, 8, generator=generator)
    text_emb = torch.nn.functional.normalize(image_emb[:, None] + noise, dim=2)
    loader = [(image_emb[i : i + 20], list(text_emb[i : i + 20])) for i in range(0, 60, 20)]

    def tokenizer(texts: list[torch.Tensor]) -> torch.Tensor:
        return torch.stack(texts)

    theirs: dict[str, Any] = peers.retrieval_metrics.evaluate(
        KnownEmbeddings(), loader, tokenizer, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )
    image_to_text, text_to_image = (
        ranks.recall()
        for ranks in retrieval_ranks(
            image_emb.numpy(), text_emb.flatten(0, 1).numpy(), np.repeat(np.arange(60), 5), device=torch.device("cpu")
        )
    )
    for k in (1, 5, 10):
        assert getattr(image_to_text, f"r{k}") == pytest.approx(theirs[f"text_retrieval_recall@{k}"], abs=1e-6)
        assert getattr(text_to_image, f"r{k}") == pytest.approx(theirs[f"image_retrieval_recall@{k}"], abs=1e-6)


def test_classifier_weights_equal_open_clips(tmp_path: Any) -> None:
    torch.manual_seed(0)
    bundle = Bundle(model=CLIP(SMALL).eval(), tokenizer=ClipBPETokenizer(context_length=77))
    export_bundle(bundle, "open-clip", tmp_path / "theirs")
    model = peers.open_clip.create_model(f"local-dir:{tmp_path / 'theirs'}").eval()
    tokenizer = peers.open_clip.get_tokenizer(f"local-dir:{tmp_path / 'theirs'}")
    classes, templates = ["dog", "great white shark", "red-breasted merganser"], resolve_templates(["imagenet-80"])
    theirs = peers.open_clip.build_zero_shot_classifier(
        model, tokenizer, classes, [lambda name, text=text: text.replace("{}", name) for text in templates]
    )
    ours = class_embeddings(Embedder(bundle), classes, templates)
    np.testing.assert_allclose(ours, theirs.T.numpy(), atol=1e-6)
