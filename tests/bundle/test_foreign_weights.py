"""Weights files made to do harm: no code runs, and memory is bounded by the file."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.bundle import torchscript
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError


class _Archived(nn.Module):
    """A tensor that is not contiguous, a nested module, a half-precision buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3).T)
        self.inner = nn.Linear(2, 2)
        self.inner.register_buffer("mean", torch.ones(2, dtype=torch.float16))

    def forward(self) -> int:
        return 0


class _Evil(nn.Module):
    """Prints when TorchScript restores it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight: Tensor = nn.Parameter(torch.zeros(2))

    def forward(self) -> int:
        return 0

    @torch.jit.export
    def __getstate__(self) -> tuple[Tensor, bool]:
        return (self.weight, self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[Tensor, bool]) -> None:
        print("code of the archive ran")  # noqa: T201
        self.weight = state[0]
        self.training = state[1]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[nn.Module], Path]:
    def write(module: nn.Module) -> Path:
        with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
            torch.jit.save(torch.jit.script(module), str(tmp_path / "archive.pt"))
        return tmp_path / "archive.pt"

    return write


@pytest.mark.usefixtures("unchecked")
def test_a_torchscript_archive_gives_its_tensors(script: Callable[[nn.Module], Path]) -> None:
    module = _Archived()
    found = read_weights(script(module))
    assert found.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype


@pytest.mark.usefixtures("unchecked")
def test_no_code_of_a_torchscript_archive_runs(
    script: Callable[[nn.Module], Path], capfd: pytest.CaptureFixture[str]
) -> None:
    path = script(_Evil())
    with pytest.warns(DeprecationWarning, match=r"torch\.jit"):
        torch.jit.load(str(path))
    assert "code of the archive ran" in capfd.readouterr().out  # So the archive is one that would do harm.
    with pytest.raises(BundleError, match="holds no weights by name"):
        read_weights(path)
    assert "code of the archive ran" not in "".join(capfd.readouterr())


def _archive(path: Path, data: bytes, compression: int = zipfile.ZIP_STORED, **files: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in {"data.pkl": data, "constants.pkl": b"", **files}.items():
            archive.writestr(f"archive/{name}", content)
    return path


class _Call:
    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    "content",
    [
        lambda ran: pickle.dumps(_Call(os.mkdir, str(ran)), protocol=2),
        lambda ran: pickle.dumps(_Call(eval, f"__import__('os').mkdir({str(ran)!r})"), protocol=2),
        lambda ran: b"\x80\x02ctorch.jit\nload\n.",
        lambda ran: b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(t(ttR.",
        lambda ran: b"\x80\x02K\x01r\xff\xff\xff\x7f.",  # A memo of 2**31 places.
        lambda ran: b"\x80\x02\x8b\xff\xff\xff\x7f.",  # An integer of 2 GiB.
        lambda ran: (
            b"\x80\x02(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x09tQ."
        ),
        lambda ran: b"",
    ],
)
def test_an_archive_with_another_pickle_is_refused(tmp_path: Path, content: Callable[[Path], bytes]) -> None:
    path = _archive(tmp_path / "evil.pt", content(tmp_path / "ran"))
    with pytest.raises(BundleError, match=r"evil\.pt: (cannot be read as weights|holds no weights by name)") as caught:
        read_weights(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    path = _archive(tmp_path / "bomb.pt", b"", zipfile.ZIP_DEFLATED, **{"data/0": bytes(80 * 2**20)})
    with pytest.raises(BundleError, match=r"bomb\.pt: cannot be read as weights \(it unpacks to"):
        read_weights(path)


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(1).expand(1000, 1000), torch.eye(3).to_sparse(), torch.empty(5, device="meta")],
    ids=["expanded", "sparse", "meta"],
)
def test_a_tensor_without_all_of_its_numbers_is_refused(tmp_path: Path, tensor: Tensor) -> None:
    torch.save({"a.b": tensor}, tmp_path / "w.pt")
    with pytest.raises(BundleError, match=r"w\.pt: (a\.b is not a dense tensor|cannot be read as weights)"):
        read_weights(tmp_path / "w.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_only_regular_files_are_read(tmp_path: Path, suffix: str) -> None:
    os.mkfifo(tmp_path / f"w{suffix}")
    with pytest.raises(BundleError, match="is not a regular file"):
        read_weights(tmp_path / f"w{suffix}")


@pytest.mark.parametrize("content", ["[" * 100_000, "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_an_index_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "m.index.json").write_text(content)
    with pytest.raises(BundleError, match=r"m\.index\.json"):
        read_weights(tmp_path / "m.index.json")


def test_an_index_lists_no_index(tmp_path: Path) -> None:
    (tmp_path / "m.index.json").write_text(json.dumps({"weight_map": {"a": "m.index.json"}}))
    with pytest.raises(BundleError, match="it lists another index"):
        read_weights(tmp_path / "m.index.json")


def test_what_torch_save_writes_is_no_torchscript(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    assert not torchscript.is_torchscript(tmp_path / "w.pt")
