"""Checkpoints of training programs: averaged weights, wrappers, and objects next to the weights."""

import argparse
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.openai import openai_names
from diptych.bundle.renaming import to_theirs
from diptych.bundle.weights import read_state_dict
from diptych.bundle.weights_facts import WeightsFacts
from diptych.core.errors import BundleError, ConfigError
from diptych.models.clip import CLIP
from tests.bundle.makers import SMALL

RAW = {"visual.proj": torch.zeros(2)}
AVERAGED = {"visual.proj": torch.ones(2)}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    return to_theirs(CLIP(SMALL).state_dict(), openai_names(SMALL))


def _read(tmp_path: Path, content: Any, choice: Any = None) -> tuple[float, str | None]:
    torch.save(content, tmp_path / "w.ckpt")
    found = read_state_dict(tmp_path / "w.ckpt", choice)
    assert list(found.tensors) == ["visual.proj"]
    return float(found.tensors["visual.proj"][0]), found.note


def _averaged_model() -> dict[str, Tensor]:
    inner = torch.nn.Module()
    inner.visual = torch.nn.Module()
    inner.visual.proj = torch.nn.Parameter(torch.ones(2))
    state: dict[str, Tensor] = AveragedModel(inner).state_dict()
    return state


BOTH = {
    "timm": {"state_dict": RAW, "state_dict_ema": AVERAGED, "epoch": 3},
    "torchvision": {"model": RAW, "model_ema": _averaged_model()},
    "wrapped": {"state_dict": {f"module.{name}": t for name, t in RAW.items()}, "model_ema": {"state_dict": AVERAGED}},
    "beside": {**RAW, "ema": AVERAGED},
}


@pytest.mark.parametrize("name", BOTH)
def test_averaged_weights_are_taken_unless_raw_ones_are_asked_for(tmp_path: Path, name: str) -> None:
    assert _read(tmp_path, BOTH[name]) == (1.0, "averaged; the file also has raw ones (--weights raw)")
    assert _read(tmp_path, BOTH[name], "ema")[0] == 1.0
    assert _read(tmp_path, BOTH[name], "raw") == (0.0, "raw; the file also has averaged ones (--weights ema)")


@pytest.mark.parametrize("content", [_averaged_model(), {"model_ema": AVERAGED}])
def test_only_averaged_weights(tmp_path: Path, content: Any) -> None:
    value, note = _read(tmp_path, content)
    assert value == 1.0
    assert note is not None
    assert note.startswith("averaged (")
    with pytest.raises(BundleError, match="has only averaged weights, no raw ones; omit --weights raw"):
        _read(tmp_path, content, "raw")


def test_only_raw_weights(tmp_path: Path) -> None:
    assert _read(tmp_path, {"state_dict": RAW}, "raw") == (0.0, None)
    with pytest.raises(BundleError, match="has only raw weights, no averaged ones; omit --weights ema"):
        _read(tmp_path, {"state_dict": RAW}, "ema")


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_choice_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown value of weights 'emma'; did you mean 'ema'"):
        _read(tmp_path, RAW, "emma")


@pytest.mark.parametrize("prefix", ["model.", "clip.", "model.clip.", "module.model.", "_orig_mod.clip_model."])
def test_a_wrapped_model_is_found(tmp_path: Path, prefix: str) -> None:
    inside = {f"{prefix}{name}": tensor for name, tensor in RAW.items()}
    assert _read(tmp_path, {"state_dict": inside}) == (0.0, None)
    note = _read(tmp_path, {"state_dict": {**inside, "loss.weight": torch.zeros(1)}})[1]
    assert note is not None
    assert note.endswith("1 others ignored")


def test_two_models_in_one_checkpoint_are_refused(tmp_path: Path) -> None:
    both = {"model.visual.proj": torch.zeros(2), "clip.visual.proj": torch.zeros(2)}
    with pytest.raises(BundleError, match=r"holds several models, clip\.\* and model\.\*; save the state dict of one"):
        _read(tmp_path, both)


def test_harmless_objects_next_to_the_weights(tmp_path: Path) -> None:
    options = argparse.Namespace(lr=np.float64(3), path=Path("x"), nested={"a": np.arange(3)})
    content = {"state_dict": RAW, "args": options, "best": np.float32(2), "seed": np.int64(1), "is_on": np.bool_(True)}
    assert _read(tmp_path, content) == (0.0, None)


class _Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize("function", [os.system, os.mkdir, pickle.loads, np.load, argparse.FileType, open])
def test_other_objects_are_refused_and_nothing_runs(tmp_path: Path, function: Callable[..., Any]) -> None:
    torch.save({"state_dict": RAW, "args": _Call(function, str(tmp_path / "ran"))}, tmp_path / "w.pt")
    with pytest.raises(BundleError, match=r"w\.pt: cannot be read as weights: damaged, or more than tensors"):
        read_state_dict(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_that_contains_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(BundleError, match="holds no weights by name"):
        read_state_dict(tmp_path / "w.pt")


def test_the_origin_says_which_weights_were_taken(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    averaged = {name: tensor * 0.5 for name, tensor in weights.items()}
    torch.save({"state_dict": weights, "state_dict_ema": averaged}, tmp_path / "w.pt")
    bundle = open_bundle(tmp_path / "w.pt", facts=WeightsFacts(activation="gelu"))
    assert bundle.origin["weights"] == "averaged; the file also has raw ones (--weights raw)"
    raw = open_bundle(tmp_path / "w.pt", facts=WeightsFacts(activation="gelu", weights="raw"))
    assert "weights" in raw.origin
    torch.testing.assert_close(raw.model.log_logit_scale, bundle.model.log_logit_scale * 2)


def test_an_index_is_given_directly(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    names = sorted(weights)
    files = {"model-1-of-2.safetensors": names[::2], "model-2-of-2.safetensors": names[1::2]}
    for file, part in files.items():
        save_file({name: weights[name].contiguous() for name in part}, tmp_path / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (tmp_path / "model.safetensors.index.json").write_text(str(index).replace("'", '"'))
    bundle = open_bundle(tmp_path / "model.safetensors.index.json", facts=WeightsFacts(activation="gelu"))
    found = bundle.model.state_dict()["text_tower.token_emb.weight"]
    torch.testing.assert_close(found, weights["token_embedding.weight"])


def test_long_clip_has_two_tables_of_positions(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    first, rest = (torch.randn(248, 64) for _ in range(2))
    torch.save({**weights, "positional_embedding": first, "positional_embedding_res": rest}, tmp_path / "long.pt")
    bundle = open_bundle(tmp_path / "long.pt")
    mask = (torch.arange(248) < 20)[:, None]  # LongCLIP's code: each table times its mask.
    torch.testing.assert_close(bundle.model.text_tower.position_emb, first * mask + rest * ~mask)
    assert bundle.config.text.context_length == bundle.tokenizer.context_length == 248
    assert bundle.config.own_text.activation == "quick_gelu"
    torch.save({**weights, "positional_embedding_res": rest}, tmp_path / "long.pt")
    with pytest.raises(BundleError, match="positional_embedding is 77x64, expected that of positional_embedding_res"):
        open_bundle(tmp_path / "long.pt")
