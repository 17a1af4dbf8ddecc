"""YAML and JSON files of settings, read within bounds, so that a file from a stranger costs little memory and time.

`core.settings` re-exports the two readers; code outside `core` imports them from there.
"""

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from diptych.core.errors import ConfigError

MAX_BYTES = 16 * 2**20
"""Largest file that is read. CLIP's vocabulary as JSON has 1 MiB, the `tokenizer.json` of a large language model 17 MB."""
MAX_YAML_BYTES = 2**20
"""Largest YAML file. PyYAML parses about 0.1 MiB per second."""
MAX_DEPTH = 64
"""Deepest nesting of lists and objects."""
MAX_NODES = 100_000
"""Most values of a YAML file, those that aliases repeat counted each time."""
_MAX_INT = 10**40


def read_yaml(path: Path, *, max_bytes: int = MAX_YAML_BYTES) -> Any:
    """The content of a YAML file.

    Raises:
        ConfigError: the file is missing, not a regular file, not YAML, or beyond a bound: larger than `max_bytes`, nested
            deeper than `MAX_DEPTH`, more than `MAX_NODES` values, or an integer of more than 40 digits.
    """
    return parse_yaml(read_text(path, max_bytes=max_bytes), what=str(path))


def read_json(path: Path, *, max_bytes: int = MAX_BYTES) -> Any:
    """The content of a JSON file.

    Raises:
        ConfigError: the file is missing, not a regular file, not JSON, or beyond a bound: larger than `max_bytes`, nested
            deeper than `MAX_DEPTH`, or an integer of more than 40 digits.
    """
    return parse_json(read_text(path, max_bytes=max_bytes), what=str(path))


def read_text(path: Path, *, max_bytes: int = MAX_BYTES) -> str:
    """The content of a UTF-8 file.

    Raises:
        ConfigError: the file is missing, not a regular file, larger than `max_bytes`, or not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: is not a regular file")
        if status.st_size > max_bytes:
            raise ConfigError(f"{path}: has {status.st_size:,} bytes; at most {max_bytes:,} are read")
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from None


def parse_yaml(text: str, *, what: str) -> Any:
    """The content of a YAML text, within the bounds of `read_yaml`.

    >>> parse_yaml("layers: [3, 4]", what="config")
    {'layers': [3, 4]}

    Args:
        text: the YAML.
        what: the name of the file or option, which starts the messages.

    Raises:
        ConfigError: the text is not YAML, or is beyond a bound.
    """
    return _bounded(lambda: yaml.load(text, Loader=_BoundedLoader), "YAML", what)


def parse_json(text: str, *, what: str) -> Any:
    """The content of a JSON text, within the bounds of `read_json`.

    >>> parse_json('{"layers": [3, 4]}', what="config.json")
    {'layers': [3, 4]}

    Args:
        text: the JSON.
        what: the name of the file, which starts the messages.

    Raises:
        ConfigError: the text is not JSON, or is beyond a bound.
    """
    return _bounded(lambda: json.loads(text), "JSON", what)


class _BoundedLoader(yaml.SafeLoader):
    """Counts depth and values while it composes, before anything is built of them."""

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._depth = self._num_nodes = 0
        self._sizes: dict[int, int] = {}

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias, before = self.check_event(yaml.AliasEvent), self._num_nodes
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ConfigError(_too_deep())
        node = super().compose_node(parent, index)
        self._depth -= 1
        if is_alias and id(node) not in self._sizes:
            raise ConfigError("an alias refers to the list or object that contains it")
        self._num_nodes += self._sizes[id(node)] if is_alias else 1
        if self._num_nodes > MAX_NODES:
            raise ConfigError(f"it holds more than {MAX_NODES:,} values, those that aliases repeat included")
        if not is_alias:
            self._sizes[id(node)] = self._num_nodes - before
        return node


def _bounded(parse: Callable[[], Any], kind: str, what: str) -> Any:
    try:
        content = parse()
        _check_bounds(content)
    except ConfigError as error:
        raise ConfigError(f"{what}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{what}: {_too_deep()}") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # PyYAML raises bare exceptions for values that their tag does not allow, such as `!!timestamp x`.
        raise ConfigError(f"{what}: is not {kind}: {' '.join(str(error).split()):.300}") from None
    return content


def _check_bounds(content: Any) -> None:
    level, depth = [content], 0
    while level:
        if depth > MAX_DEPTH:
            raise ConfigError(_too_deep())
        for value in level:
            if isinstance(value, int) and abs(value) >= _MAX_INT:
                raise ConfigError("it holds an integer of more than 40 digits")
        level, depth = [inner for value in level for inner in _members(value)], depth + 1


def _members(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value
        yield from value.values()
    elif isinstance(value, list | tuple | set):
        yield from value


def _too_deep() -> str:
    return f"its lists and objects are nested more than {MAX_DEPTH} deep"
