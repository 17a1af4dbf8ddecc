"""Names, captions and errors that hold a terminal's commands, in what commands print."""

import json
import os
import pty
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from diptych.cli import output
from diptych.cli.main import main
from diptych.core.errors import DiptychWarning
from tests.conftest import draw_photos

CLIPBOARD = "\x1b]52;c;Y3VybA==\x07"
BIDI = "\u202egpj.exe"
HOSTILE = f"a{CLIPBOARD}\x9b2J{BIDI}"
SHOWN = r"a\x1b]52;c;Y3VybA==\x07\x9b2J\u202egpj.exe"


def _is_safe(text: str) -> bool:
    return not set(text) & set("\x1b\x07\x9b\u202e")


@pytest.fixture
def hostile_table(tmp_path: Path) -> str:
    draw_photos(tmp_path, [f"{HOSTILE}.png", "b.png", "c.png"])
    (tmp_path / f"{HOSTILE}c.png").write_bytes(b"broken")
    lines = [f"{HOSTILE}.png,{HOSTILE}", f"b.png,{HOSTILE}", "c.png,x", f"{HOSTILE}c.png,x"]
    (tmp_path / "rows.csv").write_text("image,caption\n" + "\n".join(lines) + "\n", "utf-8")
    return f"csv:{tmp_path / 'rows.csv'}"


def test_each_way_to_print_is_visible(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_line(HOSTILE)
    output.print_table(HOSTILE, [HOSTILE, "b"], [[HOSTILE, f"{HOSTILE}\n"]])
    output.print_facts(HOSTILE, {HOSTILE: HOSTILE})
    output.print_skipped([(HOSTILE, HOSTILE)])
    output.warn(HOSTILE)
    output.print_traceback(ValueError, ValueError(HOSTILE), None)
    out, err = capsys.readouterr()
    assert _is_safe(out + err)
    assert out.count(SHOWN) == 8
    assert rf"{SHOWN}\n" in out
    assert err.count(SHOWN) == 3


def test_json_is_visible_and_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    output.print_json({HOSTILE: [HOSTILE, "é"]})
    out = capsys.readouterr().out
    assert _is_safe(out)
    assert "é" in out
    assert json.loads(out) == {HOSTILE: [HOSTILE, "é"]}


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_an_audit_of_hostile_names(hostile_table: str, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", hostile_table, *more]) == 0
    out, err = capsys.readouterr()
    assert _is_safe(out + err)
    assert ("\\u202e" if more else SHOWN) in out


def test_errors_and_warnings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "audit", f"csv:/{HOSTILE}"]) == 2
    assert main([HOSTILE]) == 2
    out, err = capsys.readouterr()
    assert _is_safe(out + err)
    assert err.count(SHOWN) == 2


@pytest.mark.parametrize("category", [DiptychWarning, UserWarning])
def test_a_warning_of_any_library(
    category: type[Warning], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def app(*_words: object, **_options: object) -> int:
        warnings.warn_explicit(HOSTILE, category, "file.py", 1)
        return 0

    monkeypatch.setattr("diptych.cli.main.app", app)
    monkeypatch.setattr("diptych.cli.main._default_showwarning", _show)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert main(["recipes"]) == 0
    err = capsys.readouterr().err
    assert _is_safe(err)
    assert SHOWN in err


def _show(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_more: object) -> None:
    sys.stderr.write(warnings.formatwarning(message, category, filename, lineno))


def test_a_terminal_gets_no_command_from_an_error_that_nobody_catches() -> None:
    """The whole program, with a pseudo-terminal for its output."""
    program = (
        "import diptych.cli.main as m\n"
        "def app(*w, **o): m.warn(X); from diptych.cli.output import print_line; print_line(X); raise ValueError(X)\n"
        f"X = {HOSTILE!r}; m.app = app; m.run()"
    )
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", program], stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"}
    )
    os.close(theirs)
    said = b""
    try:
        while part := os.read(ours, 65536):
            said += part
    except OSError:  # Linux: the other end is closed.
        pass
    os.close(ours)
    assert done.wait(timeout=30) == 1
    text = said.decode("utf-8")
    assert "Traceback" in text
    assert text.replace("\r\n", "").count(SHOWN) == 3
    assert not set(text) & set("\x07\x9b\u202e")
