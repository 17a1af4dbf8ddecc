"""Parses the body of a request: JSON, or a form with files."""

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
"""Size in bytes above which JSON is parsed in a thread, so that it does not block the event loop."""


MAX_DEPTH = 32
"""Maximum nesting depth of a JSON body."""
_STRING = re.compile(rb'"[^"]*"')
_BRACKETS = bytes.maketrans(b"{}", b"[]")
_OTHERS = bytes(set(range(256)) - set(b'[]{}"'))

InThread = Callable[[Callable[[], Any]], Awaitable[Any]]
"""Runs a blocking call in a thread."""


async def read_body(request: Request, model: type[M], in_thread: InThread) -> M:
    """Parse and validate the body of a request.

    Args:
        request: the request.
        model: the expected type. If it has a field `images`, a form (`multipart/form-data`) is accepted, too.
        in_thread: runs the parsing of a large body.

    Raises:
        Problem: the body is neither JSON nor a form, or is compressed (415), is malformed (400), or has an invalid field (422).
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
            return await in_thread(partial(_parse, model, body))
        return _parse(model, body)
    except ValidationError as error:
        errors = error.errors(include_input=False, include_url=False)
        located = [{**one, "loc": ("body", *one["loc"])} for one in errors]
        raise problem_of_fields(located, model.model_fields) from None


def _parse(model: type[M], body: bytes) -> M:
    if is_nested_deeper(body, MAX_DEPTH):
        raise Problem(400, f"the JSON is nested more than {MAX_DEPTH} levels deep")
    return model.model_validate_json(body)


def is_nested_deeper(body: bytes, depth: int) -> bool:
    """Whether JSON is nested more than `depth` levels deep. This takes a fraction of the time of parsing.

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
    """The fields of a form. Fields that may occur several times are lists; uploaded files are images."""
    values: dict[str, Any] = {}
    try:
        async with request.form(max_files=1000, max_fields=2000) as form:
            for name, value in form.multi_items():
                content = Uploaded(await value.read()) if isinstance(value, UploadFile) else value
                if name in {"images", "texts", "classes", "templates"}:
                    values.setdefault(name, []).append(content)
                else:
                    values[name] = content
    except (MultiPartException, ValueError, KeyError) as error:
        raise Problem(400, f"the form cannot be read ({type(error).__name__})") from None
    return values


def body_schema(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI description of a request body: JSON, and a form if the model has a field `images`."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    extra: Any = model.model_config["json_schema_extra"]
    examples = {f"example {number}": {"value": value} for number, value in enumerate(extra["examples"], start=1)}
    content: dict[str, Any] = {"application/json": {"schema": schema, "examples": examples}}
    if "images" in model.model_fields:
        fields = {
            "images": {"type": "array", "items": {"type": "string", "contentMediaType": "application/octet-stream"}}
        }
        lists = [name for name in ("texts", "classes", "templates") if name in model.model_fields]
        fields |= {name: {"type": "array", "items": {"type": "string", "minLength": 1}} for name in lists}
        content["multipart/form-data"] = {"schema": {"type": "object", "properties": fields, "required": ["images"]}}
    return {"requestBody": {"required": True, "content": content}}
