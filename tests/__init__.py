"""The tests, package by package as in `src/diptych`, and the checks of annotations and shapes while they run.

Each test checks the first calls of each function. To check all calls would double the time of all tests.
"""

from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial, wraps
from inspect import isfunction
from random import getstate, setstate
from threading import RLock
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype

check_annotations = beartype(conf=BeartypeConf(is_pep484_tower=True))
"""An int passes as a float, as it does for mypy (PEP 484)."""

NUM_CHECKED = 10
"""Calls of each function that each test checks."""


class TestNumber:
    """The number of the test that runs."""

    __test__ = False  # pytest collects classes of this name.
    now = 0


_check_all_calls = jaxtyping.jaxtyped
_building = RLock()
"""Held while checks are built. beartype replaces the warning filters meanwhile, and two threads would restore each other's."""


def _check_first_calls(function: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """A replacement of `jaxtyping.jaxtyped`, which the import hook applies to each function and class of the package."""
    if function is None:
        return partial(_check_first_calls, typechecker=typechecker)
    if not isfunction(function):
        decorated: Any = function
        if is_dataclass(function) and "__init__" in vars(function):
            decorated.__init__ = _check_first_calls(vars(function)["__init__"], typechecker=typechecker)
        return function
    checked: Callable[..., Any] | None = None
    test, num_calls = -1, 0

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal checked, test, num_calls
        if jaxtyping.config.jaxtyping_disable:
            return function(*args, **kwargs)
        if test != TestNumber.now:
            test, num_calls = TestNumber.now, 0
        num_calls += 1
        if num_calls > NUM_CHECKED:
            return function(*args, **kwargs)
        state = getstate() if function.__name__ == "__init__" else None
        with _building:
            if checked is None:  # Most functions are never called by most workers.
                checked = _check_all_calls(function, typechecker=typechecker)
        try:
            return checked(*args, **kwargs)
        finally:
            if state is not None:
                setstate(
                    state
                )  # Strategies of Hypothesis create objects, and must not draw random numbers as checks do.

    return call


vars(jaxtyping)["jaxtyped"] = _check_first_calls
