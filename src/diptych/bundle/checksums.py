"""SHA-256 checksums of a bundle. `config.json` contains those of the other files and its own.

"files": {"model.safetensors": SHA-256, "tokenizer.json" or "tokenizer.model": SHA-256}
"sha256": SHA-256 of everything else in `config.json`, as canonical JSON
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from diptych.core.cache import file_stamp, is_settled, recall, remember
from diptych.core.errors import BundleError
from diptych.core.files import sha256_of

Verify: TypeAlias = Literal["auto", "full"]
"""`auto` reads a large file once, and again only if its size, times or inode change; `full` always reads it."""

CHECKED_FILES = ("model.safetensors", "tokenizer.json")
_REMEMBERED_BYTES = 8 * 2**20
"""Smaller files are always read, which takes a few milliseconds."""
_REMEDY = "copy or download the bundle again, or train again"


def canonical_json(content: Any) -> bytes:
    """Return JSON with sorted keys and without white space, which is identical for equal contents.

    >>> canonical_json({"b": (1, 2), "a": None})
    b'{"a":null,"b":[1,2]}'
    """
    plain = json.loads(json.dumps(content))  # Keys become text, so that they can be sorted.
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a `config.json` with its own checksum added or updated."""
    return {**_without_checksum(content), "sha256": _checksum(content)}


def check_seal(content: Mapping[str, Any], path: Path, *, checked_files: Sequence[str] = CHECKED_FILES) -> None:
    """Check the content of a `config.json` against its own checksum.

    Args:
        content: the content.
        path: the path of the file.
        checked_files: files whose checksums it must contain.

    Raises:
        BundleError: its own checksum is missing or differs, or the checksum of another file is missing.
    """
    if content.get("sha256") != _checksum(content):
        raise BundleError(f"{path}: is damaged or was edited: it does not match its own checksum; {_REMEDY}")
    files = content.get("files")
    if not isinstance(files, dict) or any(not isinstance(files.get(name), str) for name in checked_files):
        raise BundleError(f"{path}: has no checksums of {' and '.join(checked_files)}; {_REMEDY}")


def check_file(path: Path, expected: str, *, verify: Verify) -> None:
    """Check the SHA-256 of a file.

    Raises:
        BundleError: the SHA-256 differs from `expected`.
        OSError: the file cannot be read.
    """
    key, stamp = f"sha256 {path.resolve()}", file_stamp(path)
    is_large = path.stat().st_size > _REMEMBERED_BYTES
    if is_large and verify == "auto" and recall(key) == f"{stamp} {expected}":
        return
    found = sha256_of(path)
    if found != expected:
        raise BundleError(
            f"{path}: is damaged: its SHA-256 is {found[:12]}..., that in config.json {expected[:12]}...; {_REMEDY}"
        )
    if is_large and is_settled(path) and file_stamp(path) == stamp:
        remember(key, f"{stamp} {expected}")


def source_stamp(paths: Iterable[Path], *arguments: object) -> str | None:
    """Return a key for data that was read from files: their paths, sizes, times and inodes, and the reader's arguments.

    Returns None if a file changed within the last two seconds, because it could change again without changing the key.

    Raises:
        OSError: a file is missing.
    """
    files = sorted(path.resolve() for path in paths)
    if not all(map(is_settled, files)):
        return None
    return repr(([(str(file), file_stamp(file)) for file in files], arguments))


def _checksum(content: Mapping[str, Any]) -> str:
    return sha256(canonical_json(_without_checksum(content))).hexdigest()


def _without_checksum(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in content.items() if name != "sha256"}
