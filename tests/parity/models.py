"""Random peers to compare with: small, and with no weight left at a value that hides a mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from diptych.bundle.renaming import Rename, to_theirs
from diptych.losses.contrastive import clip_loss
from diptych.models.clip import CLIP
from tests import peers

IDS = torch.zeros(5, 77, dtype=torch.int64)
"""Five texts of different lengths as open_clip pads them, the last one of full length."""
for _row, _length in enumerate((3, 9, 9, 20, 77)):
    IDS[_row, :_length] = torch.arange(_length) * 613 % 49405 + 1
    IDS[_row, 0], IDS[_row, _length - 1] = 49406, 49407
LENGTHS = torch.tensor([3, 9, 9, 20, 77])

VIT: dict[str, Any] = {"image_size": 48, "patch_size": 16, "width": 128, "layers": 3}
RESNET: dict[str, Any] = {"image_size": 64, "layers": [1, 2, 1, 2], "width": 32}
TEXT: dict[str, Any] = {"width": 64, "heads": 1, "layers": 2}


def pixels(model: Any) -> Tensor:
    """Five random pictures of the size that an open_clip model reads."""
    side = model.visual.image_size
    height, width = (side, side) if isinstance(side, int) else side
    return torch.randn(5, 3, height, width, generator=torch.Generator().manual_seed(2))


def open_clip_model(vision: dict[str, Any], *, quick_gelu: bool = True, **settings: Any) -> Any:
    """A random model of open_clip's, in evaluation mode."""
    model = shaken(
        peers.open_clip.model.CLIP(64, vision, {**TEXT, "vocab_size": 49408}, quick_gelu=quick_gelu, **settings)
    )
    if isinstance(vision["layers"], list):
        with torch.no_grad():
            for _ in range(30):  # Batch norms that fit, or all pictures look the same in the end.
                model.train().encode_image(pixels(model))
    return model.eval()


def hugging_face_model(activation: str = "quick_gelu", **vision: Any) -> Any:
    """A random `CLIPModel`, in evaluation mode."""
    config = peers.transformers.CLIPConfig(
        projection_dim=64,
        text_config={
            "hidden_size": 96,
            "intermediate_size": 200,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_act": activation,
        },
        vision_config={
            "hidden_size": 80,
            "intermediate_size": 320,
            "num_hidden_layers": 3,
            "num_attention_heads": 5,
            "image_size": 48,
            "patch_size": 16,
            "hidden_act": activation,
            **vision,
        },
    )
    return shaken(peers.transformers.CLIPModel(config))


def shaken(model: nn.Module) -> Any:
    """Every weight and every running mean moved, so that none of them can be forgotten unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and "logit" not in name:
                tensor.add_(
                    torch.rand(tensor.shape, generator=generator) * 0.1 - 0.05 + 0.05 * name.endswith("running_var")
                )
    return model.eval()


def save_hugging_face(model: Any, folder: Path, *, with_processor: bool = True) -> Path:
    """The folder that the peer writes."""
    model.save_pretrained(folder)
    if with_processor:
        side = model.config.vision_config.image_size
        peers.transformers.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=side).save_pretrained(folder)
    return folder


def random_pictures(model: CLIP) -> Tensor:
    """Five random pictures of the size that one of our models reads."""
    side = model.config.image.image_px
    height, width = (side, side) if isinstance(side, int) else side
    return torch.randn(5, 3, height, width, generator=torch.Generator().manual_seed(2))


def encode_open_clip(model: Any) -> tuple[Tensor, Tensor]:
    """Embeddings of the random pictures and texts."""
    return model.encode_image(pixels(model)), model.encode_text(IDS)


def encode_hugging_face(model: Any) -> tuple[Tensor, Tensor]:
    """Embeddings of the random pictures and texts."""
    side = model.config.vision_config.image_size
    pictures = torch.randn(5, 3, side, side, generator=torch.Generator().manual_seed(2))
    image, text = model.get_image_features(pixel_values=pictures), model.get_text_features(input_ids=IDS)
    return image.pooler_output, text.pooler_output


def assert_parity(
    ours: CLIP,
    theirs: Any,
    encode: Callable[[Any], tuple[Tensor, Tensor]],
    table: list[Rename],
    *,
    min_spread: float = 0.01,
) -> None:
    """Features within 1e-5, loss the same, gradients within 1e-4 of each tensor's largest."""
    out = ours(random_pictures(ours), IDS, LENGTHS)
    image_emb, text_emb = (functional.normalize(emb, dim=-1) for emb in encode(theirs))
    torch.testing.assert_close(out.image_emb, image_emb, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text_emb, text_emb, atol=1e-5, rtol=0)
    assert float(image_emb.detach().std(dim=0).max()) > min_spread  # The pictures do differ.
    our_loss = clip_loss(out.image_emb, out.text_emb, out.logit_scale)
    their_loss = clip_loss(image_emb, text_emb, theirs.logit_scale.exp())
    assert our_loss.item() == pytest.approx(their_loss.item(), abs=1e-5)
    our_loss.backward()
    their_loss.backward()
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    known = [rename for rename in table if all(name in gradients for name in rename.ours)]
    mine = to_theirs({name: grad for name, grad in gradients.items() if grad is not None}, known)
    checked = 0
    for name, parameter in theirs.named_parameters():
        # A key's bias has no gradient but rounding; open_clip keeps it with the others.
        if parameter.grad is None or name.endswith("k_proj.bias"):
            continue
        error = float((mine[name] - parameter.grad).abs().max())
        assert error <= 1e-4 * float(parameter.grad.abs().max()), name
        checked += 1
    assert checked >= len(known) - sum(rename.theirs.endswith("k_proj.bias") for rename in known)


class KnownEmbeddings:
    """A model whose embeddings are known: what it is asked for is what it says."""

    @staticmethod
    def encode_image(emb: torch.Tensor) -> torch.Tensor:
        """What it is given."""
        return emb

    encode_text = encode_image
