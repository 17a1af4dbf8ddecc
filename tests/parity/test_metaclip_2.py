"""MetaCLIP 2 in Hugging Face's format: CLIP's towers with the tokenizer of XLM-V, which has XLM-R's layout."""

from pathlib import Path

import numpy as np
import pytest
import torch

from diptych.bundle.open_bundle import open_bundle
from diptych.inference.embedder import Embedder
from tests import peers
from tests.parity.models import shaken
from tests.tokenizers import vocabularies

TEXTS = ["a photo of a dog", "", "деревня зимой", "雪の中の犬 </s> after the end", "two red cars " * 40]


@pytest.mark.filterwarnings("ignore:texts longer than 77")
def test_embeddings_of_texts_and_pixels_are_the_peers(tmp_path: Path) -> None:
    tokenizer = vocabularies.write_xlm_roberta(tmp_path)
    sizes = {"hidden_size": 48, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 3}
    text = {"vocab_size": len(tokenizer) + 5, "max_position_embeddings": 77, "eos_token_id": 2, "pad_token_id": 1}
    config = peers.transformers.MetaClip2Config(
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        text_config={**sizes, **text, "bos_token_id": 0, "hidden_act": "gelu"},
        projection_dim=24,
    )
    model = shaken(peers.transformers.MetaClip2Model(config))
    model.save_pretrained(tmp_path)
    given = tokenizer(TEXTS, padding=True, truncation=True, max_length=77, return_tensors="pt")
    pixels = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text_emb = model.get_text_features(**given).pooler_output
        image_emb = model.get_image_features(pixel_values=pixels).pooler_output
    bundle = open_bundle(tmp_path)
    normalize = torch.nn.functional.normalize
    np.testing.assert_allclose(Embedder(bundle).encode_texts(TEXTS), normalize(text_emb, dim=-1).numpy(), atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(bundle.model.encode_image(pixels), normalize(image_emb, dim=-1), atol=1e-5, rtol=0)
    assert bundle.config.text.tokenizer == "pretrained"
