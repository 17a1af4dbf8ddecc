"""Old names that work for one more release, with a warning."""

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


def renamed_attribute(module: str, name: str, new_names: Mapping[str, str]) -> Any:
    """The attribute of a module that had another name before, for the module's `__getattr__`. Emits a DeprecationWarning.

    Args:
        module: name of the module.
        name: the requested name.
        new_names: new name by old name.

    Raises:
        AttributeError: `name` is not an old name.
    """
    if name not in new_names:
        raise AttributeError(f"module {module!r} has no attribute {name!r}")
    warnings.warn(f"{module}.{name} is now named {new_names[name]}", DeprecationWarning, stacklevel=3)
    return getattr(sys.modules[module], new_names[name])


def renamed_parameter(old: str, new: str) -> Callable[[Callable[_Params, _Result]], Callable[_Params, _Result]]:
    """A decorator for functions that also accept a keyword argument by its old name, with a DeprecationWarning.

    >>> @renamed_parameter("colour", "color")
    ... def paint(*, color: str) -> str:
    ...     return color
    >>> with warnings.catch_warnings(action="ignore"):
    ...     paint(colour="red")
    'red'
    """

    def decorate(function: Callable[_Params, _Result]) -> Callable[_Params, _Result]:
        @wraps(function)
        def wrapped(*args: _Params.args, **kwargs: _Params.kwargs) -> _Result:
            if old in kwargs:
                message = f"the argument {old} of {function.__qualname__} is now named {new}"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapped

    return decorate
