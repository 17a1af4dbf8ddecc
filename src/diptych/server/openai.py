"""`POST /v1/embeddings` as OpenAI has it, so that its clients work unchanged."""

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from diptych.server.api import PROBLEMS, written
from diptych.server.engine import Engine
from diptych.server.problems import Problem
from diptych.server.reading import body_of, read_body
from diptych.server.schemas import OpenAIAnswer, OpenAIRequest


def openai_api(engine: Engine) -> APIRouter:
    """One route: texts alone, for that is all that its clients send."""
    router = APIRouter(prefix="/v1", responses=PROBLEMS)

    @router.post("/embeddings", openapi_extra=body_of(OpenAIRequest), response_model=OpenAIAnswer)
    async def embeddings(request: Request) -> JSONResponse:
        """Unit embeddings of texts."""
        asked = await read_body(request, OpenAIRequest, partial(engine.in_thread, "bodies"))
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        dim = engine.clip.bundle.config.embed_dim
        if asked.dimensions not in {None, dim}:
            raise Problem(422, f"dimensions is {asked.dimensions}; this model has {dim} and no other number")
        emb = await engine.embed_texts(texts)
        encoded = await engine.in_thread("bodies", partial(engine.clip.bundle.tokenizer.encode, texts))
        tokens = int(encoded.lengths.sum())
        rows = [
            {"object": "embedding", "index": number, "embedding": row}
            for number, row in enumerate(written(emb, asked.encoding_format))
        ]
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": rows, "model": asked.model, "usage": usage})

    return router
