"""A request's body as what it should be: JSON, or a form with files."""

import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from diptych.server.fields import problem_of_fields
from diptych.server.problems import Problem
from diptych.server.schemas import Uploaded

M = TypeVar("M", bound=BaseModel)

_LONG = 2**18
"""Bytes of JSON above which others are served while it is read."""


MAX_DEPTH = 32
"""Of a JSON body."""
_STRING = re.compile(rb'"[^"]*"')
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)) - set(b'[]{}"'))

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a blocking call in a thread."""


async def read_body(request: Request, model: type[M], in_thread: InThread) -> M:
    """What was sent, checked. A long body is parsed in a thread.

    Raises:
        Problem: the body is not JSON or a form, or is compressed (415), does not match its type (400), or has a wrong field
            (422).
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise Problem(415, "send the body as it is, without Content-Encoding")
    try:
        if kind == "multipart/form-data" and "images" in model.model_fields:
            return model.model_validate(await _form(request))
        if kind != "application/json":
            form = ", or a form as multipart/form-data" if "images" in model.model_fields else ""
            raise Problem(415, f"send JSON with Content-Type: application/json{form}; this is {kind[:60]!r}")
        body = await request.body()
        if len(body) > _LONG:
            parsed: M = await in_thread(partial(_parse, model, body))
            return parsed
        return _parse(model, body)
    except ValidationError as error:
        told = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_input=False, include_url=False)]
        raise problem_of_fields(told, model.model_fields) from None


def _parse(model: type[M], body: bytes) -> M:
    if is_nested_deeper(body, MAX_DEPTH):
        raise Problem(400, f"the JSON is nested more than {MAX_DEPTH} levels deep")
    return model.model_validate_json(body)


def is_nested_deeper(body: bytes, depth: int) -> bool:
    """Whether JSON has brackets within brackets to more than a depth. Takes a fraction of the time of parsing.

    >>> is_nested_deeper(b'{"a": [[1], "[[["]}', 3), is_nested_deeper(b'{"a": [[1]]}', 2)
    (False, True)
    """
    if body.count(b"[") + body.count(b"{") <= depth:
        return False
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = _STRING.sub(b"", plain.translate(_BRACKETS, _OTHERS))
    for _ in range(depth):
        brackets = brackets.replace(b"[]", b"")  # The innermost level.
    return b"[]" in brackets or b"[" * (depth + 1) in brackets


async def _form(request: Request) -> dict[str, Any]:
    """Fields that may be there several times are lists; files are pictures."""
    found: dict[str, Any] = {}
    try:
        async with request.form(max_files=1000, max_fields=2000) as form:
            for name, value in form.multi_items():
                content = Uploaded(await value.read()) if isinstance(value, UploadFile) else value
                if name in {"images", "texts", "classes", "templates"}:
                    found.setdefault(name, []).append(content)
                else:
                    found[name] = content
    except (MultiPartException, ValueError, KeyError) as error:
        raise Problem(400, f"the form cannot be read ({type(error).__name__})") from None
    return found


def body_of(model: type[BaseModel]) -> dict[str, Any]:
    """For the description of a route: its body as JSON, and where there are pictures as a form."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content: dict[str, Any] = {"application/json": {"schema": schema, "examples": _examples(model)}}
    if "images" in model.model_fields:
        fields = {
            "images": {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}}
        }
        lists = [name for name in ("texts", "classes", "templates") if name in model.model_fields]
        fields |= {name: {"type": "array", "items": {"type": "string", "minLength": 1}} for name in lists}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": fields, "required": ["images"]}}
    return {"requestBody": {"required": True, "content": content}}


def _examples(model: type[BaseModel]) -> dict[str, Any]:
    extra = model.model_config.get("json_schema_extra")
    examples: Any = extra.get("examples", []) if isinstance(extra, dict) else []
    return {f"example {number}": {"value": value} for number, value in enumerate(examples, start=1)}
