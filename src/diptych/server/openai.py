"""`POST /v1/embeddings` and `GET /v1/models`, compatible with OpenAI's clients."""

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Request
from fastapi import Path as PathParam
from fastapi.responses import JSONResponse

from diptych.server.api import PROBLEMS, encode_embeddings
from diptych.server.engine import Engine
from diptych.server.parse_body import body_schema, read_body
from diptych.server.problems import Problem
from diptych.server.schemas import OpenAIAnswer, OpenAIModel, OpenAIModels, OpenAIRequest


def openai_api(engine: Engine) -> APIRouter:
    """The routes of OpenAI's API: text embeddings, and the name of the model."""
    router = APIRouter(prefix="/v1", responses=PROBLEMS)
    known = _model(engine)

    @router.post("/embeddings", openapi_extra=body_schema(OpenAIRequest), response_model=OpenAIAnswer)
    async def embeddings(request: Request) -> JSONResponse:
        """Embed texts as unit vectors."""
        body = await read_body(request, OpenAIRequest, partial(engine.run_in_thread, "bodies"))
        texts = [body.input] if isinstance(body.input, str) else body.input
        dim = engine.clip.bundle.config.embed_dim
        if body.dimensions not in {None, dim}:
            raise Problem(422, f"dimensions is {body.dimensions}; this model supports only {dim}: leave it out")
        emb = await engine.embed_texts(texts)

        def respond() -> JSONResponse:
            tokens = int(engine.clip.bundle.tokenizer.encode(texts).lengths.sum())
            rows = [
                {"object": "embedding", "index": number, "embedding": row}
                for number, row in enumerate(encode_embeddings(emb, body.encoding_format))
            ]
            usage = {"prompt_tokens": tokens, "total_tokens": tokens}
            return JSONResponse({"object": "list", "data": rows, "model": body.model, "usage": usage})

        return await engine.run_in_thread("bodies", respond)

    @router.get("/models")
    async def models() -> OpenAIModels:
        """List the models of this server. There is only one."""
        return OpenAIModels(data=[known])

    @router.get("/models/{id:path}")
    async def model(name: Annotated[str, PathParam(alias="id", description="An id from `/v1/models`.")]) -> OpenAIModel:
        """Describe the model. Its id is the name of the bundle, the identity of the bundle, or `diptych`."""
        if name not in {known.id, engine.clip.identity, "diptych"}:
            raise Problem(404, f"this server has one model, {known.id}", code="model_not_found")
        return known

    return router


def _model(engine: Engine) -> OpenAIModel:
    path = engine.clip.path
    if path is None or not path.exists():
        return OpenAIModel(id="diptych" if path is None else path.name, created=0)
    return OpenAIModel(id=path.resolve().name, created=int(path.stat().st_mtime))
