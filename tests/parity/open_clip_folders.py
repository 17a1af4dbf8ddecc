"""Folders of open_clip with random weights, and the comparison of what is read from them with open_clip itself."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.openai import openai_names, plain_names
from diptych.bundle.renaming import to_theirs
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.losses.contrastive import clip_loss
from tests import peers
from tests.parity.models import shaken

TEXTS = ["a dog", "Two  dogs run, it's &amp; what!?", "", "a red circle", "dog " * 100]
"""The last one is too long for each context."""


def write_folder(folder: Path, model: dict[str, Any], preprocess: dict[str, Any] | None = None) -> Any:
    """Write a folder of a random model, and return open_clip's model in it, in evaluation mode."""
    folder.mkdir(exist_ok=True)
    content = {"model_cfg": model, "preprocess_cfg": {} if preprocess is None else preprocess}
    (folder / "open_clip_config.json").write_text(json.dumps(content))
    torch.manual_seed(0)
    made = shaken(peers.open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False))
    weights = {name: tensor.contiguous() for name, tensor in made.state_dict().items()}
    save_file(weights, folder / "open_clip_model.safetensors")
    return made.eval()


def tokens(folder: Path, texts: list[str]) -> Tensor:
    """The ids that open_clip gives the texts."""
    ids: Tensor = peers.open_clip.get_tokenizer(f"local-dir:{folder}")(texts)
    return ids


def assert_features_and_gradients(folder: Path, theirs: Any) -> None:
    """Features within 1e-5, loss the same, gradients within 1e-4 of each tensor's largest."""
    bundle = open_bundle(folder)
    ours, encoded = bundle.model, bundle.tokenizer.encode(TEXTS)
    side = bundle.config.image.image_px
    height, width = (side, side) if isinstance(side, int) else side
    pixels = torch.randn(len(TEXTS), 3, height, width, generator=torch.Generator().manual_seed(2))
    out = ours(pixels, torch.from_numpy(encoded.ids), torch.from_numpy(encoded.lengths))
    image_emb, text_emb = (
        functional.normalize(emb, dim=-1)
        for emb in (theirs.encode_image(pixels), theirs.encode_text(tokens(folder, TEXTS)))
    )
    torch.testing.assert_close(out.image_emb, image_emb, atol=1e-5, rtol=0)
    torch.testing.assert_close(out.text_emb, text_emb, atol=1e-5, rtol=0)
    assert float(image_emb.detach().std(dim=0).max()) > 1e-3
    assert float(text_emb.detach().std(dim=0).max()) > 1e-3
    clip_loss(out.image_emb, out.text_emb, out.logit_scale).backward()
    clip_loss(image_emb, text_emb, theirs.logit_scale.exp()).backward()
    table = [rename for rename in openai_names(bundle.config) if rename.default is None]
    mine = to_theirs({name: _gradient(parameter) for name, parameter in ours.named_parameters()}, table)
    grads = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    checked = 0
    for name, grad in plain_names(grads).items():
        error = float((mine[name] - grad).abs().max())
        assert error <= 1e-4 * float(grad.abs().max()) + 1e-9, name
        checked += 1
    assert checked >= len(mine) - 1


def assert_scores(folder: Path, theirs: Any, photos: list[Path]) -> None:
    """The cosines from files and strings, through the whole path of both libraries, are within 1e-4."""
    clip = LoadedBundle(open_bundle(folder))
    ours = clip.encode_images(photos) @ clip.encode_texts(TEXTS[:-1]).T
    preprocess = peers.open_clip.create_model_from_pretrained(f"local-dir:{folder}")[1]
    with torch.no_grad():
        pixels = torch.stack([preprocess(Image.open(photo)) for photo in photos])
        images = functional.normalize(theirs.encode_image(pixels), dim=-1)
        texts = functional.normalize(theirs.encode_text(tokens(folder, TEXTS[:-1])), dim=-1)
    torch.testing.assert_close(torch.from_numpy(ours), images @ texts.T, atol=1e-4, rtol=0)
    assert float((images @ texts.T).std()) > 1e-3


def _gradient(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
