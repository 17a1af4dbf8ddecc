"""Read a JSON file that contains an object."""

from pathlib import Path
from typing import Any

from diptych.core.bounded import MAX_BYTES
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import read_json


def read_object(path: Path, *, is_required: bool = False, max_bytes: int = MAX_BYTES) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is missing and not required.

    Args:
        path: the file.
        is_required: whether a missing file is an error.
        max_bytes: maximum size of the file.

    Raises:
        BundleError: the file cannot be read, contains something else, or is missing although it is required.
    """
    if not is_required and not path.is_file():
        return {}
    try:
        content = read_json(path, max_bytes=max_bytes)
    except ConfigError as error:
        raise BundleError(str(error)) from None
    if not isinstance(content, dict):
        raise BundleError(f"{path}: holds no JSON object")
    return content
