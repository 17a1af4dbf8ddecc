"""Test the Dockerfile, mostly without Docker. `make check` also runs hadolint."""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from diptych.cli.main import app
from tests.deploy.conftest import Mounts
from tests.deploy.makers import (
    DEPLOY,
    ROOT,
    check_container_command,
    copied_names,
    final_stage,
    health_command,
    instructions,
    read_only,
    server_command,
)

MAX_BYTES = 280e6
"""Size of the installed server, without pip."""


def test_the_image_runs_the_server_as_a_user_without_rights() -> None:
    stage = final_stage()
    user, _, group = stage["USER"].partition(":")
    assert int(user) > 0 and int(group) > 0  # noqa: PT018
    assert stage["VOLUME"] == '["/model", "/index"]'
    assert stage["STOPSIGNAL"] == "SIGTERM"
    assert "/readyz" in health_command()[-1]
    assert "ORT_DISABLE_TELEMETRY=1" in stage["ENV"]
    bases = [words.split()[0] for name, words in instructions() if name == "FROM"]
    assert len({*bases}) == 1
    assert bases[0].startswith("python:3.11-slim")


def test_the_command_line_of_the_image() -> None:
    _, bound, _ = app.parse_args(server_command()[1:], exit_on_error=False, print_error=False)
    assert bound.arguments["host"] == "0.0.0.0"
    assert bound.arguments["port"] == int(final_stage()["EXPOSE"])
    assert (str(bound.args[0]), bound.arguments["index"]) == ("/model", "/index")
    assert str(bound.arguments["api_key_file"]) == "/run/secrets/diptych_api_keys"


def test_the_build_context_contains_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    assert lines[1] == "*"
    assert {line[1:] for line in lines if line.startswith("!")} == {*copied_names()}
    assert all((ROOT / name).exists() for name in copied_names())


def test_the_server_starts_becomes_healthy_and_stops(mounts: Mounts, tmp_path: Path) -> None:
    """The model and the index are read-only, and there is no home directory."""
    with read_only(*mounts):
        before = sorted(path.name for path in mounts.photos_index.iterdir())
        command = [sys.executable, "-m", "tests.runtime.without_torch"]
        check_container_command(command, sys.executable, *mounts, tmp_path)
        assert sorted(path.name for path in mounts.photos_index.iterdir()) == before


@pytest.mark.slow
def test_the_steps_of_the_build_give_a_small_server_that_runs(mounts: Mounts, tmp_path: Path) -> None:
    """Run the Dockerfile's commands in a virtual environment on this machine; no dependency is missing."""
    source, prefix = tmp_path / "source", tmp_path / "venv"
    source.mkdir()
    for name in copied_names():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, source / name)
    script = next(words for name, words in instructions() if name == "RUN")
    for step in script.replace("/opt/diptych", str(prefix)).split("&&"):
        program, *words = shlex.split(step)
        python = [sys.executable, *(["-m", "pip"] if program == "pip" else [])]
        done = subprocess.run([*python, *words], cwd=source, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, done.stderr
    assert sum(path.lstat().st_size for path in prefix.rglob("*")) < MAX_BYTES
    with read_only(*mounts):
        check_container_command([str(prefix / "bin" / "diptych")], str(prefix / "bin" / "python"), *mounts, tmp_path)


def _docker(*words: str | Path) -> str:
    done = subprocess.run(["docker", *map(str, words)], capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def _has_docker() -> bool:
    return (
        shutil.which("docker") is not None
        and subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0
    )


@pytest.mark.slow
def test_docker_builds_and_runs_the_image(mounts: Mounts, tmp_path: Path) -> None:
    if not _has_docker():
        pytest.skip("Docker does not run here")
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-this-test-only\n", "utf-8")
    image = _docker("build", "--quiet", "--file", DEPLOY / "Dockerfile", ROOT)
    mounted = zip((*mounts, keys), ("/model", "/index", "/run/secrets/diptych_api_keys"), strict=True)
    volumes = [word for source, target in mounted for word in ("--volume", f"{source}:{target}:ro")]
    with read_only(*mounts):
        container = _docker(
            "run", "--detach", "--init", "--read-only", "--tmpfs", "/tmp", "--health-interval", "2s", *volumes, image
        )
        try:
            state = "starting"
            while state == "starting":
                time.sleep(0.5)
                state = _docker("inspect", "--format", "{{.State.Health.Status}}", container)
            assert state == "healthy", _docker("logs", container)
            _docker("stop", "-t", "40", container)
            assert _docker("inspect", "--format", "{{.State.ExitCode}}", container) == "0"
        finally:
            _docker("rm", "--force", container)
