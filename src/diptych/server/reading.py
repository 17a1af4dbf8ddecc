"""A request's body as what it should be: JSON, or a form with files."""

from typing import Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException

from diptych.server.problems import Problem
from diptych.server.schemas import Uploaded

M = TypeVar("M", bound=BaseModel)

_LONG = 2**18
"""Bytes of JSON above which others are served while it is read."""


async def read_body(request: Request, model: type[M]) -> M:
    """What was sent, checked.

    Raises:
        Problem: it is neither JSON nor a form, or not what it says it is.
        RequestValidationError: a field is wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    try:
        if kind == "multipart/form-data" and "images" in model.model_fields:
            return model.model_validate(await _form(request))
        if kind not in {"application/json", ""}:
            raise Problem(415, f"send JSON, not {kind[:60]!r}")
        body = await request.body()
        if len(body) > _LONG:
            return await run_in_threadpool(model.model_validate_json, body)
        return model.model_validate_json(body)
    except ValidationError as error:
        told = [{**one, "loc": ("body", *one["loc"])} for one in error.errors(include_input=False, include_url=False)]
        raise RequestValidationError(told) from None


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
