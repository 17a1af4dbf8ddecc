"""A PostgreSQL of the tests' own: Debian's, in a temporary folder, on a free port."""

import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_LACKING = "PostgreSQL is not installed (Debian: apt-get install postgresql)"


@contextmanager
def postgresql() -> Iterator[str]:
    """Its address. Where it is not installed the test is skipped; with REQUIRE_POSTGRESQL set, it fails."""
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if programs is None or not (programs / "initdb").exists():
        if os.environ.get("REQUIRE_POSTGRESQL"):
            pytest.fail(_LACKING)
        pytest.skip(_LACKING)
    user = "postgres" if os.geteuid() == 0 else None  # It refuses to be run by root.
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        data, port = folder / "data", _free_port()
        _run([programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync"], user)
        settings = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        _run([programs / "pg_ctl", "-D", data, "-l", folder / "log", "-w", "-o", settings, "start"], user)
        try:
            yield f"postgresql://tester@127.0.0.1:{port}/postgres"
        finally:
            _run([programs / "pg_ctl", "-D", data, "-m", "immediate", "stop"], user)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(command: list[object], user: str | None) -> None:
    done = subprocess.run(
        list(map(str, command)),
        check=False,
        user=user,
        cwd="/",
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
