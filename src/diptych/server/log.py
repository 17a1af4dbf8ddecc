"""The server's log: one line per message, without control characters and secrets of addresses."""

import logging
from typing import Any

from diptych.core.address import redacted
from diptych.core.terminal import visible


class VisibleFormatter(logging.Formatter):
    """Formats a log record as one line and its traceback, without control characters and secrets of addresses."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  (the base class names it)
        """The line of the record."""
        return visible(redacted(super().formatMessage(record)))

    def format(self, record: logging.LogRecord) -> str:
        """The line, then the traceback, which may have been formatted by another formatter."""
        return visible(redacted(super().format(record)), keep="\n")


def log_config(*names: str) -> dict[str, Any]:
    """For `logging.config.dictConfig`: loggers of these names, and those below them, write to standard error visibly."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"visible": {"()": VisibleFormatter, "format": "%(levelname)s: %(message)s"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "visible"}},
        "loggers": {name: {"handlers": ["stderr"]} for name in names},
    }
