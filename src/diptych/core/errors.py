"""All exceptions that Diptych raises on purpose.

    DiptychError
    ├── ConfigError         a setting, an option or a name is wrong
    ├── DataError           a source, its captions or its splits cannot be used
    │   ├── ImageError      an image cannot be decoded
    │   └── NotFiniteError  embeddings are NaN or infinite because of the weights
    ├── BusyError           another process holds a lock that this one needs
    ├── BundleError         a folder is not a complete bundle, or the bundle does not fit its use
    │   └── OnnxExportError     a bundle is needed, and there is an ONNX export
    ├── IndexingError       a search index cannot be read or written
    └── RunError            a run folder, a checkpoint or training itself fails
        └── SaveError       the output of a run or a study cannot be saved; it can continue later

The command line prints the message on one line and exits with status 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

from diptych.core.address import redacted

_MAX_LISTED = 12


class DiptychError(Exception):
    """Base class of all errors that a user can cause and fix. Secrets in URLs are removed from the message (`redacted`)."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


class DiptychWarning(UserWarning):
    """Base class of all warnings. The command line prints the message on one line.

    Secrets in URLs are removed from the message (`redacted`).
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(DiptychError):
    """A setting, an option or a name is wrong."""


class DataError(DiptychError):
    """A source cannot be read, or does not contain the requested data."""


class ImageError(DataError):
    """An image cannot be decoded."""


class NotFiniteError(DataError):
    """A model returns embeddings that are NaN or infinite: its training has diverged, or its weights are damaged."""


class BusyError(DiptychError):
    """Another process holds the lock on a file or folder that this process would write."""


class BundleError(DiptychError):
    """A folder is not a complete bundle, or the bundle does not fit its use."""


class OnnxExportError(BundleError):
    """A bundle is needed, and there is an ONNX export."""

    def __init__(self, message: str, folder: Path) -> None:
        super().__init__(message)
        self.folder = folder
        """The folder of the export."""


class IndexingError(DiptychError):
    """A search index is missing, damaged, made with another model, or cannot be written."""


class RunError(DiptychError):
    """A training run cannot start or continue."""


class SaveError(RunError):
    """The output of a run or a study cannot be saved, usually because the disk is full. The same command continues later."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """Return the error message for an unknown name: it suggests the closest known name and lists up to 12 known ones.

    Args:
        what: the kind of thing that has the name.
        name: the unknown name.
        known: all valid names.

    >>> unknown_name("preset", "shape-demo", ["shapes-demo", "photos-small"])
    "unknown preset 'shape-demo'; did you mean 'shapes-demo'? Known: shapes-demo, photos-small"
    """
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    more = f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"unknown {what} '{name}'{hint} Known: {', '.join(names[:_MAX_LISTED])}{more}"
