"""Converts pydantic's validation errors into problems with instructions for the reader."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from diptych.core.errors import unknown_name
from diptych.core.terminal import visible
from diptych.server.problems import Problem

_MAX_ERRORS = 20
"""Maximum number of errors in one response."""
_OF_UNION = re.compile(r"(?:constrained-|function-|list\[|literal\[|nullable\[).*|str|int|float")
"""Matches the parts of pydantic's error locations that name a type of a union."""
_OTHER_TYPES = {"list_type", "string_type"}
"""Error types that are dropped if another error has the same location: they belong to another type of a union."""
_MESSAGES = {
    "extra_forbidden": "is not a field of this request",
    "list_type": "must be a valid array, even of one item",
    "missing": "is required",
    "model_attributes_type": "must be a JSON object",
    "model_type": "must be a JSON object",
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_unicode": "must be a text",
    "too_short": "must have at least one item",
}


def problem_of_fields(errors: Sequence[Any], known: Iterable[str] = ()) -> Problem:
    """The problem for invalid fields, with their locations and errors. It never contains the values that were sent.

    Args:
        errors: the validation errors of pydantic.
        known: names of the request's fields.

    Returns:
        A problem with status 400 if the body is not JSON, otherwise with status 422.
    """
    broken = next((error["msg"] for error in errors if error["type"] == "json_invalid"), None)
    if broken is not None:
        return Problem(400, f"the body is not JSON: {broken.removeprefix('Invalid JSON: ')}")
    found: dict[str, dict[str, str]] = {}
    for error in errors[:_MAX_ERRORS]:
        where = "/".join(str(part) for part in error["loc"] if not _OF_UNION.fullmatch(str(part)))
        found.setdefault(where, {})[error["type"]] = _message(error, list(known))
    # A union has an error for each of its types. The error with the deepest location belongs to the intended type.
    deepest = [where for where in found if not any(other.startswith(f"{where}/") for other in found)]
    payload = [{"where": where, "what": _joined(found[where])} for where in deepest]
    first = f"{payload[0]['where']}: {payload[0]['what']}" if payload else "the request cannot be read"
    code = next((error["type"] for error in errors if error["type"] == "token_ids"), None)
    return Problem(422, first, code=code, errors=payload)


def _message(error: Mapping[str, Any], known: list[str]) -> str:
    kind, loc = error["type"], error["loc"]
    if kind == "extra_forbidden" and known and len(loc) == 2:
        return unknown_name("field", visible(str(loc[1])[:60]), known)
    return _MESSAGES.get(kind) or str(error["msg"]).removeprefix("Value error, ")


def _joined(messages: Mapping[str, str]) -> str:
    relevant = [message for kind, message in messages.items() if kind not in _OTHER_TYPES] or list(messages.values())
    return ", or ".join(relevant)
