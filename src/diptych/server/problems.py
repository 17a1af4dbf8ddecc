"""Error responses as JSON problems (RFC 9457). They contain no details of the implementation."""

import logging
from http.client import responses
from typing import Any

from fastapi.responses import JSONResponse

LOG = logging.getLogger("diptych.server")

OPENAI_PATHS = ("/v1/embeddings", "/v1/models", "/v1/chat/", "/v1/completions", "/v1/responses")
"""Paths to which OpenAI's clients send requests, including those that this server does not have."""


class Problem(Exception):  # noqa: N818  (named as the standard names it)
    """An error response: the request is wrong, or the server cannot handle it now.

    Args:
        status: HTTP status.
        detail: what is wrong, and what to do.
        headers: headers of the response.
        code: machine-readable code on the paths of OpenAI's API; the default depends on the status.
        more: further fields of the response.
    """

    def __init__(
        self, status: int, detail: str, *, headers: dict[str, str] | None = None, code: str | None = None, **more: Any
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers, self.more = status, detail, headers, more
        self.code = code or {401: "invalid_api_key", 429: "rate_limit_exceeded"}.get(
            status, responses.get(status, "Error").lower().replace(" ", "_")
        )


class Overloaded(Problem):
    """The server has too many requests (429).

    Args:
        reason: what the server has too many of; the beginning of `detail`.
        retry_after_s: seconds after which the client should try again, rounded to at least 1.
    """

    def __init__(self, reason: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(429, f"{reason}; try again later", headers={"Retry-After": str(max(1, round(retry_after_s)))})


def too_late() -> Problem:
    """The response to a request that took longer than the deadline (503)."""
    detail = "the request took too long; send fewer inputs at once, or start the server with a longer --deadline"
    return Problem(503, detail, headers={"Retry-After": "1"})


def problem_response(problem: Problem, path: str) -> JSONResponse:
    """The JSON response for a problem. On the paths of OpenAI's API it also has `error`, from which clients read the message.

    Args:
        problem: the problem to report.
        path: the path of the request.
    """
    title = responses.get(problem.status, "Error")
    body: dict[str, Any] = {"type": "about:blank", "title": title, "status": problem.status, "detail": problem.detail}
    body |= problem.more
    if path.startswith(OPENAI_PATHS):
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(problem.status, "invalid_request_error")
        kind = "server_error" if problem.status >= 500 else kind
        body["error"] = {"message": problem.detail, "type": kind, "param": None, "code": problem.code}
    return JSONResponse(body, problem.status, headers=problem.headers, media_type="application/problem+json")
