"""`compile`: the same weights as without, one compilation for all batches, and bundles that load without it."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.core.errors import ConfigError
from diptych.core.settings import from_plain, override
from diptych.cpu.halves import can_halve
from diptych.models import attention
from diptych.models.clip import CLIP
from diptych.models.layers import Block
from diptych.models.packing import pack_texts
from diptych.training import compilation
from diptych.training.compilation import compile_blocks, decide_compile
from diptych.training.config import TrainConfig, write_config
from diptych.training.optim.schedule import Schedule, ScheduleConfig
from diptych.training.run import train
from tests.conftest import TINY_MODEL, TINY_RUN

# A large epsilon keeps AdamW from making whole steps of differences in rounding.
EAGER = override(TINY_RUN, {"schedule.steps": "4", "optimizer.eps": "1e-2", "optimizer.lr": "2e-2", "ema": "0.9"})
COMPILED = override(EAGER, {"compile": "true"})


def _val_losses(run: Path) -> list[float]:
    lines = (run / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["val_loss"] for line in lines if "val_loss" in line]


@pytest.mark.slow
def test_compiled_and_eager_train_alike(tmp_path: Path) -> None:
    train(EAGER, tmp_path / "eager")
    write_config(COMPILED, tmp_path / "config.yaml")
    command = [sys.executable, "-m", "diptych", "train", "--config", "config.yaml", "--out", "compiled"]
    # Annotations that are checked at every call cannot be compiled.
    environment = {**os.environ, "JAXTYPING_DISABLE": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=300)
    assert any((tmp_path / "cache").rglob("*.cpp")), "nothing was compiled"
    compiled = load_file(tmp_path / "compiled" / "bundle" / "model.safetensors")
    for name, tensor in load_file(tmp_path / "eager" / "bundle" / "model.safetensors").items():
        torch.testing.assert_close(compiled[name], tensor, rtol=1e-3, atol=2e-5)
    assert _val_losses(tmp_path / "compiled") == pytest.approx(_val_losses(tmp_path / "eager"), abs=1e-4)


def test_without_a_compiler_the_run_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CXX", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"needs a C\+\+ compiler: install g\+\+, or set CXX"):
        train(COMPILED, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # PyTorch's own, as its compiler loads.
def test_blocks_are_compiled_once_for_all_mixtures_of_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts as on a GPU: padded attention on packed texts. After the first batch, a compilation is an error."""
    monkeypatch.setattr(attention, "BUCKETED_DEVICES", frozenset())
    torch.manual_seed(0)
    eager = CLIP(override(TINY_MODEL, {"image.layers": 2, "text.layers": 2})).train()
    compiled = copy.deepcopy(eager)
    compile_blocks(compiled)
    torch.compiler.reset()
    limit, generator = TINY_MODEL.text.context_length, torch.Generator().manual_seed(0)
    mixtures = ([5, 2, 12, 5, 3, 14], [3] * 9, [14, 4, 8], [2, 3, 4, 5, 6, 7, 8] * 12)
    for number, lengths in enumerate(mixtures):
        ids = torch.randint(1, TINY_MODEL.text.vocab_size, (len(lengths), max(lengths)), generator=generator)
        pixels = torch.randn(4, 3, 32, 32, generator=generator)
        texts = pack_texts(ids, torch.tensor(lengths), context_length=limit)
        with torch.compiler.set_stance("fail_on_recompile" if number else "default"):
            losses, gradients = zip(
                *(_loss_and_gradients(model, pixels, texts) for model in (compiled, eager)), strict=True
            )
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    with torch.compiler.set_stance("fail_on_recompile"), torch.no_grad():  # An evaluation has other sizes.
        compiled.eval().encode_image(torch.randn(3, 3, 32, 32))


def _loss_and_gradients(model: CLIP, *inputs: object) -> tuple[float, list[torch.Tensor]]:
    output = model(*inputs)
    loss = output.image_emb[:3].mul(output.text_emb[:3]).sum() + output.text_emb[:, 0].sum()
    parameters = [p for name, p in model.named_parameters() if name != "log_logit_scale"]
    return loss.item(), list(torch.autograd.grad(loss, parameters))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # As above.
def test_compiled_blocks_have_the_weights_of_plain_ones_and_no_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    model = CLIP(TINY_MODEL)
    names = list(model.state_dict())
    assert can_halve(model)
    compile_blocks(model)
    assert list(model.state_dict()) == names
    for tower, is_compiled in ((model.image_tower, True), (model.text_tower, False)):  # This is a CPU.
        blocks = [module for module in tower.modules() if isinstance(module, Block)]
        assert {type(block) is not Block for block in blocks} == {is_compiled}
    assert not can_halve(model)


LONG = Schedule(ScheduleConfig(epochs=10), steps_per_epoch=100)
SHORT = Schedule(ScheduleConfig(epochs=None, steps=999), steps_per_epoch=100)


@pytest.mark.parametrize(
    ("device", "schedule", "says"),
    [
        ("cuda", LONG, "The towers are compiled, since the run has 1,000 steps"),
        ("cuda", Schedule(ScheduleConfig(epochs=None, minutes=10.0), 100), "since the run has 10 minutes"),
        ("cuda", SHORT, None),
        ("cuda", Schedule(ScheduleConfig(epochs=None, minutes=9.9), 100), None),
        ("cpu", LONG, None),
        ("mps", LONG, None),
    ],
)
def test_auto_compiles_long_runs_on_gpus(
    device: str, schedule: Schedule, says: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compilation, "missing_compiler", lambda _device: None)
    compiles, message = decide_compile("auto", torch.device(device), schedule)
    assert compiles == (says is not None)
    assert (message or "").find(says or "") >= 0
    assert decide_compile(True, torch.device(device), SHORT) == (True, None)
    assert decide_compile(False, torch.device(device), LONG) == (False, None)


def test_a_long_run_without_a_compiler_is_not_compiled_and_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(compilation, "find_spec", lambda _name: "found")
    monkeypatch.setenv("CC", str(tmp_path / "none"))
    compiles, message = decide_compile("auto", torch.device("cuda"), LONG)
    assert not compiles
    assert message == "The towers are not compiled: `torch.compile` on a GPU needs a C compiler: install gcc, or set CC"
    monkeypatch.setattr(compilation, "find_spec", lambda _name: None)
    assert "needs Triton: pip install triton" in str(decide_compile("auto", torch.device("cuda"), LONG)[1])


def test_old_config_files_are_valid() -> None:
    for setting in (True, False, "auto"):
        assert from_plain(TrainConfig, {"compile": setting}).compile == setting
    assert TINY_RUN.compile == "auto"
