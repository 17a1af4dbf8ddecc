"""`diptych serve` as a process: it starts, answers what is under way when it is told to end, and says what is wrong."""

import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from urllib.request import urlopen

import pytest

from diptych.cli.main import main
from diptych.index.protocol import Index
from tests.server.site import Site


@pytest.mark.parametrize("told", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_what_is_under_way(tiny_bundle: Path, index: Index, told: signal.Signals) -> None:
    words = ["serve", str(tiny_bundle), "--index", index.place, "--port", "0", "--window-ms", "1000"]
    with subprocess.Popen(
        [sys.executable, "-m", "diptych", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        serving, opened = process.stdout.readline(), process.stdout.readline()
        assert "48 pictures" in serving
        site = Site(opened.split()[1])
        give_up_at = time.monotonic() + 60
        while True:
            try:
                urlopen(f"{site.url}/readyz", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < give_up_at
                time.sleep(0.05)
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(site.ask("POST", "/v1/embed", {"texts": ["a"]}).status))
        asking.start()
        waits = 'diptych_waiting{queue="texts"} 1.0'  # For others, for a second.
        while not answers and waits not in site.ask("GET", "/metrics").content.decode():
            time.sleep(0.02)
        process.send_signal(told)
        said, wrong = process.communicate(timeout=60)
        asking.join(timeout=60)
    assert answers == [200]
    assert process.returncode == 0
    assert "Stopped" in said
    assert wrong == ""


def test_a_port_that_is_taken(tiny_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", str(tiny_bundle), "--port", str(port)]) == 2
    assert "cannot listen there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--index", "{tmp}/nothing"], "holds no index"),
        (["--api-key-file", "{tmp}/nothing"], "cannot be read"),
        (["--host", "192.0.2.1"], "cannot listen there"),
        (["--port", "99999"], "cannot listen there"),
        (["--batch", "0"], "above 0"),
        (["--window-ms", "-1"], "within"),
        (["--urls"], "reads no URLs"),
        (["--indx", "a"], "index"),
    ],
    ids=range(8),
)
def test_wrong_words(
    tiny_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    given = [word.replace("{tmp}", str(tmp_path)) for word in words]
    assert main(["serve", str(tiny_bundle), *(["--port", "0"] if "--port" not in given else []), *given]) == 2
    assert said in capsys.readouterr().err


def test_runs_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["runs", "serve", str(tmp_path)]) == 2
    assert "holds no run" in capsys.readouterr().err


def test_without_the_extra(
    tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", str(tiny_bundle)]) == 2
    assert "pip install 'diptych[serve]'" in capsys.readouterr().err
