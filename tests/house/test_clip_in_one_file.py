"""The file for students computes what the package computes: the same weights, three steps of SGD, the same losses."""

import re
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest
import torch

from diptych.data.batches.batch import Batch
from diptych.images.transforms import PixelConfig
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.training.step import TrainingStep

PATH = Path(__file__).parents[2] / "examples" / "clip_in_one_file.py"
SMALL = {"width": 32, "layers": 2, "heads": 4, "embed_dim": 16}
LR = 0.05


@pytest.fixture(scope="module")
def one_file() -> ModuleType:
    spec = spec_from_file_location("clip_in_one_file", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _package_model(one_file: ModuleType, weights: dict[str, torch.Tensor]) -> CLIP:
    config = CLIPConfig(
        embed_dim=SMALL["embed_dim"],
        image=ViTConfig(
            image_px=one_file.IMAGE_PX, patch_px=one_file.PATCH_PX, width=32, layers=2, heads=4, activation="gelu"
        ),
        text=TextConfig(
            vocab_size=len(one_file.WORDS),
            context_length=one_file.CONTEXT,
            width=32,
            layers=2,
            heads=4,
            activation="gelu",
        ),
        pixels=PixelConfig(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    )
    model = CLIP(config)
    names = {name: name.replace("blocks", "transformer.blocks").replace("patch_emb", "stem.embed") for name in weights}
    model.load_state_dict({names[name]: tensor.clone() for name, tensor in weights.items()})
    return model.train()


def test_three_steps_have_the_losses_of_the_package(one_file: ModuleType) -> None:
    torch.manual_seed(0)
    theirs = one_file.CLIP(**SMALL)
    ours = _package_model(one_file, theirs.state_dict())
    sgd = torch.optim.SGD(ours.parameters(), lr=LR)
    sgd.param_groups[0]["lr_factor"] = 1.0
    step = TrainingStep(ours, [sgd], max_grad_norm=None)
    optimizer, generator = torch.optim.SGD(theirs.parameters(), lr=LR), torch.Generator().manual_seed(0)
    losses = []
    for number in range(3):
        pixels, ids, lengths = one_file.draw_batch(generator)
        pixels = (255 * pixels).round().clamp(0, 255) / 255  # As a file of 8 bits holds them.
        loss = theirs.loss(pixels, ids, lengths)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rows = torch.arange(len(pixels))
        batch = Batch(
            pixels=(255 * pixels).round().to(torch.uint8),
            ids=ids,
            lengths=lengths,
            text_of_row=rows,
            positive_groups=rows,
            positive_keys=rows[:, None],
            keys=tuple(map(str, rows.tolist())),
            captions=tuple(map(str, rows.tolist())),
        )
        result = step(batch, lr=LR, seed=number)
        assert result.loss == pytest.approx(loss.item(), abs=1e-5)
        losses.append(result.loss)
    assert losses[2] != pytest.approx(losses[0], abs=1e-3)  # The steps moved the weights.


def test_training_learns_and_recognizes_unseen_combinations(
    one_file: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(PATH), "100"])
    one_file.main()
    shares = [int(share) for share in re.findall(r"(\d+)% of pictures", capsys.readouterr().out)]
    known, unseen = shares
    assert known >= 30
    assert unseen >= 10


def test_it_is_short_and_stands_alone() -> None:
    text = PATH.read_text("utf-8")
    assert len(text.splitlines()) <= 300
    assert "import diptych" not in text
    assert "from diptych" not in text
