import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

import diptych
from diptych.core.program import command, program
from diptych.evaluation.report import versions

_SCRIPTS = Path(sysconfig.get_path("scripts"))
_ROOT = Path(__file__).parents[2]


def _start_hint(words: list[str], *, cwd: Path, path: str) -> str:
    """What a started program says that one starts with."""
    environment = {**os.environ, "PATH": path, "COLUMNS": "1000", "PYTHONPATH": str(_ROOT / "src")}
    said = subprocess.run([*words, "--help"], cwd=cwd, env=environment, capture_output=True, text=True, check=True)
    line = next(line for line in said.stdout.splitlines() if "Start with: " in line)
    return line.split("Start with: ")[1]


@pytest.mark.parametrize("way", ["on the path", "not on the path", "another's on the path", "module", "bare module"])
def test_what_it_prints_runs_in_the_same_shell(way: str, tmp_path: Path) -> None:
    script, python, bare = str(_SCRIPTS / "diptych"), str(Path(sys.executable).absolute()), os.defpath
    other = tmp_path / "other's bin"
    other.mkdir()
    (other / "diptych").write_text("#!/bin/sh\nexit 9\n", "utf-8")
    (other / "diptych").chmod(0o755)
    words, path, starts = {
        "on the path": ([script], f"{_SCRIPTS}{os.pathsep}{bare}", "diptych"),
        "not on the path": ([script], bare, None),
        "another's on the path": ([script], f"{other}{os.pathsep}{bare}", None),
        "module": ([python, "-m", "diptych"], f"{Path(python).parent}{os.pathsep}{bare}", "python -m diptych"),
        "bare module": ([python, "-m", "diptych"], bare, None),
    }[way]
    hint = _start_hint(words, cwd=tmp_path, path=path)
    assert hint.endswith(" demo")
    if starts is not None:
        assert hint == f"{starts} demo"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(_ROOT / "src")}
    again = hint.removesuffix("demo") + "--version"
    said = subprocess.run(
        ["/bin/sh", "-c", again], check=False, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (said.returncode, said.stdout.strip()) == (0, diptych.__version__)


def test_a_path_is_relative_where_that_is_shorter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "my env" / "bin" / "diptych"
    script.parent.mkdir(parents=True)
    script.touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.chdir(tmp_path)
    assert program() == "'my env/bin/diptych'"
    monkeypatch.chdir(script.parent)
    assert program() == "./diptych", "a bare name is not looked for in the working directory"
    monkeypatch.chdir("/")
    assert shlex.split(program()) == [str(script)[1:]]
    monkeypatch.setenv("PATH", str(script.parent))
    assert program() == "diptych"


def test_words_are_quoted() -> None:
    said = command("train", "--resume", Path("my runs/it's"), "a {}")
    assert shlex.split(said)[-4:] == ["train", "--resume", "my runs/it's", "a {}"]


def test_a_program_that_imports_the_package_names_the_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(_SCRIPTS))
    for started in ("", "-c", "/usr/lib/python3/pytest/__main__.py", "notebook.py"):
        monkeypatch.setattr(sys, "argv", [started])
        assert shutil.which(program()) == str(_SCRIPTS / "diptych")


def test_version_of_a_checkout_that_is_not_installed() -> None:
    code = f"import sys; sys.path.insert(0, {str(_ROOT / 'src')!r}); import diptych; print(diptych.__version__)"
    alone = [sys.executable, "-I", "-S", "-c", code]  # Without site-packages, and so without metadata of the package.
    said = subprocess.run(alone, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_nothing_asks_the_metadata_for_the_version() -> None:
    sources = (_ROOT / "src").rglob("*.py")
    assert [path.name for path in sources if 'version("diptych")' in path.read_text("utf-8")] == []
    assert versions()["diptych"] == diptych.__version__
