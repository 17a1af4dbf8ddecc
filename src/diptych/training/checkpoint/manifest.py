"""The manifest of a folder: size and SHA-256 of each file. It is written last, so a folder that matches it is complete."""

import json
from pathlib import Path

from diptych.core.files import flush, sha256_of

MANIFEST = "manifest.json"


def write_manifest(folder: Path, *, step: int) -> None:
    """Flush every file of the folder to disk, write the manifest, and flush the manifest and the folder."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    for file in files:
        flush(file)
    listed = {file.name: {"bytes": file.stat().st_size, "sha256": sha256_of(file)} for file in files}
    manifest = folder / MANIFEST
    manifest.write_text(json.dumps({"step": step, "files": listed}, indent=1), encoding="utf-8")
    flush(manifest)
    flush(folder)


def find_fault(folder: Path) -> str | None:
    """Compare the files of a folder with its manifest. Returns a description of the first difference; None if all match."""
    try:
        plain = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        listed = {name: (entry["bytes"], entry["sha256"]) for name, entry in plain["files"].items()}
        if any(Path(name).name != name for name in listed):  # Do not read files outside of this folder.
            raise ValueError
    except FileNotFoundError:
        return f"it is incomplete, {MANIFEST} is missing"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return f"{MANIFEST} is damaged"
    faults = (_fault(folder / name, size, checksum) for name, (size, checksum) in listed.items())
    return next((fault for fault in faults if fault is not None), None)


def _fault(file: Path, size: int, checksum: str) -> str | None:
    try:
        if file.stat().st_size != size:
            return f"{file.name} has {file.stat().st_size:,} bytes where {size:,} were written"
        return None if sha256_of(file) == checksum else f"{file.name} is not what was written, its checksum differs"
    except FileNotFoundError:
        return f"it is incomplete, {file.name} is missing"
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror})"
