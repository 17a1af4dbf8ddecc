"""A checkpoint of a stranger runs no code; those of earlier versions are read."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.checkpoint.filesystem import FileSystemWriter

from diptych.core.errors import RunError
from diptych.training.checkpoint import tensors
from diptych.training.checkpoint.files import METADATA
from diptych.training.checkpoint.manifest import MANIFEST, write_manifest
from tests.states import assert_same, make_state, step
from tests.training.makers import load_newest, save_at


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def _sealed(place: Path) -> None:
    """With checksums that fit, as a stranger can compute them."""
    (place / MANIFEST).unlink()
    write_manifest(place, step=1)


def test_nothing_that_is_written_is_a_pickle_of_its_own(tmp_path: Path) -> None:
    place = save_at(tmp_path, make_state(0), 1)
    assert {path.name for path in place.iterdir()} == {METADATA, MANIFEST, "state.json", "__0_0.distcp"}
    entries = json.loads((place / METADATA).read_text())["entries"]
    assert entries["model/first.weight"]["dtype"] == "float32"


def test_a_checkpoint_of_an_earlier_version_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's own writer wrote it, with a pickle for its list of tensors."""
    one, other = make_state(0), make_state(1)
    step(one, 0)
    with monkeypatch.context() as patch:
        patch.setattr(tensors, "JsonWriter", FileSystemWriter)
        place = save_at(tmp_path, one, 1)
    assert (place / ".metadata").is_file()
    assert not (place / METADATA).exists()
    load_newest(tmp_path, other)
    assert_same(one, other)


@pytest.mark.parametrize("protocol", [2, 5])
def test_a_crafted_list_of_tensors_is_not_run(tmp_path: Path, protocol: int) -> None:
    trap = tmp_path / "trapped"
    place = save_at(tmp_path / "run", make_state(0), 1)
    (place / METADATA).unlink()
    (place / ".metadata").write_bytes(pickle.dumps(Trap(trap), protocol=protocol))
    _sealed(place)
    with pytest.raises(RunError, match=r"names posix\.mkdir, which no checkpoint needs; nothing of it was run"):
        load_newest(tmp_path / "run", make_state(1))
    assert not trap.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x05N.", pickle.dumps({"a": 1}), b"garbage"])
def test_a_list_that_is_none_is_damaged(tmp_path: Path, content: bytes) -> None:
    place = save_at(tmp_path, make_state(0), 1)
    (place / METADATA).unlink()
    (place / ".metadata").write_bytes(content)
    _sealed(place)
    with pytest.raises(RunError, match=r"\.metadata is damaged"):
        load_newest(tmp_path, make_state(1))


def test_a_crafted_plain_value_is_not_run(tmp_path: Path) -> None:
    """The settings of an optimizer are a pickle within the file of tensors, as `torch.save` writes it."""
    trap = tmp_path / "trapped"
    place = save_at(tmp_path / "run", make_state(0), 1)
    plain = json.loads((place / METADATA).read_text())
    with (place / "__0_0.distcp").open("ab") as file:
        start = file.tell()
        with zipfile.ZipFile(tmp_path / "crafted.zip", "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(Trap(trap), protocol=2))
            archive.writestr("archive/version", "3\n")
        crafted = (tmp_path / "crafted.zip").read_bytes()
        file.write(crafted)
    plain["entries"]["groups/0"] |= {"start": start, "length": len(crafted)}
    (place / METADATA).write_text(json.dumps(plain))
    _sealed(place)
    with pytest.raises(RunError, match="groups/0 holds more than numbers, texts and tensors"):
        load_newest(tmp_path / "run", make_state(1))
    assert not trap.exists()


@pytest.mark.parametrize("file", ["../../secret.distcp", "/etc/passwd", "state.json", "__0_0.distcp/../x"])
def test_only_the_checkpoints_own_files_are_read(tmp_path: Path, file: str) -> None:
    place = save_at(tmp_path, make_state(0), 1)
    plain = json.loads((place / METADATA).read_text())
    plain["entries"]["model/first.weight"]["chunks"][0]["file"] = file
    (place / METADATA).write_text(json.dumps(plain))
    _sealed(place)
    with pytest.raises(RunError, match="which is not one of a checkpoint"):
        load_newest(tmp_path, make_state(1))


@pytest.mark.parametrize(
    "change",
    [
        {"format_version": 99},
        {"entries": 1},
        {"entries": {"model/first.weight": {"chunks": 5}}},
        {"entries": {"model/first.weight": {"chunks": [], "dtype": "load", "size": [1]}}},
        {"entries": {"model/first.weight": {"chunks": [], "dtype": "float32", "size": ["x"]}}},
    ],
)
def test_metadata_that_is_not_what_is_written_is_one_line(tmp_path: Path, change: dict[str, Any]) -> None:
    place = save_at(tmp_path, make_state(0), 1)
    plain = json.loads((place / METADATA).read_text())
    (place / METADATA).write_text(json.dumps(plain | change))
    _sealed(place)
    with pytest.raises(RunError, match=r"metadata\.json (is damaged|has format 99)"):
        load_newest(tmp_path, make_state(1))
