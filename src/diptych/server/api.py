"""The routes under `/v1`: embed, similarity, classify, search, and images of the index."""

import base64
from collections.abc import Callable, Sequence
from functools import partial
from os.path import basename
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Request, Response
from fastapi import Path as PathParam
from fastapi.responses import JSONResponse
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.version import VERSION
from diptych.images.formats import remedy
from diptych.index.entry import Entry, SearchHit
from diptych.index.filters import Filter, parse_filter
from diptych.index.protocol import Index
from diptych.inference.classify import calibrated_threshold, check_distinct, class_means, class_prompts, ranked_classes
from diptych.inference.query import unit_sums
from diptych.inference.similarity import softmax
from diptych.search.similar import SIMILAR_COSINE, HitGroup, search_groups
from diptych.server import schemas
from diptych.server.engine import Engine
from diptych.server.parse_body import body_schema, read_body
from diptych.server.problems import Problem

_DESCRIPTIONS = {
    400: "The request is malformed.",
    401: "A valid key is missing.",
    403: "A page of another site sent the request.",
    404: "There is no such resource.",
    408: "The request arrived too slowly.",
    410: "The file no longer exists, or has changed.",
    413: "The request is too large.",
    415: "The body is neither JSON nor a form.",
    421: "The server does not answer for this host.",
    422: "A value in the request is invalid.",
    429: "The server has too many requests.",
    503: "The server cannot answer in time.",
}
_PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": description, "model": schemas.ProblemAnswer, "content": _PROBLEM}
    for status, description in _DESCRIPTIONS.items()
}
_CACHE_ONE_DAY = {"Cache-Control": "private, max-age=86400"}
_PROXY_HEADERS = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"}
Id = Annotated[str, PathParam(alias="id", pattern=schemas.ID_PATTERN, description="An id from a search result.")]


def api(engine: Engine, *, has_absolute_paths: bool = False) -> APIRouter:  # noqa: C901  (a list of routes)
    """The routes under `/v1`.

    Args:
        engine: the model and the index.
        has_absolute_paths: whether hits contain the absolute path of their file. Responses through a proxy never contain it.
    """
    router = APIRouter(prefix="/v1", responses=PROBLEMS)
    parse = partial(engine.run_in_thread, "bodies")

    async def hit_formatter(request: Request) -> Callable[[SearchHit | Entry], schemas.Hit]:
        folder = await engine.read_index(lambda index: index.common_folder())
        is_absolute = has_absolute_paths and not _PROXY_HEADERS & {*request.headers}
        return partial(format_hit, folder=folder, is_absolute=is_absolute)

    @router.get("/info")
    async def info() -> schemas.Info:
        """Describe the server: its model, its limits and its index."""
        return await _info(engine)

    @router.post("/embed", openapi_extra=body_schema(schemas.EmbedRequest), response_model=schemas.EmbedAnswer)
    async def embed(request: Request) -> Response:
        """Embed texts and images as unit vectors."""
        body = await read_body(request, schemas.EmbedRequest, parse)
        texts, images = await engine.embed_texts(body.texts), await engine.embed_images(body.images)

        def respond() -> JSONResponse:
            return JSONResponse(
                {
                    "model": engine.clip.identity,
                    "dim": engine.clip.bundle.config.embed_dim,
                    "texts": encode_embeddings(texts, body.encoding),
                    "images": encode_embeddings(images, body.encoding),
                }
            )

        return await engine.run_in_thread("bodies", respond)

    @router.post("/similarity", openapi_extra=body_schema(schemas.SimilarityRequest))
    async def similarity(request: Request) -> schemas.SimilarityAnswer:
        """Compare every image with every text."""
        body = await read_body(request, schemas.SimilarityRequest, parse)
        # Shape (images, texts).
        cosine = await engine.embed_images(body.images) @ (await engine.embed_texts(body.texts)).T
        probability = softmax(cosine * np.float32(engine.embedder.logit_scale))
        return schemas.SimilarityAnswer(cosine=cosine.tolist(), probability=probability.tolist())

    @router.post("/classify", openapi_extra=body_schema(schemas.ClassifyRequest))
    async def classify(request: Request) -> schemas.ClassifyAnswer:
        """Classify images, given only the names of the classes (zero-shot)."""
        return await _classify(engine, await read_body(request, schemas.ClassifyRequest, parse))

    @router.post("/search", openapi_extra=body_schema(schemas.SearchRequest))
    async def search(request: Request) -> schemas.SearchAnswer:
        """Search the images of the index by a weighted sum of texts and images."""
        body = await read_body(request, schemas.SearchRequest, parse)
        groups = await _groups(engine, body)
        to_hit = await hit_formatter(request)
        page = [
            schemas.SearchHit(**vars(to_hit(group.hit)), similar=[to_hit(other) for other in group.similar])
            for group in groups[: body.limit]
        ]
        return schemas.SearchAnswer(results=page, offset=body.offset, has_more=len(groups) > body.limit)

    @router.get("/images/{id}")
    async def image(request: Request, key: Id) -> schemas.Hit:
        """Describe an image of the index."""
        to_hit = await hit_formatter(request)
        return to_hit((await _entries(engine, key))[0])

    @router.get("/images/{id}/file", response_class=Response, responses={200: _picture("image/*")})
    async def file(key: Id) -> Response:
        """Return the file of an image."""
        content, kind = await engine.picture(await _entries(engine, key), None)
        return Response(content, media_type=kind, headers=_CACHE_ONE_DAY)

    @router.get("/images/{id}/thumb", response_class=Response, responses={200: _picture("image/webp")})
    async def thumb(key: Id, px: Literal["160", "320", "640"] = "320") -> Response:
        """Return a thumbnail of an image that fits a square with sides of `px` pixels."""
        content, kind = await engine.picture(await _entries(engine, key), int(px))
        return Response(content, media_type=kind, headers=_CACHE_ONE_DAY)

    @router.get("/images/{id}/heat", response_class=Response, responses={200: _picture("image/png")})
    async def heat(key: Id, text: Annotated[str, Query(min_length=1, max_length=2000, pattern=r"\S")]) -> Response:
        """Return an image with a heat map of the parts that match a text, cropped as the model sees it."""
        drawn = await engine.explain(await _entries(engine, key), text)
        return Response(drawn, media_type="image/png", headers=_CACHE_ONE_DAY)

    return router


def format_hit(found: SearchHit | Entry, *, folder: str | None, is_absolute: bool) -> schemas.Hit:
    """The description of an image of the index in a response.

    Args:
        found: the entry of the image, or a search hit with its score.
        folder: a folder that contains the image, to which `path` is relative; None for no path.
        is_absolute: whether to include the absolute path.
    """
    entry, score = (found.entry, found.score) if isinstance(found, SearchHit) else (found, None)
    return schemas.Hit(
        id=entry.digest,
        name=basename(entry.key),  # noqa: PTH119  (called for every hit; Path is ten times slower)
        path=None if folder is None else entry.key.removeprefix(f"{folder}/"),
        absolute_path=entry.key if is_absolute else None,
        score=score,
        width=entry.width,
        height=entry.height,
        taken=entry.taken,
        captions=list(entry.captions),
    )


def encode_embeddings(emb: Float32[ndarray, "N E"], encoding: Literal["float", "base64"]) -> list[Any]:
    """Embeddings for a JSON response: as lists of numbers, or as little-endian float32 bytes in base64."""
    if encoding == "float":
        return emb.tolist()
    return [base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in emb]


def _picture(kind: str) -> dict[str, Any]:
    return {"description": "The picture.", "content": {kind: {"schema": {"type": "string", "format": "binary"}}}}


async def _info(engine: Engine) -> schemas.Info:
    bundle, path = engine.clip.bundle, engine.clip.path
    try:
        threshold: float | None = calibrated_threshold(bundle.metrics)
    except ConfigError:
        threshold = None
    px = bundle.config.image.image_px
    return schemas.Info(
        version=VERSION,
        model=engine.clip.identity,
        bundle=None if path is None else path.resolve().name,
        dim=bundle.config.embed_dim,
        image_px=list(px) if isinstance(px, tuple) else px,
        device=_device_name(engine),
        heat_maps=engine.has_heat_maps,
        logit_scale=engine.embedder.logit_scale,
        threshold=threshold,
        pictures=None if engine.index is None else await engine.read_index(len),
        limits=schemas.InfoLimits(
            body_bytes=engine.limits.body_mb * 2**20,
            texts=engine.limits.max_texts,
            text_chars=engine.limits.text_chars,
            images=engine.limits.max_images,
        ),
        unreadable=None if engine.index is None else await engine.read_index(lambda index: index.num_broken()),
        left_out=None if engine.index is None else await engine.read_index(_left_out),
    )


def _left_out(index: Index) -> list[schemas.LeftOutFormat]:
    return [
        schemas.LeftOutFormat(suffix=suffix, num=num, remedy=remedy(suffix)) for suffix, num in index.left_out().items()
    ]


async def _classify(engine: Engine, body: schemas.ClassifyRequest) -> schemas.ClassifyAnswer:
    num_prompts, max_texts = len(body.classes) * len(body.templates), engine.limits.max_texts
    if num_prompts > max_texts:
        raise Problem(
            422,
            f"{num_prompts} prompts (classes times templates) in one request; at most {max_texts}: use fewer templates",
        )
    check_distinct(body.classes)
    threshold = calibrated_threshold(engine.clip.bundle.metrics) if body.threshold == "auto" else body.threshold
    prompts = await engine.embed_texts(class_prompts(body.classes, body.templates))
    cosine = await engine.embed_images(body.images) @ class_means(prompts, len(body.classes)).T
    ranked = ranked_classes(
        cosine, body.classes, names=[""] * len(cosine), logit_scale=engine.embedder.logit_scale, threshold=threshold
    )
    images = [
        {"best": result.best and result.best.name, "threshold": result.threshold, "scores": [*map(vars, result.scores)]}
        for result in ranked
    ]
    return schemas.ClassifyAnswer.model_validate({"images": images})


def _filter(where: str | None) -> Filter | None:
    if where is None or not where.strip():
        return None
    try:
        return parse_filter(where)
    except ConfigError as error:  # Its message begins with the name of the command-line option.
        raise Problem(422, str(error).removeprefix("--")) from None


async def _groups(engine: Engine, body: schemas.SearchRequest) -> list[HitGroup]:
    """The hits of the requested page and one more. Near-duplicates are grouped if the request says so."""
    engine.require_index()
    selected = _filter(body.where)
    end = body.offset + body.limit
    if end > engine.limits.results:
        raise Problem(422, f"offset + limit is {end}; at most {engine.limits.results}: use where to narrow the search")
    vector = await _query_vector(engine, body.all_terms)
    if body.group_similar is False:
        hits = await engine.search(vector, top=end + 1, skip=body.offset, selected=selected)
        return [HitGroup(hit=hit, similar=()) for hit in hits]
    threshold = SIMILAR_COSINE if body.group_similar is True else body.group_similar
    grouped = partial(search_groups, query=vector, top=end + 1, threshold=threshold, selected=selected)
    return (await engine.read_index(grouped))[body.offset :]


async def _query_vector(engine: Engine, terms: Sequence[schemas.SearchTerm]) -> Float32[ndarray, " E"]:
    """The L2-normalized weighted sum of the embeddings of the terms."""
    total = np.zeros(engine.clip.bundle.config.embed_dim, dtype=np.float32)
    embed: dict[str, Any] = {"text": engine.embed_texts, "image": engine.embed_images, "id": partial(_vectors, engine)}
    for kind, embed_values in embed.items():
        group = [term for term in terms if getattr(term, kind) is not None]
        for term, vector in zip(group, await embed_values([getattr(term, kind) for term in group]), strict=True):
            total += np.float32(term.weight) * vector
    return unit_sums(total[None], [f"{len(terms)} terms"])[0]


async def _vectors(engine: Engine, ids: Sequence[str]) -> list[Float32[ndarray, " E"]]:
    def read(index: Index) -> list[Float32[ndarray, " E"]]:
        for digest in ids:
            _all(index, digest)  # Raises for an unknown id.
        vectors = index.vectors(ids)
        return [vectors[digest] for digest in ids]

    return await engine.read_index(read) if ids else []


async def _entries(engine: Engine, key: str) -> Sequence[Entry]:
    return await engine.read_index(lambda index: _all(index, key))


def _all(index: Index, key: str) -> Sequence[Entry]:
    """All entries of the index with a digest.

    Raises:
        Problem: there is none (404).
    """
    entries = index.with_digest(key)
    if not entries:
        raise Problem(404, "the index has no such picture; /v1/search returns the ids")
    return entries


def _device_name(engine: Engine) -> str:
    """The device, and for an ONNX export its engine and precision: "cpu", "cpu (ONNX Runtime, int8)"."""
    towers = engine.embedder.towers
    is_plain = towers.engine == "PyTorch"
    return str(towers.device) if is_plain else f"{towers.device} ({towers.engine}, {towers.dtype_name})"
