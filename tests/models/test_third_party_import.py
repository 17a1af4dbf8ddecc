"""timm and transformers beside a torchvision that does not fit PyTorch, or without it."""

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from diptych.bundle.folder import Bundle, save_bundle
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from tests.makers import TIMM_TOWERS, encoder_tower
from tests.tokenizers.makers import make_tokenizer

FITTING = f"pip install torchvision==0.{int(torch.__version__.split('.')[1]) + 15}."
BROKEN = 'raise RuntimeError("operator torchvision::nms does not exist")'
ABSENT = """
import importlib.machinery
import sys
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] == {missing!r} else find(name, path, target)
importlib.machinery.PathFinder.find_spec = staticmethod(find_spec)
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tokenizer = make_tokenizer("character")
    text = encoder_tower("bert", vocab_size=tokenizer.vocab_size, context_length=tokenizer.context_length)
    model = CLIP(CLIPConfig(embed_dim=16, image=TIMM_TOWERS["timm convnext"], text=text)).eval()
    path = tmp_path_factory.mktemp("bundle") / "bundle"
    save_bundle(Bundle(model=model, tokenizer=tokenizer), path)
    return path


def _import(bundle: Path, out: Path, *, start: str = "") -> subprocess.CompletedProcess[str]:
    """Run `diptych import`, which builds the model, after some code."""
    arguments = ["import", str(bundle), "--out", str(out)]
    code = f"{start}\nimport sys\nsys.argv[1:] = {arguments!r}\nfrom diptych.cli.main import run\nrun()"
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False, timeout=300, cwd=out.parent
    )


def _fake(folder: Path, content: str) -> str:
    """Code that puts a package `torchvision` before the installed one."""
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(content, "utf-8")
    return f"import sys; sys.path.insert(0, {str(folder)!r})"


def test_a_library_of_torchvision_that_does_not_load_is_no_obstacle(bundle: Path, tmp_path: Path) -> None:
    spec = find_spec("torchvision")
    assert spec is not None
    assert spec.origin is not None
    shutil.copytree(Path(spec.origin).parent, tmp_path / "torchvision", ignore=shutil.ignore_patterns("*.so", "*.pyc"))
    (tmp_path / "torchvision" / "_C.so").write_bytes(b"built for another PyTorch")
    done = _import(bundle, tmp_path / "out", start=f"import sys; sys.path.insert(0, {str(tmp_path)!r})")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_torchvision_that_does_not_match_is_told_in_one_line_with_the_one_that_does(
    bundle: Path, tmp_path: Path
) -> None:
    done = _import(bundle, tmp_path / "out", start=_fake(tmp_path, BROKEN))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert (
        "a timm image tower needs timm, which cannot be imported (operator torchvision::nms does not exist)"
        in done.stderr
    )
    assert FITTING in done.stderr


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("torchvision", f"a timm image tower needs torchvision, which is not installed: {FITTING}"),
        ("timm", "a timm image tower needs timm, which is not installed: pip install 'diptych[towers]'"),
        (
            "transformers",
            "a transformers text tower needs transformers, which is not installed: pip install 'diptych[towers]'",
        ),
    ],
)
def test_what_is_not_installed_is_told_in_one_line(missing: str, message: str, bundle: Path, tmp_path: Path) -> None:
    done = _import(bundle, tmp_path / "out", start=ABSENT.format(missing=missing))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert message in done.stderr
