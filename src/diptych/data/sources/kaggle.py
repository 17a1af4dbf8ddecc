"""Data sets from Kaggle, through `kagglehub` and its cache."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

from diptych.core.errors import ConfigError, DataError

_PAGES = "https://www.kaggle.com/datasets"


def fetch_from_kaggle(handle: str, *, kind: str) -> Path:
    """The folder of a handle such as `owner/name/versions/1`; what was fetched before is not fetched again.

    With the version named, Kaggle is not asked for what the cache holds. `KAGGLEHUB_CACHE` and Kaggle's credentials mean what
    they mean to `kagglehub`.

    Raises:
        ConfigError: the extra is not installed.
        DataError: it cannot be fetched.
    """
    with redirect_stdout(sys.stderr):  # Where kagglehub logs; stdout is for results.
        try:
            import kagglehub  # noqa: PLC0415  (an extra)
        except ImportError:
            message = f"{kind}: is fetched from Kaggle with an extra: pip install 'diptych[kaggle]'"
            raise ConfigError(f"{message}; a folder that is there already is given as {kind}:DIR") from None
        try:
            return Path(kagglehub.dataset_download(handle))
        except Exception as error:  # Of several libraries: the network's, Kaggle's, the operating system's.
            reason = (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
    page = f"{_PAGES}/{handle.partition('/versions/')[0]}"
    raise DataError(
        f"{kind}: cannot be fetched ({reason}); download and unpack {page}, then give its folder: {kind}:DIR"
    )
