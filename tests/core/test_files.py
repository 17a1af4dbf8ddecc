"""Atomic writes, locks and checksums."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from diptych.core.errors import BusyError
from diptych.core.files import (
    atomic_write,
    file_lock,
    is_tmp,
    read_regular,
    remove_folder,
    replace_folder,
    restore_folder,
    sha256_of,
    write_text,
)

HOLD = """
import sys, time
from pathlib import Path
from diptych.core.files import file_lock
with file_lock(Path(sys.argv[1]), wait_s=0):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_write_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    write_text(path, "old")
    with pytest.raises(RuntimeError, match="half way"), atomic_write(path) as tmp:  # noqa: PT012
        tmp.write_text("ne")
        raise RuntimeError("half way")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_text(path, "old")
    with atomic_write(path) as tmp:
        tmp.write_text("new")
        assert path.read_text() == "old"
        assert is_tmp(tmp, of="a")
        assert not is_tmp(tmp, of="b")
    assert path.read_text() == "new"


def test_two_writers_do_not_share_a_temporary_file(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a") as one:
        one.write_text("one")
        with atomic_write(tmp_path / "a") as other:
            other.write_text("other")
        assert (tmp_path / "a").read_text() == "other"
    assert (tmp_path / "a").read_text() == "one"


def test_a_secret_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "secret", "x", mode=0o600)
    assert (tmp_path / "secret").stat().st_mode & 0o777 == 0o600


def test_a_folder_is_replaced_and_restored(tmp_path: Path) -> None:
    place, tmp, old = tmp_path / "place", tmp_path / ".tmp", tmp_path / ".old"
    for folder in (place, tmp):
        folder.mkdir()
        (folder / "from").write_text(folder.name)
    replace_folder(tmp, place, old=old)
    assert (place / "from").read_text() == ".tmp"
    restore_folder(old, place)  # The new one is there: nothing to restore.
    assert (place / "from").read_text() == ".tmp"
    remove_folder(place, tmp=tmp)
    assert not place.exists()
    assert not tmp.exists()
    restore_folder(old, place)
    assert (place / "from").read_text() == "place"


def test_the_checksum_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_lock_names_its_holder_and_goes_with_it(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    try:
        assert holder.stdout.readline() == "held\n"
        said = f"is being written by process {holder.pid} on .* since "
        with pytest.raises(BusyError, match=said), file_lock(lock, wait_s=0.2):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    assert (tmp_path / "lock.holder").exists()  # Killed, it could not remove its note; the lock is free all the same.
    with file_lock(lock, wait_s=0):
        assert json.loads((tmp_path / "lock.holder").read_text())["process"] == os.getpid()
    assert not (tmp_path / "lock.holder").exists()


def test_threads_exclude_each_other(tmp_path: Path) -> None:
    inside, most = 0, 0

    def work() -> None:
        nonlocal inside, most
        with file_lock(tmp_path / "lock", wait_s=float("inf")):
            inside += 1
            most = max(most, inside)
            inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_forked_child_that_ends_does_not_release_its_parents_lock(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from diptych.core.files import file_lock
with file_lock(Path(sys.argv[1]), wait_s=0):
    if os.fork() == 0:
        sys.exit(0)  # With its destructors and exit handlers.
    os.wait()
    print("held", flush=True)
    sys.stdin.read()
"""
    lock = tmp_path / "lock"
    with subprocess.Popen(
        [sys.executable, "-c", program, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BusyError), file_lock(lock, wait_s=0.1):
            pass
        holder.communicate()


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="finds the lock's descriptor in /proc")
def test_the_children_of_a_killed_holder_are_waited_for(tmp_path: Path) -> None:
    """A child that was not forked by Python keeps the descriptor, and with it the lock, until it ends."""
    program = """
import os, subprocess, sys, time
from pathlib import Path
from diptych.core.files import file_lock
with file_lock(Path(sys.argv[1]), wait_s=0):
    links = {int(name): os.path.realpath(f"/proc/self/fd/{name}") for name in os.listdir("/proc/self/fd")}
    kept = [number for number, target in links.items() if target == os.path.realpath(sys.argv[1])]
    child = subprocess.Popen(["sleep", "60"], pass_fds=kept, stdout=subprocess.DEVNULL)
    print(len(kept), child.pid, flush=True)
    time.sleep(60)
"""
    lock = tmp_path / "lock"
    with subprocess.Popen([sys.executable, "-c", program, str(lock)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        num_kept, child = map(int, holder.stdout.readline().split())
        holder.kill()
    assert num_kept == 1
    with pytest.raises(Timeout):
        FileLock(lock, timeout=0).acquire()
    has_ended = list[bool]()

    def end() -> None:
        has_ended.append(True)
        os.kill(child, signal.SIGKILL)

    threading.Timer(0.3, end).start()
    with file_lock(lock, wait_s=0):
        assert has_ended


@pytest.mark.parametrize(
    "note", ["", "{}", "[]", '{"host": 1, "process": "x", "since": 0}', '{"host": "", "process": 1e400}']
)
def test_a_damaged_note_is_no_obstacle(tmp_path: Path, note: str) -> None:
    lock = tmp_path / "lock"
    with file_lock(lock, wait_s=0):
        (tmp_path / "lock.holder").write_text(note)
        with pytest.raises(BusyError, match="another process"), file_lock(lock, wait_s=0):
            pass


def test_a_regular_file_is_read_up_to_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"12345")
    assert read_regular(path, max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="has more than 4 bytes"):
        read_regular(path, max_bytes=4)
    with pytest.raises(FileNotFoundError):
        read_regular(tmp_path / "none", max_bytes=5)
    (tmp_path / "link").symlink_to(path)
    assert read_regular(tmp_path / "link", max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="is a symbolic link"):
        read_regular(tmp_path / "link", max_bytes=5, follow_links=False)


@pytest.mark.parametrize("kind", ["fifo", "device", "folder", "socket"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "a"
    with socket.socket(socket.AF_UNIX) as bound:
        match kind:
            case "fifo":
                os.mkfifo(path)
            case "device":
                path.symlink_to("/dev/zero")
            case "folder":
                path.mkdir()
            case _:
                bound.bind(os.path.relpath(path))
        with pytest.raises(OSError, match="is not a regular file"):
            read_regular(path, max_bytes=1 << 20)


def test_a_file_that_grows_while_it_is_read_is_refused() -> None:
    with pytest.raises(OSError, match="has more than 0 bytes"):  # Its size is 0 until it is read.
        read_regular("/proc/self/status", max_bytes=0)
