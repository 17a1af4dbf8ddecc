"""The routes under `/v1`: embed, similarity, classify, search, pictures."""

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
from diptych.index.entry import Entry
from diptych.index.entry import SearchHit as IndexHit
from diptych.index.filters import Filter, parse_filter
from diptych.index.protocol import Index
from diptych.inference.classify import (
    calibrated_threshold,
    check_distinct,
    class_means,
    class_prompts,
    ranked_classes,
)
from diptych.inference.query import unit_sums
from diptych.inference.similarity import softmax
from diptych.search.similar import SIMILAR_COSINE, HitGroup, search_groups
from diptych.server.engine import Engine
from diptych.server.parse_body import body_of, read_body
from diptych.server.problems import Problem
from diptych.server.schemas import (
    ID_PATTERN,
    ClassifyAnswer,
    ClassifyRequest,
    EmbedAnswer,
    EmbedRequest,
    Hit,
    Info,
    InfoLimits,
    LeftOutFormat,
    ProblemAnswer,
    SearchAnswer,
    SearchHit,
    SearchRequest,
    SearchTerm,
    SimilarityAnswer,
    SimilarityRequest,
)

_PROBLEM: dict[str, Any] = {
    "content": {"application/problem+json": {"schema": {"$ref": "#/components/schemas/ProblemAnswer"}}}
}
_SAID = {
    400: "cannot be read",
    401: "no valid key",
    403: "from a page of another site",
    404: "not there",
    408: "came too slowly",
    410: "there no more",
    413: "too large",
    415: "no JSON, no form",
    421: "a strange host",
    422: "not as it should be",
    429: "too many at once",
    503: "not now",
}
PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"description": said, "model": ProblemAnswer, **_PROBLEM} for status, said in _SAID.items()
}
_FOR_A_DAY = {"Cache-Control": "private, max-age=86400"}
_PROXY_HEADERS = {"forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip"}
Id = Annotated[str, PathParam(alias="id", pattern=ID_PATTERN, description="As a search tells it.")]


def api(engine: Engine, *, has_absolute_paths: bool = False) -> APIRouter:  # noqa: C901  (a list of routes)
    """The routes below `/v1`.

    Args:
        engine: the model and the index.
        has_absolute_paths: whether hits have the absolute path of their file. Requests through a proxy never get it.
    """
    router = APIRouter(prefix="/v1", responses=PROBLEMS)
    parse = partial(engine.in_thread, "bodies")

    async def described(request: Request) -> Callable[[IndexHit | Entry], Hit]:
        folder = await engine.of_index(lambda index: index.common_folder())
        return partial(hit, folder=folder, is_absolute=has_absolute_paths and not _PROXY_HEADERS & {*request.headers})

    @router.get("/info")
    async def info() -> Info:
        """What answers here."""
        return await _info(engine)

    @router.post("/embed", openapi_extra=body_of(EmbedRequest), response_model=EmbedAnswer)
    async def embed(request: Request) -> Response:
        """Unit embeddings of texts and pictures."""
        asked = await read_body(request, EmbedRequest, parse)
        texts, images = await engine.embed_texts(asked.texts), await engine.embed_images(asked.images)
        answer = {"model": engine.clip.identity, "dim": engine.clip.bundle.config.embed_dim}
        return await engine.in_thread(
            "bodies",
            lambda: JSONResponse(
                answer | {"texts": written(texts, asked.encoding), "images": written(images, asked.encoding)}
            ),
        )

    @router.post("/similarity", openapi_extra=body_of(SimilarityRequest))
    async def similarity(request: Request) -> SimilarityAnswer:
        """Cosines and probabilities of every picture and every text."""
        asked = await read_body(request, SimilarityRequest, parse)
        cosine = await engine.embed_images(asked.images) @ (await engine.embed_texts(asked.texts)).T
        probability = softmax(cosine * np.float32(engine.embedder.logit_scale))
        return SimilarityAnswer(cosine=cosine.tolist(), probability=probability.tolist())

    @router.post("/classify", openapi_extra=body_of(ClassifyRequest))
    async def classify(request: Request) -> ClassifyAnswer:
        """Each picture's classes, the likeliest first, from nothing but their names."""
        asked = await read_body(request, ClassifyRequest, parse)
        return await _classify(engine, asked)

    @router.post("/search", openapi_extra=body_of(SearchRequest))
    async def search(request: Request) -> SearchAnswer:
        """Pictures of the index, the nearest to a weighted sum of texts and pictures first."""
        asked = await read_body(request, SearchRequest, parse)
        groups = await _groups(engine, asked)
        to_hit = await described(request)
        page = [
            SearchHit(**vars(to_hit(one.hit)), similar=[to_hit(other) for other in one.similar])
            for one in groups[: asked.limit]
        ]
        return SearchAnswer(results=page, offset=asked.offset, has_more=len(groups) > asked.limit)

    @router.get("/images/{id}")
    async def image(request: Request, key: Id) -> Hit:
        """What the index knows of a picture."""
        to_hit = await described(request)
        return to_hit(await _entry(engine, key))

    @router.get("/images/{id}/file", response_class=Response, responses={200: _picture("image/*")})
    async def file(key: Id) -> Response:
        """The picture itself."""
        content, kind = await engine.picture(await _entries(engine, key), None)
        return Response(content, media_type=kind, headers=_FOR_A_DAY)

    @router.get("/images/{id}/thumb", response_class=Response, responses={200: _picture("image/webp")})
    async def thumb(key: Id, px: Literal["160", "320", "640"] = "320") -> Response:
        """The picture within a square of so many pixels."""
        content, kind = await engine.picture(await _entries(engine, key), int(px))
        return Response(content, media_type=kind, headers=_FOR_A_DAY)

    @router.get("/images/{id}/heat", response_class=Response, responses={200: _picture("image/png")})
    async def heat(key: Id, text: Annotated[str, Query(min_length=1, max_length=2000, pattern=r"\S")]) -> Response:
        """What in the picture speaks for a text, drawn over the part that the model sees."""
        drawn = await engine.explain(await _entries(engine, key), text)
        return Response(drawn, media_type="image/png", headers=_FOR_A_DAY)

    return router


def hit(found: IndexHit | Entry, *, folder: str | None, is_absolute: bool) -> Hit:
    """The description of a picture in a response.

    Args:
        found: the picture.
        folder: a folder that contains the picture, to which `path` is relative; None for no path.
        is_absolute: whether to include the absolute path.
    """
    entry, score = (found.entry, found.score) if isinstance(found, IndexHit) else (found, None)
    return Hit(
        id=entry.digest,
        name=basename(entry.key),  # noqa: PTH119  (ten in each answer, and a Path costs ten times as much)
        path=None if folder is None else entry.key.removeprefix(f"{folder}/"),
        absolute_path=entry.key if is_absolute else None,
        score=score,
        width=entry.width,
        height=entry.height,
        taken=entry.taken,
        captions=list(entry.captions),
    )


def written(emb: Float32[ndarray, "N E"], encoding: Literal["float", "base64"]) -> list[Any]:
    """Embeddings as numbers, or as the bytes of their numbers."""
    if encoding == "float":
        numbers: list[Any] = emb.tolist()
        return numbers
    return [base64.b64encode(row.astype("<f4").tobytes()).decode("ascii") for row in emb]


def _picture(kind: str) -> dict[str, Any]:
    return {"description": "The picture.", "content": {kind: {"schema": {"type": "string", "format": "binary"}}}}


async def _info(engine: Engine) -> Info:
    bundle, path = engine.clip.bundle, engine.clip.path
    try:
        threshold: float | None = calibrated_threshold(bundle.metrics)
    except ConfigError:
        threshold = None
    px = bundle.config.image.image_px
    return Info(
        version=VERSION,
        model=engine.clip.identity,
        bundle=None if path is None else path.resolve().name,
        dim=bundle.config.embed_dim,
        image_px=list(px) if isinstance(px, tuple) else px,
        device=str(engine.embedder.device),
        logit_scale=engine.embedder.logit_scale,
        threshold=threshold,
        pictures=None if engine.index is None else await engine.of_index(len),
        limits=InfoLimits(
            body_bytes=engine.limits.body_mb * 2**20,
            texts=engine.limits.max_texts,
            text_chars=engine.limits.text_chars,
            images=engine.limits.max_images,
        ),
        unreadable=None if engine.index is None else await engine.of_index(lambda index: index.num_broken()),
        left_out=None if engine.index is None else await engine.of_index(_left_out),
    )


def _left_out(index: Index) -> list[LeftOutFormat]:
    return [LeftOutFormat(suffix=suffix, num=num, remedy=remedy(suffix)) for suffix, num in index.left_out().items()]


async def _classify(engine: Engine, asked: ClassifyRequest) -> ClassifyAnswer:
    num = len(asked.classes) * len(asked.templates)
    if num > engine.limits.max_texts:
        most = engine.limits.max_texts
        raise Problem(
            422, f"{num} prompts (classes times templates) in one request; at most {most}: use fewer templates"
        )
    check_distinct(asked.classes)
    threshold = asked.threshold
    if threshold == "auto":
        threshold = calibrated_threshold(engine.clip.bundle.metrics)
    prompts = await engine.embed_texts(class_prompts(asked.classes, asked.templates))
    cosine = await engine.embed_images(asked.images) @ class_means(prompts, len(asked.classes)).T
    ranked = ranked_classes(
        cosine,
        asked.classes,
        names=[""] * len(cosine),
        logit_scale=engine.embedder.logit_scale,
        threshold=threshold,
    )
    return ClassifyAnswer.model_validate(
        {
            "images": [
                {
                    "best": one.best and one.best.name,
                    "threshold": one.threshold,
                    "scores": [vars(score) for score in one.scores],
                }
                for one in ranked
            ]
        }
    )


def _filter(where: str | None) -> Filter | None:
    if where is None or not where.strip():
        return None
    try:
        return parse_filter(where)
    except ConfigError as error:  # Its message names the option of the command line.
        raise Problem(422, str(error).removeprefix("--")) from None


async def _groups(engine: Engine, asked: SearchRequest) -> list[HitGroup]:
    """The hits of the page and one more; near-equal ones folded on request."""
    engine.held_index()
    selected = _filter(asked.where)
    last = asked.offset + asked.limit
    if last > engine.limits.results:
        raise Problem(422, f"offset + limit is {last}; at most {engine.limits.results}: narrow it with where")
    vector = await _sum_of(engine, asked.all_terms)
    if asked.group_similar is False:
        hits = await engine.search(vector, top=last + 1, skip=asked.offset, selected=selected)
        return [HitGroup(hit=one, similar=()) for one in hits]
    threshold = SIMILAR_COSINE if asked.group_similar is True else asked.group_similar
    grouped = partial(search_groups, query=vector, top=last + 1, threshold=threshold, selected=selected)
    return (await engine.of_index(grouped))[asked.offset :]


async def _sum_of(engine: Engine, terms: Sequence[SearchTerm]) -> Float32[ndarray, " E"]:
    """The weighted sum, of unit length."""
    texts = [term for term in terms if term.text is not None]
    images = [term for term in terms if term.image is not None]
    known = [term for term in terms if term.id is not None]
    total = np.zeros(engine.clip.bundle.config.embed_dim, dtype=np.float32)
    for some, emb in (
        (texts, await engine.embed_texts([term.text or "" for term in texts])),
        (images, await engine.embed_images([term.image or b"" for term in images])),
        (known, await _vectors(engine, [term.id or "" for term in known])),
    ):
        for term, vector in zip(some, emb, strict=True):
            total += np.float32(term.weight) * vector
    return unit_sums(total[None], [f"{len(terms)} terms"])[0]


async def _vectors(engine: Engine, ids: Sequence[str]) -> list[Float32[ndarray, " E"]]:
    def read(index: Index) -> list[Float32[ndarray, " E"]]:
        for one in ids:
            _first(index, one)
        found = index.vectors(ids)
        return [found[one] for one in ids]

    return await engine.of_index(read) if ids else []


async def _entries(engine: Engine, key: str) -> Sequence[Entry]:
    return await engine.of_index(lambda index: _all(index, key))


async def _entry(engine: Engine, key: str) -> Entry:
    return await engine.of_index(lambda index: _first(index, key))


def _first(index: Index, key: str) -> Entry:
    """The first picture of the index with this content."""
    return _all(index, key)[0]


def _all(index: Index, key: str) -> Sequence[Entry]:
    """All entries of the index with this content; at least one."""
    entries = index.with_digest(key)
    if not entries:
        raise Problem(404, "the index has no such picture; /v1/search returns the ids")
    return entries
