"""`compile`: the same weights as without, and bundles that load without it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from diptych.core.errors import ConfigError
from diptych.core.settings import override
from diptych.training.config import write_config
from diptych.training.run import train
from tests.conftest import TINY_RUN

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
