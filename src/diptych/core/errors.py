"""Every exception that Diptych raises on purpose.

    DiptychError
    ├── ConfigError     a setting, an option or a name
    ├── DataError       a source, its captions or its splits
    │   ├── ImageError  one picture that cannot be decoded
    │   └── NotFiniteError  embeddings that are not numbers, because of the weights
    ├── BusyError       another process has what this one wants
    ├── BundleError     a folder that is not a whole bundle, or one that does not fit
    ├── IndexingError   a search index, or what writes it
    └── RunError        a run folder, a checkpoint, or training itself
        └── SaveError   the output of a run or a study cannot be saved; it can continue later

The command line prints the message on one line and exits with code 2.
"""

from collections.abc import Iterable
from difflib import get_close_matches

from diptych.core.address import redacted

_MAX_LISTED = 12


class DiptychError(Exception):
    """Base of all errors that a user can cause and mend. Secrets of addresses in the message are left out."""

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


class DiptychWarning(UserWarning):
    """Something went on that a user should know of. The command line prints it on one line.

    Secrets of addresses in the message are left out.
    """

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))


class ConfigError(DiptychError):
    """A setting, an option or a name is wrong."""


class DataError(DiptychError):
    """A source cannot be read, or does not hold what was asked for."""


class ImageError(DataError):
    """One picture cannot be decoded."""


class NotFiniteError(DataError):
    """A model's weights give embeddings that are not numbers: its training has diverged, or the weights are damaged."""


class BusyError(DiptychError):
    """Another process writes what this one wants to write."""


class BundleError(DiptychError):
    """A folder is not a whole bundle, or the bundle does not fit its use."""


class IndexingError(DiptychError):
    """A search index is not there, damaged, another model's, or cannot be written."""


class RunError(DiptychError):
    """A run folder or a training run cannot go on."""


class SaveError(RunError):
    """What a run or a study made cannot be saved, most often because the disk is full. The same command continues later."""


def unknown_name(what: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that is not known: the nearest one that is, then all of them.

    >>> unknown_name("preset", "shape-demo", ["shapes-demo", "photos-small"])
    "unknown preset 'shape-demo'; did you mean 'shapes-demo'? Known: shapes-demo, photos-small"
    """
    names = list(known)
    near = get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    more = f", and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return f"unknown {what} '{name}'{hint} Known: {', '.join(names[:_MAX_LISTED])}{more}"
