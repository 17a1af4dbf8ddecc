"""Read YAML and JSON settings with limits on size and depth, so that an untrusted file uses little memory and time.

`core.settings` re-exports the readers; code outside `core` imports them from there.
"""

import json
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from diptych.core.errors import ConfigError

MAX_BYTES = 16 * 2**20
"""Maximum size of a file. CLIP's vocabulary as JSON has 1 MiB, the `tokenizer.json` of a large language model 17 MB."""
MAX_YAML_BYTES = 2**20
"""Maximum size of a YAML file. PyYAML parses about 1 MiB per second with libyaml and 0.1 MiB per second without it."""
MAX_DEPTH = 64
"""Maximum nesting depth of lists and objects."""
MAX_NODES = 100_000
"""Maximum number of values in a YAML file; values that aliases repeat are counted each time."""
_TOO_DEEP = f"its lists and objects are nested more than {MAX_DEPTH} deep"
_MAX_INT = 10**40
_TOO_MANY_DIGITS = "it holds an integer of more than 40 digits"
_MAX_COLONS = 22
"""Maximum number of colons in a base-60 integer: with more, it is at least 60**23, which is larger than `_MAX_INT`."""
_LONG_BASE_60 = re.compile(rf"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9]){{{_MAX_COLONS + 1},}}")
_INT_TAG = "tag:yaml.org,2002:int"
_YAML_LOADER = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_SURROGATE = re.compile(r"\\(?:u|U0000)[dD][89a-fA-F][0-9a-fA-F]{2}")
"""An escaped surrogate. `yaml.safe_dump` writes them for paths that are not UTF-8, and libyaml rejects them."""


def read_yaml(path: Path, *, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """Return the content of a YAML file.

    Raises:
        ConfigError: the file is missing, not a regular file or not YAML, or it exceeds a limit: it is larger than `max_bytes`,
            is nested deeper than `MAX_DEPTH`, has more than `MAX_NODES` values, or has an integer of more than 40 digits.
    """
    return parse_yaml(read_text(path, max_bytes=max_bytes), what=str(path))


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """Return the content of a JSON file.

    Raises:
        ConfigError: the file is missing, not a regular file or not JSON, or it exceeds a limit: it is larger than `max_bytes`,
            is nested deeper than `MAX_DEPTH`, or has an integer of more than 40 digits.
    """
    return parse_json(read_text(path, max_bytes=max_bytes), what=str(path))


def read_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """Return the content of a UTF-8 file.

    Raises:
        ConfigError: the file is missing, not a regular file, larger than `max_bytes`, or not UTF-8.
    """
    content = read_bytes(path, max_bytes=max_bytes)
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def read_bytes(path: Path, *, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the content of a file.

    Raises:
        ConfigError: the file is missing, not a regular file, or larger than `max_bytes`.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is not a regular file")
        if status.st_size > max_bytes:
            raise ConfigError(f"{path}: has {status.st_size:,} bytes; at most {max_bytes:,} are read")
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def parse_yaml(text: str, *, what: str) -> Any:
    """Return the content of a YAML text, within the limits of `read_yaml`.

    >>> parse_yaml("layers: [3, 4]", what="config")
    {'layers': [3, 4]}

    Args:
        text: the YAML.
        what: the name of the file or option, which starts the messages.

    Raises:
        ConfigError: the text is not YAML, or exceeds a limit.
    """
    return _bounded(lambda: _load_yaml(text), "YAML", what)


def parse_json(text: str, *, what: str) -> Any:
    """Return the content of a JSON text, within the limits of `read_json`.

    >>> parse_json('{"layers": [3, 4]}', what="config.json")
    {'layers': [3, 4]}

    Args:
        text: the JSON.
        what: the name of the file, which starts the messages.

    Raises:
        ConfigError: the text is not JSON, or exceeds a limit.
    """
    return _bounded(lambda: json.loads(text), "JSON", what)


def _load_yaml(text: str) -> Any:
    """Return the content of a YAML text. The limits are checked on parser events, before any object is built.

    libyaml, which is several times as fast as PyYAML's own parser, has no such limits.
    """
    loader = yaml.SafeLoader if _SURROGATE.search(text) else _YAML_LOADER
    bounds = _YamlBounds()
    for event in yaml.parse(text, Loader=loader):
        bounds.check(event)
    return yaml.load(text, Loader=loader)


class _YamlBounds:
    """Counts the depth and the values of a YAML text; an alias counts as many values as the node that it refers to."""

    def __init__(self) -> None:
        self._num_values = 0
        self._opened: list[tuple[str | None, int]] = []
        """The lists and objects around the current value: anchor, and number of values before it."""
        self._sizes: dict[str | None, int] = {}

    def check(self, event: yaml.Event) -> None:
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, before = self._opened.pop()
            self._sizes[anchor] = self._num_values - before
        elif isinstance(event, yaml.NodeEvent):
            self._add(1 if not isinstance(event, yaml.AliasEvent) else self._size(event.anchor))
            if isinstance(event, yaml.CollectionStartEvent):
                self._opened.append((event.anchor, self._num_values - 1))
            elif isinstance(event, yaml.ScalarEvent):
                self._sizes[event.anchor] = 1
                if _is_long_base_60(event):
                    raise ConfigError(_TOO_MANY_DIGITS)

    def _add(self, num: int) -> None:
        if len(self._opened) >= MAX_DEPTH:
            raise ConfigError(_TOO_DEEP)
        self._num_values += num
        if self._num_values > MAX_NODES:
            raise ConfigError(f"it holds more than {MAX_NODES:,} values, those that aliases repeat included")

    def _size(self, alias: str | None) -> int:
        if any(anchor == alias for anchor, _ in self._opened):
            raise ConfigError("an alias refers to the list or object that contains it")
        return self._sizes.get(alias, 1)  # The loader rejects an undefined alias.


def _is_long_base_60(event: yaml.ScalarEvent) -> bool:
    """Whether a scalar is a base-60 integer such as `1:30:00` with too many parts: PyYAML parses them in quadratic time."""
    if event.tag == _INT_TAG:
        return event.value.count(":") > _MAX_COLONS
    return event.implicit[0] and _LONG_BASE_60.fullmatch(event.value) is not None


def _bounded(parse: Callable[[], Any], kind: str, what: str) -> Any:
    try:
        content = parse()
        _check_bounds(content)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{what}: {_TOO_DEEP}") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # PyYAML raises bare exceptions for values that their tag does not allow, such as `!!timestamp x`.
        raise ConfigError(f"{what}: is not {kind}: {' '.join(str(error).split()):.300}") from None
    return content


def _check_bounds(content: Any) -> None:
    level, depth = [content], 0
    while level:
        if depth > MAX_DEPTH:
            raise ConfigError(_TOO_DEEP)
        for value in level:
            if isinstance(value, int) and abs(value) >= _MAX_INT:
                raise ConfigError(_TOO_MANY_DIGITS)
        level, depth = [inner for value in level for inner in _members(value)], depth + 1


def _members(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list | tuple | set):
        yield from value
