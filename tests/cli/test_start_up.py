"""What a start of the program imports."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"torch", "numpy", "PIL", "matplotlib", "tokenizers", "pydantic", "asyncio", "multiprocessing", "sqlite3"}
"""What no help needs; `torch` alone takes a second. `benchmarks/start_up.py` measures the time."""


def _imported(*words: str) -> set[str]:
    """Names of the modules that a Python process imports."""
    done = subprocess.run([sys.executable, "-X", "importtime", *words], check=True, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip() for line in lines[1:]}


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["evaluate", "zero-shot", "--help"], ["--version"]])
def test_help_imports_little(words: list[str]) -> None:
    imported = _imported("-m", "diptych", *words)
    assert not imported & HEAVY
    assert "cyclopts" in imported
    assert len(imported) < 320  # 248 to 274 with Python 3.11.


def test_import_is_light() -> None:
    imported = _imported("-c", "import diptych")
    assert not imported & HEAVY
    assert "diptych" in imported
    assert len(imported - _imported("-c", "pass")) < 60
    assert not _imported("-c", "import diptych.cli.main") & HEAVY


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
