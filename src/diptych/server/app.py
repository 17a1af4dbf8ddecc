"""The application: routes, page, and the guard around them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel
from starlette.types import ASGIApp

from diptych.core.version import VERSION
from diptych.index.protocol import Index
from diptych.inference.loaded import LoadedBundle
from diptych.server import schemas
from diptych.server.api import api
from diptych.server.engine import Engine
from diptych.server.errors import answer_problems
from diptych.server.guard import Guard
from diptych.server.limits import Limits
from diptych.server.openai import openai_api
from diptych.server.problems import Problem

_STATIC = Path(__file__).parent / "static"


def create_app(
    clip: LoadedBundle,
    index: Index | None = None,
    *,
    limits: Limits | None = None,
    keys: Sequence[str] = (),
    hosts: Sequence[str] = (),
    has_absolute_paths: bool = False,
) -> ASGIApp:
    """What uvicorn, or any ASGI server, serves.

    Args:
        clip: the model.
        index: the pictures that are searched; None for a server that embeds and classifies alone.
        limits: what is taken from requests.
        keys: each lets who has it in; none lets everybody in.
        hosts: names by which the server may be asked for; none takes any. It keeps a page of another site from asking by a name
            that it made to point here.
        has_absolute_paths: whether hits have the absolute path of their file; only for a server that other machines cannot
            reach.
    """
    engine = Engine(clip, index, limits or Limits())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await engine.start()
        try:
            yield
        finally:
            await engine.stop()

    app = FastAPI(
        title="Diptych",
        version=VERSION,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # A redirect would name the host that the request names.
        lifespan=lifespan,
    )
    answer_problems(app)
    app.include_router(api(engine, has_absolute_paths=has_absolute_paths))
    app.include_router(openai_api(engine))
    app.include_router(_health(engine))
    _describe_bodies(app)
    add_page(app, "search")
    return Guard(app, limits=engine.limits, counts=engine.counts, keys=keys, hosts=hosts)


def add_page(app: FastAPI, name: str) -> None:
    """A page at `/`, with its files under `/page` and what all pages have under `/shared`."""
    app.mount("/page", StaticFiles(directory=_STATIC / name))
    app.mount("/shared", StaticFiles(directory=_STATIC / "shared"))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / name / "index.html", media_type="text/html; charset=utf-8")


def _health(engine: Engine) -> APIRouter:
    """For what watches over the server."""
    router = APIRouter()

    @router.get("/healthz")
    async def healthz() -> dict[str, str]:
        """It runs."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether the server and its index respond in time."""
        reason = await engine.why_not_ready()
        if reason is not None:
            raise Problem(503, f"not ready: {reason}")
        return {"status": "ready"}

    @router.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """For Prometheus."""
        return Response(engine.counts.text(), media_type=CONTENT_TYPE_LATEST)

    return router


def _describe_bodies(app: FastAPI) -> None:
    """Bodies are read by hand, so `/openapi.json` is told of them by hand."""
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = described()
            known = schema.setdefault("components", {}).setdefault("schemas", {})
            for model in (
                schemas.EmbedRequest,
                schemas.SimilarityRequest,
                schemas.ClassifyRequest,
                schemas.SearchRequest,
                schemas.OpenAIRequest,
                schemas.ProblemAnswer,
            ):
                _add(known, model)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _add(known: dict[str, Any], model: type[BaseModel]) -> None:
    own = model.model_json_schema(ref_template="#/components/schemas/{model}")
    known |= own.pop("$defs", {})
    known[model.__name__] = own
