"""Download model folders from the Hugging Face hub, with `huggingface_hub` and its cache. Needs no PyTorch.

A repository that `diptych push` wrote contains the bundle in the folder `bundle`, and usually its ONNX export at the root. If
PyTorch is installed, only the bundle is downloaded, otherwise only the ONNX export.

The small files of a repository are downloaded first, so that a repository that Diptych cannot read is refused before its
weights are downloaded, and so that a folder with all weights also has all other files.
"""

import errno
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from diptych.bundle.hub_files import BUNDLE, BUNDLE_CONFIG, model_path, split_files
from diptych.bundle.known_models import PREFIX, near_hub_ids
from diptych.bundle.onnx_layout import ONNX_CONFIG
from diptych.bundle.refusals import refuse_naflex_name, refuse_unsupported
from diptych.core.errors import BundleError, ConfigError
from diptych.core.extras import has_torch

__all__ = ["BUNDLE", "BUNDLE_CONFIG", "NEEDS_EXTRA", "PREFIX", "cached_snapshot", "download", "download_files"]

NEEDS_EXTRA = "the hub needs an extra: pip install 'diptych[hub]'"
_NUM_SUGGESTED = 3
"""Maximum number of repositories that the error for an unknown repository suggests."""


class _Repository(NamedTuple):
    """A repository on the hub and, if given, its branch, tag or commit."""

    name: str
    revision: str | None


def download(name: str, *, progress: bool = True) -> Path:
    """Return the local path of a model on the hub, such as `hf:openai/clip-vit-base-patch32`, and download it if necessary.

    Files in the cache are not downloaded again. If the hub cannot be reached, a complete model in the cache is used. For a
    repository that `diptych push` wrote, the result is the folder of the bundle or, without PyTorch, the ONNX folder.
    `huggingface_hub` reads the environment variables `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_OFFLINE` and `HF_TOKEN`.

    Args:
        name: `hf:owner/name`, or `hf:owner/name@revision` with a branch, a tag or a commit.
        progress: whether to show a progress bar on standard error, if that is a terminal.

    Raises:
        ConfigError: the extra `hub` is not installed, or the repository has only a bundle and PyTorch is not installed.
        BundleError: the id is not valid, the hub has no such model or revision, access is denied, the model needs its own code
            or has an unsupported feature, or the hub cannot be reached and the model is not in the cache.
    """
    repository = _parsed(name)
    refuse_naflex_name(name)
    try:
        with _explained(name):
            return _downloaded(repository, name, progress=progress)
    except (BundleError, ConfigError):
        raise
    except Exception as error:  # Raised by several libraries: HTTP client, huggingface_hub, operating system.
        reason = _first_line(error)
    snapshot = cached_snapshot(name)
    cached = None if snapshot is None else model_path(snapshot, has_torch=has_torch())
    if snapshot is None or cached is None:
        raise BundleError(f"{name}: is not in the cache, and the hub cannot be reached ({reason})")
    refuse_unsupported(snapshot, name)
    return cached


def download_files(name: str, patterns: Sequence[str], *, progress: bool = True) -> Path:
    """Return the local folder of a repository, and download the files of these patterns if necessary.

    If the hub cannot be reached, the files in the cache are used.

    Args:
        name: `hf:owner/name`, or `hf:owner/name@revision`.
        patterns: patterns of file names, as for `fnmatch`.
        progress: as for `download`.

    Raises:
        ConfigError: the extra `hub` is not installed.
        BundleError: the id is not valid, the hub has no such model or revision, access is denied, or the hub cannot be reached
            and the repository is not in the cache.
    """
    repository = _parsed(name)
    try:
        with _explained(name):
            from huggingface_hub import snapshot_download  # noqa: PLC0415  (an extra)

            return Path(
                snapshot_download(
                    repository.name,
                    revision=repository.revision,
                    allow_patterns=list(patterns),
                    tqdm_class=_bar(progress),
                )
            )
    except (BundleError, ConfigError):
        raise
    except Exception as error:  # Raised by several libraries: HTTP client, huggingface_hub, operating system.
        raise BundleError(
            f"{name}: is not in the cache, and the hub cannot be reached ({_first_line(error)})"
        ) from None


@contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn the errors of `huggingface_hub` about a repository into errors that name a remedy. Others pass through."""
    try:
        from huggingface_hub.errors import (  # noqa: PLC0415  (an extra)
            GatedRepoError,
            HFValidationError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )
    except ImportError:
        raise ConfigError(NEEDS_EXTRA) from None
    repository = _parsed(name)
    try:
        yield
    except HFValidationError:
        raise BundleError(f"{name}: is not a hub id; an example is hf:openai/clip-vit-base-patch32") from None
    except GatedRepoError:
        raise BundleError(
            f"{name}: is gated; accept its terms at {_page(repository)}, then log in with `hf auth login`"
        ) from None
    except RevisionNotFoundError:
        raise BundleError(f"{name}: the model has no revision {repository.revision!r:.80}") from None
    except RepositoryNotFoundError:
        raise BundleError(f"{name}: the hub has no such model{_suggestions(repository.name)}") from None
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS}:
            raise BundleError(f"{name}: cannot be written to the cache of the hub ({error.strerror})") from None
        raise


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__


def cached_snapshot(name: str) -> Path | None:
    """Return the snapshot of a repository in the cache of the hub; None if there is none. It may be incomplete.

    Args:
        name: `hf:owner/name` or `hf:owner/name@revision`.
    """
    try:
        from huggingface_hub import constants  # noqa: PLC0415  (an extra)
    except ImportError:
        return None
    repository = _parsed(name)
    revision = repository.revision or "main"
    storage = Path(constants.HF_HUB_CACHE) / f"models--{repository.name.replace('/', '--')}"
    try:
        reference = storage / "refs" / revision
        commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
        snapshot = storage / "snapshots" / commit
        return snapshot if snapshot.is_dir() and snapshot.parent == storage / "snapshots" else None
    except (OSError, ValueError):
        return None


def _parsed(name: str) -> _Repository:
    identifier, at, revision = name.removeprefix(PREFIX).partition("@")
    if at and not revision:
        raise BundleError(f"{name}: names no revision after '@'; an example is hf:openai/clip-vit-base-patch32@main")
    return _Repository(identifier, revision or None)


def _downloaded(repository: _Repository, name: str, *, progress: bool) -> Path:
    from huggingface_hub import HfApi  # noqa: PLC0415  (an extra)

    api = HfApi()
    files = [file.rfilename for file in api.model_info(repository.name, revision=repository.revision).siblings or []]
    small, weights = split_files(files, has_torch=has_torch())
    if not has_torch() and ONNX_CONFIG not in files:
        raise ConfigError(f"{name}: has no ONNX files, so it needs PyTorch: pip install 'diptych[train]'")
    if not weights:
        raise BundleError(f"{name}: has no weights that Diptych reads (.safetensors, .bin, .npz, or a bundle)")
    fetch = partial(api.snapshot_download, repository.name, revision=repository.revision)
    if small:
        refuse_unsupported(Path(fetch(allow_patterns=small, tqdm_class=_bar(False))), name)
    snapshot = Path(fetch(allow_patterns=weights, tqdm_class=_bar(progress)))
    found = model_path(snapshot, has_torch=has_torch())
    return snapshot if found is None else found


def _bar(is_shown: bool) -> Any:
    """Return the progress bar class for a download. Bars are shown only if standard error is a terminal."""
    from huggingface_hub.utils.tqdm import tqdm  # noqa: PLC0415  (an extra)

    base: Any = tqdm
    is_hidden = not (is_shown and sys.stderr.isatty())

    def start(bar: Any, *args: Any, **options: Any) -> None:
        base.__init__(bar, *args, **{**options, **({"disable": True} if is_hidden else {})})

    return type("Bar", (base,), {"__init__": start})


def _page(repository: _Repository) -> str:
    from huggingface_hub import constants  # noqa: PLC0415  (an extra)

    return f"{constants.ENDPOINT}/{repository.name}"


def _suggestions(identifier: str) -> str:
    """Return the end of the error for an unknown repository: similar known models, and results of the hub's search."""
    found = near_hub_ids(identifier)
    if len(found) < _NUM_SUGGESTED:
        with suppress(Exception):  # The error is complete without suggestions.
            from huggingface_hub import HfApi  # noqa: PLC0415  (an extra)

            models = HfApi().list_models(search=identifier.rpartition("/")[2], limit=_NUM_SUGGESTED)
            found += [model.id for model in models if model.id not in found]
    near = " or ".join(f"{PREFIX}{one}" for one in found[:_NUM_SUGGESTED])
    return f"; did you mean {near}?" if near else "; if it is private, log in with `hf auth login`"
