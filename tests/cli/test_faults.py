"""Commands in a hostile world: a terminal that knows no letters, names that look like markup, Ctrl-C in the midst."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.cli.main import main
from tests.conftest import draw_photos
from tests.data.makers import odd_set

COMMAND = [sys.executable, "-m", "diptych", "data"]


def _environment(**more: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default", **more}


@pytest.mark.parametrize(("kind", "more"), [("json", ["--json"]), ("class-folder", [])])
def test_odd_names_on_a_terminal_that_knows_no_letters(kind: str, more: list[str], tmp_path: Path) -> None:
    source, out = odd_set(tmp_path / "set", kind), tmp_path / "out"
    for odd in ("\U0001f408.png", os.fsdecode(b"\xff\xfe.png")):
        next((tmp_path / "set").rglob(odd)).write_bytes(b"broken")
    environment = _environment(PYTHONIOENCODING="ascii")
    words = ["audit", source, "--out", str(out), *more]
    done = subprocess.run([*COMMAND, *words], env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.isascii()
    assert b"\\U0001f408.png" in done.stdout or b"\\ud83d\\udc08.png" in done.stdout
    found = json.loads((out / "audit.json").read_text("utf-8"))
    assert (
        found["num_samples"] == {"json": 16, "class-folder": 15}[kind]
    )  # A folder whose name begins with a dot is hidden.
    keys = "".join(key for key, _ in found["unreadable"])
    assert ["\U0001f408" in keys, "\udcff" in keys] == [True, True]
    assert not more or json.loads(done.stdout) == found


def test_reports_in_letters_stay_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw_photos(tmp_path, ["é.png", "b.png"])
    (tmp_path / "rows.csv").write_text("image,caption\né.png,Käse\nb.png,x\n", "utf-8")
    assert main(["data", "audit", str(tmp_path / "rows.csv"), "--json"]) == 0
    assert '"Käse"' in capsys.readouterr().out


def test_names_are_no_markup(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    draw_photos(tmp_path, ["a.png", "b.png"])
    (tmp_path / "[red].csv").write_text("image,caption\na.png,[/b] :cat:\nb.png,x\n", "utf-8")
    source = f"csv:{tmp_path / '[red].csv'}"
    out = tmp_path / "[bold]x[" / "b]:cat:"
    for words in (["pack", source, str(out)], ["shards", source, f"{out}2"], ["audit", source, "--out", f"{out}3"]):
        assert main(["data", *words]) == 0
        said, err = capsys.readouterr()
        assert str(out) in said
        assert err == ""
    assert main(["data", "show", source, "--out", str(tmp_path / "[red]:cat:.png")]) == 0
    assert str(tmp_path / "[red]:cat:.png") in capsys.readouterr().out


def _many(folder: Path) -> str:
    """120 pictures, of which each takes a while in the program below."""
    draw_photos(folder, ["0.png"])
    names = [f"{i}.png" for i in range(120)]
    for name in names[1:]:
        (folder / name).hardlink_to(folder / "0.png")
    (folder / "rows.csv").write_text("image,caption\n" + "".join(f"{name},x\n" for name in names), "utf-8")
    return f"csv:{folder / 'rows.csv'}"


READY = """
import itertools, signal, sys, time
import diptych.cli.main, diptych.data.open_source
from diptych.data.tools import audit, pack
signal.signal(signal.SIGINT, signal.default_int_handler)  # Which a job in the background of a script is started without.
calls = itertools.count()

def slowly(decode):
    def decoded(image):
        if next(calls) == 10:
            print("reading", flush=True)
        time.sleep(0.05)
        return decode(image)
    return decoded

audit.decode, pack.decode_array = slowly(audit.decode), slowly(pack.decode_array)
sys.exit(diptych.cli.main.main())
"""


@pytest.mark.parametrize("command", ["audit", "pack"])
def test_ctrl_c_ends_at_once_and_packing_goes_on(command: str, tmp_path: Path) -> None:
    source, out = _many(tmp_path / "set"), tmp_path / "out"
    words = [command, source, *(["--json"] if command == "audit" else [str(out), "--per-shard", "4"])]
    running = subprocess.Popen(
        [sys.executable, "-c", READY, "data", *words],
        env=_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == "reading\n"
    running.send_signal(signal.SIGINT)
    said, err = running.communicate(timeout=60)
    assert (running.returncode, said, err) == (130, "", "diptych: interrupted\n")
    if command == "pack":
        assert main(["data", *words]) == 0
        told = json.loads((out / "pack.json").read_text("utf-8"))
        assert len(told["checksums"]) == 30
        assert not [path.name for path in out.iterdir() if path.name.endswith(".new")]
