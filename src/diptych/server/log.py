"""Logging of the server: one line per message, without control characters and without secrets in addresses."""

import logging
from typing import Any

from diptych.core.address import redacted
from diptych.core.terminal import visible


class VisibleFormatter(logging.Formatter):
    """Formats a log record as one line and its traceback, without control characters and without secrets in addresses."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the base class names it)
        """The record as one line, without its traceback."""
        return visible(redacted(super().formatMessage(record)))

    def format(self, record: logging.LogRecord) -> str:
        """The record as one line, followed by its traceback."""
        return visible(redacted(super().format(record)), keep="\n")


def log_config(*names: str) -> dict[str, Any]:
    """A configuration for `logging.config.dictConfig` that logs to standard error with `VisibleFormatter`.

    Args:
        names: the loggers to configure. It also applies to the loggers below them.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"visible": {"()": VisibleFormatter, "format": "%(levelname)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "visible"}},
        "loggers": {name: {"handlers": ["stderr"]} for name in names},
    }
