"""Upload a model to the Hugging Face hub (`diptych push`).

README.md                       model card
bundle/                         the bundle, without private metadata (`shareable`)
config.json, onnx/, diptych/    the ONNX folder (`onnx_folder`), for programs without PyTorch
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.bundle.folder import Bundle, save_bundle
from diptych.bundle.hub import BUNDLE, BUNDLE_CONFIG, NEEDS_EXTRA, PREFIX
from diptych.core.address import redacted
from diptych.core.errors import BundleError, ConfigError
from diptych.export.hub_card import hub_card
from diptych.export.onnx_folder import export_onnx
from diptych.export.shareable import shareable

README = "README.md"
_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_OWN_FOLDERS = (f"{BUNDLE}/", "onnx/", "diptych/")
_OWN_FILES = frozenset(
    {"config.json", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"}
    | {"example.py", "example.mjs"}
)
"""Files at the root of an ONNX folder."""


@dataclass(frozen=True, kw_only=True)
class Pushed:
    """What `push` uploaded, or would upload."""

    address: str
    """The address that `diptych.load` accepts, such as `hf:user/name`."""
    files: dict[str, int]
    """Size of each file in bytes, by its path in the repository."""
    without_onnx: str | None
    """Why there are no ONNX files; None if there are some, or if `onnx` was False."""
    url: str | None = None
    """URL of the commit; None after a dry run."""
    kept: tuple[str, ...] = ()
    """Files on the hub that were not replaced: the model card, because its owner may have edited it."""
    removed: tuple[str, ...] = ()
    """Files of an earlier upload that were removed because this upload does not contain them."""


def push(
    bundle: Bundle,
    address: str,
    *,
    private: bool = False,
    onnx: bool = True,
    dry_run: bool = False,
    write_onnx: Callable[[Bundle, Path], object] = export_onnx,
) -> Pushed:
    """Upload a bundle, its ONNX export and a model card in one commit. The repository is created if it does not exist.

    Captions are never uploaded. Secrets, the folders of paths, and class names are removed from the metadata (`shareable`). If
    the model cannot be exported to ONNX, or the export deviates too much from it, only the bundle and the card are uploaded.

    Args:
        bundle: the bundle.
        address: `hf:user/name`.
        private: whether to create a private repository. An existing repository must already be private.
        onnx: whether to upload an ONNX export as well.
        dry_run: whether to only list the files. Nothing is sent, and no network is needed.
        write_onnx: function that writes the ONNX folder of a bundle.

    Returns:
        What was uploaded, or would be uploaded.

    Raises:
        ConfigError: the address is not valid, or the extra `hub` is not installed.
        BundleError: the hub cannot be reached, or does not allow the upload; or the repository contains another model, or is
            public although `private` is set.
    """
    repo = _repo_id(address)
    with tempfile.TemporaryDirectory(prefix="diptych-push-") as tmp:
        folder, reason = Path(tmp) / "model", None
        if onnx:
            reason = _write_onnx(_shareable(bundle), folder, write_onnx)
        _write_bundle(_shareable(bundle), folder, address, has_onnx=onnx and reason is None)
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in _files(folder)}
        result = Pushed(address=address, files=files, without_onnx=reason)
        if dry_run:
            return result
        with _readable_errors(address):
            url, kept, removed = _upload(folder, repo, list(files), address=address, private=private)
    return replace(result, url=url, kept=kept, removed=removed)


def _repo_id(address: str) -> str:
    repo = address.removeprefix(PREFIX)
    if (
        not address.startswith(PREFIX)
        or not _ID.fullmatch(repo)
        or "--" in repo
        or ".." in repo
        or repo.endswith(".git")
    ):
        raise ConfigError(f"{address}: is not an address on the hub; an example is hf:user/name")
    return repo


def _shareable(bundle: Bundle) -> Bundle:
    return replace(bundle, origin=shareable(bundle.origin), metrics=shareable(bundle.metrics))


def _write_onnx(bundle: Bundle, folder: Path, write_onnx: Callable[[Bundle, Path], object]) -> str | None:
    """Write the ONNX folder. Return None, or the reason for a failure without the path of the temporary folder."""
    try:
        write_onnx(bundle, folder)
    except (BundleError, ConfigError) as error:
        shutil.rmtree(folder, ignore_errors=True)
        temporary = "|".join(re.escape(str(parent)) for parent in {folder.parent.resolve(), folder.parent})
        return re.sub(rf"(?:{temporary})[^\s:]*(?:: )?", "", str(error))
    return None


def _write_bundle(bundle: Bundle, folder: Path, address: str, *, has_onnx: bool) -> None:
    folder.mkdir(exist_ok=True)
    save_bundle(bundle, folder / BUNDLE)
    card = hub_card(bundle.model, address, origin=bundle.origin, metrics=bundle.metrics, has_onnx=has_onnx)
    (folder / README).write_text(card, encoding="utf-8", errors="backslashreplace")


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _upload(
    folder: Path, repo: str, files: list[str], *, address: str, private: bool
) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """Commit the files. Return the URL of the commit, and the paths that were kept and removed."""
    try:
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi  # noqa: PLC0415  (an extra)
    except ImportError:
        raise ConfigError(NEEDS_EXTRA) from None
    api = HfApi()
    api.create_repo(repo, private=private, exist_ok=True)
    info = api.model_info(repo)
    there = [file.rfilename for file in info.siblings or []]
    if private and info.private is False:
        raise BundleError(f"{address}: is public; make it private on its page, or choose another name")
    if BUNDLE_CONFIG not in there and any(name in there for name in ("config.json", "open_clip_config.json")):
        raise BundleError(f"{address}: contains a model that `diptych push` did not write; choose another name")
    kept = tuple(name for name in (README,) if name in there)
    removed = tuple(name for name in there if _is_own(name) and name not in files)
    operations: list[Any] = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=folder / name) for name in files if name not in kept
    ]
    operations += [CommitOperationDelete(path_in_repo=name) for name in removed]
    commit = api.create_commit(repo, operations, commit_message="Upload a model with Diptych")
    return commit.commit_url, kept, removed


def _is_own(name: str) -> bool:
    return name.startswith(_OWN_FOLDERS) or name in _OWN_FILES


@contextmanager
def _readable_errors(address: str) -> Iterator[None]:
    """Convert errors of `huggingface_hub` to one-line messages without secrets."""
    try:
        yield
    except (BundleError, ConfigError):
        raise
    except Exception as error:  # Raised by several libraries: HTTP client, huggingface_hub, operating system.
        raise BundleError(f"{address}: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if type(error).__name__ == "HFValidationError":
        return "is not an address on the hub; an example is hf:user/name"
    if type(error).__name__ == "LocalTokenNotFoundError" or status == 401:
        return "the hub needs a token that may write; log in with `hf auth login`, or set HF_TOKEN"
    if status == 403:
        return "your token may not write there; check the name, or use a token with permission to write"
    lines: Iterable[str] = (line.strip() for line in redacted(str(error)).splitlines())
    line = next(filter(None, lines), type(error).__name__)
    return f"the hub refused the upload ({line})" if status else f"the hub cannot be reached ({line})"
