"""Run functions in several threads. They must release the GIL, as those of NumPy and ONNX Runtime do."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

_Part = TypeVar("_Part")
_Result = TypeVar("_Result")


def in_threads(action: Callable[[_Part], _Result], parts: Sequence[_Part]) -> list[_Result]:
    """Return the results of an action for all parts, in order. Two or more parts run in one thread each.

    >>> in_threads(abs, [-1, 2])
    [1, 2]
    """
    if len(parts) < 2:
        return [action(part) for part in parts]
    with ThreadPoolExecutor(len(parts)) as pool:
        return list(pool.map(action, parts))
