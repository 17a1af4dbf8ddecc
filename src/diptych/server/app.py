"""The ASGI application of the server: the API, the search page, and the guard around them."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic.json_schema import models_json_schema
from starlette.types import ASGIApp

from diptych.core.version import VERSION
from diptych.index.protocol import Index
from diptych.inference.loaded_bundle import LoadedBundle
from diptych.server.api import api
from diptych.server.engine import Engine
from diptych.server.errors import add_error_handlers
from diptych.server.guard import Guard
from diptych.server.limits import Limits
from diptych.server.openai import openai_api
from diptych.server.problems import Problem
from diptych.server.schemas import BODIES

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
    """The ASGI application of a server. Any ASGI server, such as uvicorn, can run it.

    Args:
        clip: the model.
        index: the index to search; None for a server that only embeds and classifies.
        limits: limits of requests and queues; the default limits if None.
        keys: valid API keys; empty to allow requests without a key.
        hosts: names of this server that the `Host` header may contain; empty to allow any name. The check prevents DNS
            rebinding, in which another site makes its own host name point to this server.
        has_absolute_paths: whether hits contain the absolute path of their file. Use it only if other machines cannot reach
            the server.

    Raises:
        ConfigError: a key has a character that is not printable ASCII.
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
        redirect_slashes=False,  # A redirect would repeat the host name of the request.
        lifespan=lifespan,
    )
    add_error_handlers(app)
    app.include_router(api(engine, has_absolute_paths=has_absolute_paths))
    app.include_router(openai_api(engine))
    _add_health(app, engine)
    _describe_bodies(app)
    add_page(app, "search")
    return Guard(app, limits=engine.limits, counts=engine.counts, keys=keys, hosts=hosts)


def add_page(app: FastAPI, name: str) -> None:
    """Add a page to an application, at `/`. Its files are under `/page`, and the files of all pages are under `/shared`.

    Args:
        app: the application.
        name: name of the page's folder in `static`.
    """
    app.mount("/page", StaticFiles(directory=_STATIC / name))
    app.mount("/shared", StaticFiles(directory=_STATIC / "shared"))

    @app.get("/", include_in_schema=False)
    async def page() -> FileResponse:
        return FileResponse(_STATIC / name / "index.html", media_type="text/html; charset=utf-8")


def _add_health(app: FastAPI, engine: Engine) -> None:
    """Add the routes for monitoring."""

    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Report that the server is running."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Report whether the server and its index respond in time."""
        reason = await engine.unready_reason()
        if reason is not None:
            raise Problem(503, f"not ready: {reason}")
        return {"status": "ready"}

    @app.get("/metrics", response_class=Response)
    async def metrics() -> Response:
        """Return the metrics of the server in Prometheus's text format."""
        return Response(engine.counts.text(), media_type=CONTENT_TYPE_LATEST)


def _describe_bodies(app: FastAPI) -> None:
    """Add the schemas of request bodies to `/openapi.json`. FastAPI does not know them, because `read_body` parses bodies."""
    default_openapi = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = default_openapi()
            _, definitions = models_json_schema(
                [(model, "validation") for model in BODIES], ref_template="#/components/schemas/{model}"
            )
            schema.setdefault("components", {}).setdefault("schemas", {}).update(definitions["$defs"])
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
