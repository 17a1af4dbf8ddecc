"""Download datasets from Kaggle with `kagglehub` and its cache."""

import sys
from contextlib import redirect_stdout
from pathlib import Path

from diptych.core.errors import ConfigError, DataError

_PAGES = "https://www.kaggle.com/datasets"


def fetch_from_kaggle(handle: str, *, kind: str) -> Path:
    """Return the local folder of a dataset such as `owner/name/versions/1`; download it if it is not in the cache.

    Since the handle includes the version, no request is sent if the dataset is in the cache. `kagglehub` uses the environment
    variable `KAGGLEHUB_CACHE` and Kaggle's credentials.

    Raises:
        ConfigError: the extra is not installed.
        DataError: the dataset cannot be downloaded.
    """
    with redirect_stdout(sys.stderr):  # kagglehub writes its log to stdout, which is for results.
        try:
            import kagglehub  # noqa: PLC0415  (an extra)
        except ImportError:
            message = f"{kind}: is fetched from Kaggle with an extra: pip install 'diptych[kaggle]'"
            raise ConfigError(f"{message}; a folder that is there already is given as {kind}:DIR") from None
        try:
            return Path(kagglehub.dataset_download(handle))
        except Exception as error:  # The network, Kaggle and the operating system raise many classes.
            reason = (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")
    page = f"{_PAGES}/{handle.partition('/versions/')[0]}"
    raise DataError(
        f"{kind}: cannot be fetched ({reason}); download and unpack {page}, then give its folder: {kind}:DIR"
    )
