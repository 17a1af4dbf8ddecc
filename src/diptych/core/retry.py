"""Repeat an action that failed for a temporary reason."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def retry(
    action: Callable[[], T],
    *,
    attempts: int,
    is_temporary: Callable[[Exception], bool],
    wait_s: Callable[[int, Exception], float],
) -> T:
    """Call `action` up to `attempts` times and return the result of the first call that succeeds.

    Args:
        action: the function to call.
        attempts: maximum number of calls, at least 1.
        is_temporary: whether to call `action` again after an error. Other errors are raised at once.
        wait_s: returns the seconds to wait after an error, given the number of the attempt (from 0) and the error.

    Raises:
        ValueError: `attempts` is below 1.
        Exception: `action` raised an error that is not temporary, or the last attempt failed.

    >>> answers = iter([OSError("busy"), "done"])
    >>> def read():
    ...     answer = next(answers)
    ...     if isinstance(answer, Exception):
    ...         raise answer
    ...     return answer
    >>> retry(read, attempts=2, is_temporary=lambda error: "busy" in str(error), wait_s=lambda attempt, error: 0)
    'done'
    """
    for attempt in range(attempts):
        try:
            return action()
        except Exception as error:
            if attempt + 1 == attempts or not is_temporary(error):
                raise
            time.sleep(wait_s(attempt, error))
    raise ValueError(f"attempts is {attempts}; it must be at least 1")
