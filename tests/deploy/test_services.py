"""The examples for Compose and systemd."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from diptych.cli.main import app
from diptych.server.run import DRAIN_S, EXIT_S
from tests.deploy.makers import DEPLOY, server_command

UNIT = DEPLOY / "diptych.service"


def test_compose_starts_the_image_read_only_and_with_a_key() -> None:
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
    (service,) = compose["services"].values()
    assert (DEPLOY / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DEPLOY / "Dockerfile"
    targets = {volume["target"]: volume["read_only"] for volume in service["volumes"]}
    assert targets == {"/model": True, "/index": True, "${PHOTOS}": True}
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"][0].startswith("/tmp:")
    assert int(service["stop_grace_period"].removesuffix("s")) > DRAIN_S + EXIT_S
    (secret,) = service["secrets"]
    assert server_command()[-1] == f"/run/secrets/{secret}"
    assert secret in compose["secrets"]
    assert service["ports"] == ["127.0.0.1:8000:8000"]


def test_the_unit_starts_a_command_that_exists() -> None:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(UNIT, "utf-8")
    service = unit["Service"]
    program, *words = service["ExecStart"].replace("%d", "/credentials").split()
    assert program.endswith("/bin/diptych")
    _, bound, _ = app.parse_args(words, exit_on_error=False, print_error=False)
    assert "host" not in bound.arguments  # Only this machine, as by default.
    assert Path(bound.arguments["api_key_file"]).name == service["LoadCredential"].partition(":")[0]
    assert service["Restart"] == "on-failure"
    assert int(service["TimeoutStopSec"]) > DRAIN_S + EXIT_S


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_accepts_the_unit_and_calls_it_safe(tmp_path: Path) -> None:
    unit = tmp_path / UNIT.name
    text = UNIT.read_text("utf-8")
    unit.write_text(re.sub(r"^ExecStart=\S+", f"ExecStart={sys.executable}", text, flags=re.MULTILINE), "utf-8")
    for words in (["verify", "--man=no"], ["security", "--offline=true", "--threshold=20", "--no-pager"]):
        done = subprocess.run(["systemd-analyze", *words, unit], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, ""), done.stdout
