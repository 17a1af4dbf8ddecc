"""`POST /v1/embeddings` and `GET /v1/models`, compatible with OpenAI's clients."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParam
from fastapi.responses import JSONResponse

from diptych.server.api import PROBLEMS, written
from diptych.server.engine import Engine
from diptych.server.parse_body import body_of, read_body
from diptych.server.problems import Problem
from diptych.server.schemas import OpenAIAnswer, OpenAIModel, OpenAIModels, OpenAIRequest


def openai_api(engine: Engine) -> APIRouter:
    """Routes for embeddings of texts, the only input of these clients, and for the name of the model."""
    router = APIRouter(prefix="/v1", responses=PROBLEMS)
    known = _model(engine)

    @router.post("/embeddings", openapi_extra=body_of(OpenAIRequest), response_model=OpenAIAnswer)
    async def embeddings(request: Request) -> JSONResponse:
        """Unit embeddings of texts."""
        asked = await read_body(request, OpenAIRequest, partial(engine.in_thread, "bodies"))
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        dim = engine.clip.bundle.config.embed_dim
        if asked.dimensions not in {None, dim}:
            raise Problem(
                422,
                f"dimensions is {asked.dimensions}; this model has {dim} and supports no other number: leave it out",
            )
        emb = await engine.embed_texts(texts)

        def answer() -> JSONResponse:
            tokens = int(engine.clip.bundle.tokenizer.encode(texts).lengths.sum())
            rows = [
                {"object": "embedding", "index": number, "embedding": row}
                for number, row in enumerate(written(emb, asked.encoding_format))
            ]
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            return JSONResponse({"object": "list", "data": rows, "model": asked.model, "usage": usage})

        return await engine.in_thread("bodies", answer)

    @router.get("/models")
    async def models() -> OpenAIModels:
        """The only model of this server."""
        return OpenAIModels(data=[known])

    @router.get("/models/{id:path}")
    async def model(
        name: Annotated[str, PathParam(alias="id", description="An id that `/v1/models` returns.")],
    ) -> OpenAIModel:
        """The model, if the id is the name of its bundle, its identity, or `diptych`."""
        if name not in {known.id, engine.clip.identity, "diptych"}:
            raise Problem(404, f"this server has one model, {known.id}", code="model_not_found")
        return known

    return router


def _model(engine: Engine) -> OpenAIModel:
    path = engine.clip.path
    if path is None or not path.exists():
        return OpenAIModel(id="diptych" if path is None else path.name, created=0)
    return OpenAIModel(id=path.resolve().name, created=int(path.stat().st_mtime))
