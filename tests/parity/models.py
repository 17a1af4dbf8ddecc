"""Random peers to compare with: small, and with no weight left at a value that hides a mistake."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

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
