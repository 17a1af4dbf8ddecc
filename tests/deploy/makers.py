"""Parse the files in `deploy/`, and run servers with the command of the image."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
KEY = "a-key-of-this-test-only"


def instructions() -> list[tuple[str, str]]:
    """The instructions of the Dockerfile, as pairs of a name and its arguments."""
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text("utf-8"), flags=re.MULTILINE)
    lines = re.sub(r"\\\n", " ", text).splitlines()
    return [(name, words.strip()) for name, _, words in (line.partition(" ") for line in lines) if name]


def final_stage() -> dict[str, str]:
    """The last instruction of each kind in the stage that becomes the image."""
    found = instructions()
    begin = max(i for i, (name, _) in enumerate(found) if name == "FROM")
    return dict(found[begin:])


def health_command() -> list[str]:
    """The command that checks the health of the container."""
    words: list[str] = json.loads(final_stage()["HEALTHCHECK"].partition("CMD")[2])
    return words


def server_command() -> list[str]:
    """The command that the image runs: its entry point and the default arguments."""
    stage = final_stage()
    words: list[str] = [*json.loads(stage["ENTRYPOINT"]), *json.loads(stage["CMD"])]
    return words


def copied_names() -> list[str]:
    """Files and folders of the repository that the image is built from."""
    copies = [words.split()[:-1] for name, words in instructions() if name == "COPY" and not words.startswith("--from")]
    return [name for names in copies for name in names]


def make_read_only(folder: Path) -> None:
    """Remove the permission to write from a folder and everything in it."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)


def make_writable(folder: Path) -> None:
    """Undo `make_read_only`, so that pytest can remove the folder."""
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


@contextmanager
def read_only(*folders: Path) -> Iterator[None]:
    """Folders that cannot be written."""
    for folder in folders:
        make_read_only(folder)
    try:
        yield
    finally:
        for folder in folders:
            make_writable(folder)


def without_override() -> list[str]:
    """A command prefix without root's capability to write to read-only folders."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("root can write everywhere, and setpriv is not installed")
    return ["setpriv", "--bounding-set", "-dac_override"]


def check_container_command(diptych: Sequence[str], python: str, model: Path, index: Path, folder: Path) -> None:
    """Run the command of the image: it becomes healthy, answers a search that needs a key, and stops after SIGTERM.

    Args:
        diptych: the command `diptych`.
        python: the interpreter that checks the health.
        model: an ONNX export, in place of `/model`.
        index: an index, in place of `/index`.
        folder: an empty folder.
    """
    keys = folder / "keys"
    keys.write_text(f"{KEY}\n", "utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    places = {
        "/model": model,
        "/index": index,
        "/run/secrets/diptych_api_keys": keys,
        "0.0.0.0": "127.0.0.1",
        "8000": port,
    }
    name, *words = (str(places.get(word, word)) for word in server_command())
    assert name == "diptych"
    _, *check = (word.replace("8000", port) for word in health_command())
    command = [*without_override(), *diptych, *words]
    environment = {**os.environ, "HOME": "/nonexistent", "XDG_CACHE_HOME": "/nonexistent", "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert subprocess.run([python, *check], capture_output=True, check=False).returncode == 1
            _wait_until_healthy([python, *check], process)
            assert _num_found(port) == 3
        finally:
            process.send_signal(signal.SIGTERM)
            said, wrong = process.communicate(timeout=60)
    assert (process.returncode, wrong) == (0, "")
    assert "Stopped" in said


def _wait_until_healthy(check: Sequence[str], process: "subprocess.Popen[str]") -> None:
    give_up_at = time.monotonic() + 90
    while subprocess.run(check, capture_output=True, check=False).returncode != 0:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < give_up_at
        time.sleep(0.2)


def _num_found(port: str) -> int:
    request = Request(
        f"http://127.0.0.1:{port}/v1/search",
        data=json.dumps({"text": "a red circle", "limit": 3}).encode(),
        headers={"Content-Type": "application/json", "X-API-Key": KEY},
    )
    with urlopen(request, timeout=60) as answer:
        return len(json.load(answer)["results"])
