"""Text from outside, made safe to print."""

import json
import logging
import logging.config
import sys
from pathlib import Path

import pytest
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from diptych.core.terminal import open_console, visible, visible_json
from diptych.server.log import VisibleFormatter, log_config

UNSAFE = [
    *map(chr, (*range(0x20), *range(0x7F, 0xA0))),
    *"\u061c\u200b\u200e\u200f\u2028\u2029\u202a\u202b\u202c\u202d\u202e\u2060\u2066\u2067\u2068\u2069\ufeff\udcff",
]
CLIPBOARD = "\x1b]52;c;Y3VybA==\x07"


@pytest.mark.parametrize("letter", UNSAFE, ids=lambda letter: f"{ord(letter):04x}")
def test_a_control_character_is_shown_as_python_writes_it(letter: str) -> None:
    assert visible(f"a{letter}b") == f"a{ascii(letter)[1:-1]}b"
    assert json.loads(visible_json(json.dumps({letter: letter}, ensure_ascii=False))) == {letter: letter}
    assert letter not in visible_json(json.dumps([letter], ensure_ascii=False))


def test_letters_of_all_scripts_stay() -> None:
    text = "Käse \\x1b 猫 🐈 👩\u200d🔬 می\u200cخواهم עברית"
    assert visible(text) == visible_json(text) == text
    assert visible("a\nb\tc", keep="\n") == "a\nb\\tc"
    assert visible(visible(CLIPBOARD)) == visible(CLIPBOARD) == r"\x1b]52;c;Y3VybA==\x07"


@pytest.mark.parametrize("is_terminal", [True, False])
def test_whatever_a_console_draws_is_visible(
    is_terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    if is_terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")
    console, title = open_console(width=200), "\x1b]2;\x9d2;owned\x9c"
    table = Table(f"head {title}")
    table.add_row(f"cell {title}")
    console.print(f"[bold]line {title}[/]", Panel(table, title=f"panel {title}"))
    with Live(Panel(f"live {title}"), console=console):
        pass
    with console.status(f"status {title}"):
        pass
    said = capsys.readouterr().out
    for where in ("line", "panel", "live", *(["status"] if is_terminal else [])):
        assert f"{where} {visible(title)}" in said
    assert "head \\x1b" in said  # A table is laid out before: what no longer fits is cut.
    assert not {"\x9d", "\x9c"} & set(said)
    assert "\x1b]" not in said
    assert ("\x1b[1m" in said) is is_terminal  # Rich's own sequences stay.


def test_a_log_has_one_visible_line_per_message() -> None:
    formatter = VisibleFormatter("%(levelname)s: %(message)s")
    try:
        raise ValueError(f"first\n{CLIPBOARD}")
    except ValueError:
        info = sys.exc_info()
    record = logging.LogRecord("x", logging.ERROR, "file.py", 1, "%s failed", (f"/a\nERROR: {CLIPBOARD}",), info)
    line, *trace = formatter.format(record).split("\n")
    assert line == rf"ERROR: /a\nERROR: {visible(CLIPBOARD)} failed"
    assert trace[0].startswith("Traceback")
    assert trace[-1] == visible(CLIPBOARD)


def test_the_servers_loggers_write_visibly(tmp_path: Path) -> None:
    """Configured as the server configures them, under a name of this test."""
    name = f"diptych.tests.{tmp_path.name}"
    logging.config.dictConfig(log_config(name))
    (handler,) = logging.getLogger(name).handlers
    assert isinstance(handler.formatter, VisibleFormatter)
