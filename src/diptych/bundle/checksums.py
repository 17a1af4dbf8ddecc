"""SHA-256 checksums of a bundle: `config.json` holds those of the other files, and one of itself.

"files": {"model.safetensors": SHA-256, "tokenizer.json": SHA-256}
"sha256": of everything else in `config.json`, as canonical JSON
"""

import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, TypeAlias

from diptych.core.cache import file_stamp, is_settled, recall, remember
from diptych.core.errors import BundleError
from diptych.core.files import sha256_of

Verify: TypeAlias = Literal["auto", "full"]
"""`auto` reads a large file once and then goes by its size, times and inode; `full` always reads it."""

CHECKED_FILES = ("model.safetensors", "tokenizer.json")
_REMEMBERED_BYTES = 8 * 2**20
"""Smaller files are always read: that takes a few milliseconds."""
_REMEDY = "copy or download the bundle again, or train again"


def canonical_json(content: Any) -> bytes:
    """JSON with sorted keys and without white space, the same for equal contents.

    >>> canonical_json({"b": (1, 2), "a": None})
    b'{"a":null,"b":[1,2]}'
    """
    plain = json.loads(json.dumps(content))  # Keys become text, so that they can be sorted.
    return json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()


def seal(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` with its own checksum added, or computed again."""
    return {**_without_checksum(content), "sha256": _checksum(content)}


def check_seal(content: Mapping[str, Any], path: Path) -> None:
    """Refuse the content of a `config.json` that is not what was written.

    Raises:
        BundleError: the checksum is missing or differs.
    """
    if content.get("sha256") != _checksum(content):
        raise BundleError(f"{path}: is damaged or was edited: it does not match its own checksum; {_REMEDY}")
    files = content.get("files")
    if not isinstance(files, dict) or any(not isinstance(files.get(name), str) for name in CHECKED_FILES):
        raise BundleError(f"{path}: has no checksums of {' and '.join(CHECKED_FILES)}; {_REMEDY}")


def check_file(path: Path, expected: str, *, verify: Verify) -> None:
    """Refuse a file whose SHA-256 is another one.

    Raises:
        BundleError: the file is damaged.
        OSError: it cannot be read.
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
    """A key for what was read from files: their paths, sizes, times and inodes, and the arguments of the reader.

    Returns None where a file changed within the last two seconds, so that it could change again under the same key.

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
