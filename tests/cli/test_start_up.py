"""How fast the door opens."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest


def _best_of(times: int, *words: str) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True, env=os.environ)
        seconds.append(time.perf_counter() - began)
    return min(seconds)


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "zero-shot", "--help"], ["--version"]])
def test_help_answers_at_once(words: list[str]) -> None:
    assert _best_of(5, "-m", "diptych", *words) < 0.3


def test_import_is_light() -> None:
    assert _best_of(5, "-c", "import diptych") - _best_of(5, "-c", "pass") < 0.1
    heavy = "{'torch', 'numpy', 'PIL', 'matplotlib', 'tokenizers', 'pydantic'}"
    for code in ("import diptych", "import diptych.cli.main"):
        check = f"import sys; {code}; print(sorted({heavy} & set(sys.modules)))"
        out = subprocess.run([sys.executable, "-c", check], check=True, capture_output=True, text=True).stdout
        assert out.strip() == "[]", code


def test_loading_a_bundle_loads_no_compiler(tiny_bundle: Path) -> None:
    heavy = "{'torch._dynamo', 'sympy', 'torch.distributed.fsdp', 'matplotlib', 'pandas'}"
    code = (
        f"import sys, diptych; diptych.load(sys.argv[1]).encode_texts(['a']); print(sorted({heavy} & set(sys.modules)))"
    )
    out = subprocess.run([sys.executable, "-c", code, tiny_bundle], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_a_wrong_command_leaves_no_traceback() -> None:
    done = subprocess.run([sys.executable, "-m", "diptych", "trian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
