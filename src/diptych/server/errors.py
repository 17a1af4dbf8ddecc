"""Responses to errors of routes, and to unknown paths and methods."""

from collections.abc import Iterable
from difflib import get_close_matches

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from diptych.core.errors import BusyError, DiptychError, ImageError, IndexingError
from diptych.core.terminal import visible
from diptych.server.fields import problem_of_fields
from diptych.server.problems import LOG, Overloaded, Problem, problem_response


def add_error_handlers(app: FastAPI) -> None:
    """Register handlers that turn the exceptions of routes into JSON problems."""

    def respond(request: Request, problem: Problem) -> JSONResponse:
        return problem_response(problem, request.url.path)

    @app.exception_handler(Problem)
    async def _problem(request: Request, error: Problem) -> JSONResponse:
        return respond(request, error)

    @app.exception_handler(DiptychError)
    async def _library_error(request: Request, error: DiptychError) -> JSONResponse:
        return respond(request, _problem_of_library_error(error))

    @app.exception_handler(RequestValidationError)
    async def _invalid_request(request: Request, error: RequestValidationError) -> JSONResponse:
        return respond(request, problem_of_fields(error.errors()))

    @app.exception_handler(Exception)
    async def _unexpected_error(request: Request, _error: Exception) -> JSONResponse:
        LOG.error("%s %s failed", visible(request.method), visible(request.url.path))  # The guard logs the traceback.
        return respond(request, Problem(500, "the server failed on this request; its log has the details"))

    @app.exception_handler(ClientDisconnect)
    async def _disconnected(request: Request, _error: ClientDisconnect) -> JSONResponse:
        return respond(request, Problem(400, "the body did not arrive"))  # No client receives it.

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        return respond(request, _problem_of_http_error(error, request, app.openapi()["paths"]))


def _problem_of_library_error(error: DiptychError) -> Problem:
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


def _problem_of_http_error(error: HTTPException, request: Request, paths: Iterable[str]) -> Problem:
    """The problem for an HTTP error of FastAPI, such as an unknown path or method. Its detail lists valid ones."""
    headers, detail = dict(error.headers or {}), str(error.detail)
    if error.status_code == 404:
        near = get_close_matches(request.url.path[:200], list(paths), n=1)
        hint = f"; did you mean {near[0]}?" if near else "."
        detail = f"this path does not exist{hint} /openapi.json lists all paths"
    if error.status_code == 405:
        methods = {*headers.get("Allow", "").split(", ")}
        allow = ", ".join(sorted(methods | ({"HEAD"} if "GET" in methods else set())))
        headers, detail = {"Allow": allow}, f"{request.method} is not allowed at this path; allowed: {allow}"
    return Problem(error.status_code, detail, headers=headers)
