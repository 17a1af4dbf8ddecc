"""A check of the merges in a `tokenizer.json`, without which a damaged file would end the process."""

import re

from diptych.core.errors import ConfigError
from diptych.core.settings import parse_json

_PREFIX = re.compile(r'"continuing_subword_prefix"\s*:\s*"(?!")|\\u00[4-7]')
"""Matches a file with a prefix of subwords, or with a name whose letters are escaped."""


def check_merges(text: str) -> None:
    """Check that all merges have the prefix of subwords, if the file has one.

    The `tokenizers` library cuts as many bytes off the second part of a merge. If they are a part of a character, it ends the
    process.

    Args:
        text: content of a `tokenizer.json`.

    Raises:
        ConfigError: a merge lacks the prefix, or the file is not JSON.
    """
    if _PREFIX.search(text) is None:
        return
    content = parse_json(text, what="the tokenizer")
    model = content.get("model") if isinstance(content, dict) else None
    prefix, merges = (
        (model.get("continuing_subword_prefix"), model.get("merges")) if isinstance(model, dict) else ("", [])
    )
    if not prefix or not merges:
        return
    seconds = [merge.split(" ")[-1] if isinstance(merge, str) else merge[-1] for merge in merges]
    if not str(prefix).isascii() or not all(str(second).startswith(str(prefix)) for second in seconds):
        raise ConfigError(f"its merges do not have the prefix {prefix!r:.40} of its subwords")
