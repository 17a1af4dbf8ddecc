"""Settings as frozen dataclasses: build them from YAML or JSON, check types, write them back, override fields by path."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeVar, cast, dataclass_transform, get_args

from diptych.core.bounded import parse_json, parse_yaml, read_bytes, read_json, read_text, read_yaml
from diptych.core.errors import ConfigError, unknown_name
from diptych.core.formatting import plain as to_plain

__all__ = [
    "from_plain",
    "merge",
    "override",
    "parse_json",
    "read_bytes",
    "read_json",
    "read_text",
    "read_yaml",
    "settings",
    "to_plain",
]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[T]) -> type[T]:
    """Make the class a frozen keyword-only dataclass; `from_plain` rejects unknown keys and numbers that are not finite."""
    cls.__pydantic_config__ = {"extra": "forbid", "allow_inf_nan": False}  # type: ignore[attr-defined]
    return dataclasses.dataclass(frozen=True, kw_only=True)(cls)


def from_plain(cls: type[T], plain: Any, *, what: str = "config") -> T:
    """Return settings built from dicts, lists and scalars.

    Args:
        cls: a class decorated with `settings`.
        plain: the values.
        what: the name of the file or group, used in messages.

    Raises:
        ConfigError: a key is unknown (the message names the closest known one) or missing, or a value has the wrong type.
    """
    from pydantic import ValidationError  # noqa: PLC0415  (takes 50 ms; `--help` does not need it)

    try:
        return _adapter(cls).validate_python(plain)  # type: ignore[arg-type]
    except ValidationError as error:
        raise ConfigError(f"{what}: {_explain(cls, error.errors())}") from None


@lru_cache
def _adapter(cls: type[Any]) -> Any:
    """Return pydantic's validator of a settings class. It is cached because building one takes milliseconds."""
    from pydantic import TypeAdapter  # noqa: PLC0415  (takes 50 ms; `--help` does not need it)

    return TypeAdapter(cls)


def _explain(cls: type[Any], errors: Sequence[Any]) -> str:
    """Describe the first error. Each member of a union of plain types has an error of its own for the same value."""
    error = errors[0]
    path = _path(cls, error)
    where, context = f"'{path}'" if path else "the whole", error.get("ctx", {})
    match error["type"]:
        case "unexpected_keyword_argument":
            return _unknown_key(cls, path)
        case "union_tag_not_found":
            return f"{where} needs a 'kind', which selects the variant"
        case "union_tag_invalid":
            return f"'{path}.kind' is '{context['tag']}'; known: {context['expected_tags']}"
        case _:
            same = [other["msg"] for other in errors if _path(cls, other) == path]
            if len(same) > 1:  # "Input should be a valid integer, unable to parse ..." and "Input should be 'all'".
                same = [text.partition(", unable to")[0].removeprefix("Input should be ") for text in same]
                return f"{where} is {error['input']!r:.200}: input should be {' or '.join(dict.fromkeys(same))}"
            return f"{where} is {error['input']!r:.200}: {error['msg'][:1].lower()}{error['msg'][1:]}"


def _path(cls: type[Any], error: Any) -> str:
    return ".".join(str(part) for part in _without_kinds(cls, error["loc"]))


def override(value: T, changes: Mapping[str, Any]) -> T:
    """Return the settings with some fields replaced.

    Strings are converted to the type of the field: a number, a boolean, None ("none" or "null"), or a list in brackets.

    Args:
        value: the settings to start from.
        changes: new values by dotted path, such as `optimizer.lr`.

    Raises:
        ConfigError: a path is not the name of a field (the message names the closest one), or a value has the wrong type.
    """
    plain = to_plain(value)
    for path, new in changes.items():
        *parents, last = path.split(".")
        node = plain
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if not isinstance(node, dict) or last not in node:
            raise ConfigError(f"config: {_unknown_key(type(value), path, known=list(_paths(plain)))}")
        node[last] = _read(new) if isinstance(new, str) else new
    return from_plain(type(value), plain)


def merge(value: T, changes: Any, *, what: str = "config") -> T:
    """Return settings in which the values of a file replace the original ones, group by group.

    A list replaces the whole list. A group with a different `kind` replaces the whole group, and fields that the file omits
    get the defaults of the new kind. The attribute `unsets` of a class maps a field to the fields that become None when the
    file sets it.

    Args:
        value: the settings to start from.
        changes: the settings of the file, as dicts, lists and scalars.
        what: name of the file, used in messages.

    Raises:
        ConfigError: see `from_plain`.
    """
    return from_plain(type(value), _merged(value, changes), what=what)


def _merged(value: Any, changes: Any) -> Any:
    if not dataclasses.is_dataclass(value) or not isinstance(changes, Mapping):
        return changes
    own = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if "kind" in changes and changes["kind"] != getattr(value, "kind", changes["kind"]):
        return changes
    unsets: Mapping[str, tuple[str, ...]] = getattr(value, "unsets", {})
    unset = {other: None for name, others in unsets.items() if changes.get(name) is not None for other in others}
    return {
        **to_plain(value),
        **unset,
        **{name: _merged(own[name], new) if name in own else new for name, new in changes.items()},
    }


def _read(text: str) -> Any:
    if text.lower() in {"none", "null"}:
        return None
    # pydantic reads numbers and booleans from text.
    return parse_yaml(text, what="config") if text.startswith("[") else text


def _unknown_key(cls: type[Any], path: str, known: list[str] | None = None) -> str:
    paths = known if known is not None else list(_type_paths(cls))
    room, depth = path.rpartition(".")[0], path.count(".") + 1
    cut = dict.fromkeys(".".join(known_path.split(".")[:depth]) for known_path in paths)
    siblings = [known_path for known_path in cut if known_path.rpartition(".")[0] == room]
    return unknown_name("setting", path, siblings or paths)


def _paths(plain: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in plain.items():
        if isinstance(value, dict):
            yield from _paths(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _type_paths(cls: type[Any], prefix: str = "") -> Iterator[str]:
    for field in dataclasses.fields(cls):
        inner = _settings_of(field.type)
        for kind in inner:
            yield from _type_paths(kind, f"{prefix}{field.name}.")
        if not inner:
            yield f"{prefix}{field.name}"


def _without_kinds(cls: type[Any], location: tuple[Any, ...]) -> Iterator[Any]:
    """Yield the location of an error as it appears in the file: without the names that pydantic inserts for unions."""
    kinds: list[type[Any]] = [cls]
    for part in location:
        if not kinds and isinstance(part, str):  # A member of a union of plain types, such as `int`.
            continue
        if len(kinds) > 1:
            kinds = [kind for kind in kinds if kind.kind == part]
            continue
        types = {field.name: field.type for kind in kinds for field in dataclasses.fields(kind)}
        kinds = _settings_of(types.get(part))
        yield part


def _settings_of(annotation: Any) -> list[type[Any]]:
    """Return the settings classes in an annotation: none, one, or the members of a union."""
    if isinstance(annotation, type) and dataclasses.is_dataclass(annotation):
        return [cast(type[Any], annotation)]
    return [kind for member in get_args(annotation) for kind in _settings_of(member)]
