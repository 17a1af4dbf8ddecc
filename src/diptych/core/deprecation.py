"""Keep old names available for one release, with a `DeprecationWarning`."""

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

_Params = ParamSpec("_Params")
_Result = TypeVar("_Result")


def renamed_names(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module-level `__getattr__` that resolves old names of the module and warns about them.

    Args:
        module: the name of the module (`__name__`).
        names: new names by old names.
    """

    def getattr_of_module(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module '{module}' has no attribute '{name}'")
        _warn(f"{module}.{name}", names[name])
        return getattr(sys.modules[module], names[name])

    return getattr_of_module


class RenamedAttribute:
    """Old name of an attribute or method, to read and to set.

    >>> class Report:
    ...     metrics = 3
    ...     figures = RenamedAttribute("metrics")
    >>> with warnings.catch_warnings(record=True) as caught:
    ...     warnings.simplefilter("always")
    ...     value = Report().figures
    >>> value, str(caught[0].message)
    (3, 'Report.figures is deprecated; use metrics')
    """

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = f"{owner.__name__}.{name}"

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        _warn(self.old, self.new)
        return getattr(instance, self.new)

    def __set__(self, instance: object, value: Any) -> None:
        _warn(self.old, self.new)
        setattr(instance, self.new, value)


def renamed_parameter(
    old: str, new: str, convert: Callable[[Any], Any] = lambda value: value
) -> Callable[[Callable[_Params, _Result]], Callable[_Params, _Result]]:
    """A decorator for functions that also accept a keyword argument by its old name, with a DeprecationWarning.

    Args:
        old: the old name.
        new: the new name.
        convert: computes the value of the new argument from that of the old one.

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
                message = f"the argument {old} of {function.__qualname__} is deprecated; use {new}"
                warnings.warn(message, DeprecationWarning, stacklevel=2)
                kwargs[new] = convert(kwargs.pop(old))
            return function(*args, **kwargs)

        return wrapped

    return decorate


def _warn(old: str, new: str) -> None:
    warnings.warn(f"{old} is deprecated; use {new}", DeprecationWarning, stacklevel=3)
