"""Every answer that is no success is a JSON problem (RFC 9457), and none tells how the server is built."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from diptych.core.errors import BusyError, DiptychError, ImageError, IndexingError
from diptych.core.terminal import visible

LOG = logging.getLogger("diptych.server")


class Problem(Exception):  # noqa: N818  (named as the standard names it)
    """What is wrong with a request, or with the server's moment."""

    def __init__(self, status: int, detail: str, *, headers: dict[str, str] | None = None, **more: Any) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers, more


class Overloaded(Problem):
    """So many wait that one more would only wait in vain."""

    def __init__(self, what: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(429, f"{what}; try again later", headers={"Retry-After": str(max(1, round(retry_after_s)))})


def too_late() -> Problem:
    """The answer to a request that took longer than the deadline."""
    return Problem(503, "it took too long", headers={"Retry-After": "1"})


def problem_response(problem: Problem) -> JSONResponse:
    """As it is sent."""
    body = {"type": "about:blank", "title": _title(problem.status), "status": problem.status, "detail": problem.detail}
    return JSONResponse(
        body | problem.more, problem.status, headers=problem.headers, media_type="application/problem+json"
    )


def answer_problems(app: FastAPI) -> None:
    """Have every error that a route raises answered in this way."""

    @app.exception_handler(Problem)
    async def _told(_request: Request, error: Problem) -> JSONResponse:
        return problem_response(error)

    @app.exception_handler(DiptychError)
    async def _refused(_request: Request, error: DiptychError) -> JSONResponse:
        return problem_response(_of_library(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_request: Request, error: RequestValidationError) -> JSONResponse:
        return problem_response(_of_validation(error.errors()))

    @app.exception_handler(Exception)
    async def _failed(request: Request, _error: Exception) -> JSONResponse:
        LOG.error(
            "%s %s failed", visible(request.method), visible(request.url.path)
        )  # Its traceback follows, from the guard.
        return problem_response(Problem(500, "the server failed on this request; its log has the details"))

    @app.exception_handler(ClientDisconnect)
    async def _gone(_request: Request, _error: ClientDisconnect) -> JSONResponse:
        return problem_response(Problem(400, "the body did not come"))  # Nobody reads it.

    @app.exception_handler(HTTPException)
    async def _http(_request: Request, error: HTTPException) -> JSONResponse:
        return problem_response(Problem(error.status_code, str(error.detail), headers=dict(error.headers or {})))


def _of_library(error: DiptychError) -> Problem:
    match error:
        case ImageError():
            return Problem(422, f"a picture cannot be used: {error}")
        case BusyError():
            return Overloaded("the index is being written")
        case IndexingError():
            LOG.error("%s", visible(str(error)))
            return Problem(503, "the index cannot be read", headers={"Retry-After": "5"})
        case _:
            return Problem(422, str(error))


def _of_validation(errors: Sequence[Any]) -> Problem:
    """Where in the request, and what is wrong there; never what was sent."""
    told = [{"where": "/".join(map(str, error["loc"])), "what": error["msg"]} for error in errors[:20]]
    if any(error["type"] == "json_invalid" for error in errors):
        return Problem(400, "the body is no JSON", errors=told)
    first = f"{told[0]['where']}: {told[0]['what']}" if told else "the request cannot be read"
    return Problem(422, first, errors=told)


def _title(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"
