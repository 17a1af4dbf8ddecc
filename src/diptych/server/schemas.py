"""What requests and answers hold, with examples that work; the address `/openapi.json` tells it to programs."""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    StrictBool,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from diptych.inference.query import MAX_WEIGHT

PICTURE = (
    "iVBORw0KGgoAAAANSUhEUgAAABAAAAAQCAIAAACQkWg2AAAAHElEQVR42mP4TyJgGOQa7oiIYEWjGuirYYimJQCEXn7fy/UaRQAAAABJRU5ErkJg"
    "gg=="
)
"""A square of sixteen pixels, for the examples."""

_STANDARD = bytes.maketrans(b"-_", b"+/")
"""Maps the URL-safe alphabet of base64 to the standard one."""
_WHITESPACE = b" \t\r\n"
MAX_TERMS = 32
ID_PATTERN = "^[0-9a-f]{1,128}$"


class Uploaded(bytes):
    """The content of a picture as a form brought it."""


@dataclass(frozen=True)
class NullIs:
    """Replaces null by the default of a field. Many clients send null for a field that is not set."""

    default: Any

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._filled, core_schema.nullable_schema(handler(source)))

    def _filled(self, value: Any) -> Any:
        return self.default if value is None else value


def _picture(value: Any) -> Any:
    if isinstance(value, Uploaded):
        return bytes(value)
    if not isinstance(value, str):
        raise ValueError("must be a picture's file in base64")
    content = value.partition(";base64,")[2] if value.startswith("data:") else value
    try:
        plain = content.encode("ascii").translate(_STANDARD, _WHITESPACE).rstrip(b"=")
        return base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be a picture's file in base64; paths and URLs are not read") from None


def _no_token_ids(value: Any) -> Any:
    if isinstance(value, int | list):
        raise PydanticCustomError(
            "token_ids",
            "token ids are not accepted, because they are another tokenizer's: send texts. "
            "With LangChain: OpenAIEmbeddings(..., check_embedding_ctx_length=False)",
        )
    return value


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("is empty")
    return value


Picture = Annotated[
    bytes,
    BeforeValidator(_picture),
    WithJsonSchema({"type": "string", "contentEncoding": "base64", "description": "A picture's file in base64."}),
]
Text = Annotated[str, Field(min_length=1, pattern=r"\S"), AfterValidator(_not_blank)]
Pictures = Annotated[list[Picture], Field(fail_fast=True)]
Texts = Annotated[list[Text], Field(fail_fast=True)]
"""Checking ends at the first wrong item: 32 MiB hold millions of them, each with an error of its own."""
Encoding = Annotated[Literal["float", "base64"], NullIs("float")]
Vector = Annotated[list[float], Field(description="Of unit length.")]


class Model(BaseModel):
    """Knows its fields and refuses others."""

    model_config = ConfigDict(extra="forbid")


class EmbedRequest(Model):
    """Texts, or pictures, or both."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"texts": ["a red square", "two dogs"]}, {"images": [PICTURE]}]}
    )
    texts: Annotated[Texts, NullIs([])] = []
    images: Annotated[Pictures, NullIs([])] = []
    encoding: Encoding = "float"
    """`base64`: each embedding as the bytes of its float32 numbers, the lowest byte first."""

    @model_validator(mode="after")
    def _something(self) -> "EmbedRequest":
        if not self.texts and not self.images:
            raise ValueError("nothing to embed: give texts or images")
        return self


class EmbedAnswer(Model):
    """One embedding a text, one a picture, in their order."""

    model: str
    dim: int
    texts: list[Vector] | list[str]
    images: list[Vector] | list[str]


class SimilarityRequest(Model):
    """Every picture beside every text."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"images": [PICTURE], "texts": ["a red square", "two dogs"]}]},
    )
    images: Pictures = Field(min_length=1)
    texts: Texts = Field(min_length=1)


class SimilarityAnswer(Model):
    """A row a picture, a column a text."""

    cosine: list[list[float]]
    probability: list[list[float]] = Field(description="Softmax over the texts: each row adds up to 1.")


class ClassifyRequest(Model):
    """Pictures, and the names of classes they may belong to."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"images": [PICTURE], "classes": ["square", "dog"], "templates": ["a {}"]}]},
    )
    images: Pictures = Field(min_length=1)
    classes: Texts = Field(min_length=1)
    templates: Annotated[Texts, Field(min_length=1), NullIs(["a photo of a {}"])] = ["a photo of a {}"]
    threshold: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | Literal["auto"] | None = None
    """Cosine below which the answer is none of the classes; `auto` takes the one that the model was calibrated to."""


class ClassScoreAnswer(Model):
    """One class for one picture."""

    name: str
    probability: float
    cosine: float


class PictureClasses(Model):
    """One picture's classes, the likeliest first."""

    best: str | None = Field(description="The likeliest; null if even that one is below the threshold.")
    threshold: float | None
    scores: list[ClassScoreAnswer]


class ClassifyAnswer(Model):
    """In the order of the pictures."""

    images: list[PictureClasses]


class SearchTerm(Model):
    """One thing to look for: a text, a picture, or a picture of the index by its id."""

    text: Text | None = None
    image: Picture | None = None
    id: str | None = Field(default=None, pattern=ID_PATTERN)
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False), NullIs(1.0)] = Field(
        default=1.0, description="Negative to avoid the term."
    )

    @model_validator(mode="after")
    def _one(self) -> "SearchTerm":
        if sum(value is not None for value in (self.text, self.image, self.id)) != 1:
            raise ValueError("a term has one of text, image and id")
        return self


class SearchRequest(Model):
    """A text, or the weighted sum of some terms."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [
                {"text": "a dog on a beach", "limit": 5},
                {"terms": [{"text": "a dog"}, {"text": "snow", "weight": -0.5}], "where": "width >= 16"},
                {"terms": [{"image": PICTURE}], "offset": 20, "limit": 20},
                {"text": "a dog on a beach", "group_similar": True},
            ]
        },
    )
    text: Text | None = None
    terms: Annotated[list[SearchTerm], Field(max_length=MAX_TERMS), NullIs([])] = []
    where: str | None = Field(default=None, max_length=2000)
    """As in `taken > 2024-01-01 and width >= 800 and caption like '%dog%'`."""
    offset: Annotated[int, Field(ge=0), NullIs(0)] = 0
    limit: Annotated[int, Field(ge=1, le=200), NullIs(20)] = 20
    group_similar: Annotated[StrictBool | Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)], NullIs(False)] = (
        Field(
            default=False,
            description="Fold near-equal pictures into the best hit. True means a minimum cosine of 0.95; a number sets the "
            "minimum. `offset` and `limit` then count groups.",
        )
    )

    @model_validator(mode="after")
    def _something(self) -> "SearchRequest":
        if self.text is None and not self.terms:
            raise ValueError("nothing to search for: give a text or terms")
        return self

    @property
    def all_terms(self) -> list[SearchTerm]:
        """The text among them."""
        return [*([] if self.text is None else [SearchTerm(text=self.text)]), *self.terms]


class Hit(Model):
    """A picture of the index."""

    id: str
    name: str = Field(description="Of its file, without the folder.")
    path: str | None = Field(
        description="Relative to the nearest folder that holds all pictures of the index; null if they share only the root."
    )
    absolute_path: str | None = Field(
        description="Null unless the server listens on its own machine alone, without keys and without a proxy."
    )
    score: float | None = Field(description="Cosine with the query, within [-1, 1].")
    width: int | None
    height: int | None
    taken: str | None
    captions: list[str]


class SearchHit(Hit):
    """A hit of a search."""

    similar: list[Hit] = Field(
        description="Near-equal pictures that are folded into this hit; empty without `group_similar`."
    )


class SearchAnswer(Model):
    """A page of results, the nearest first."""

    results: list[SearchHit]
    offset: int
    has_more: bool


class InfoLimits(Model):
    """Limits of one request."""

    body_bytes: int
    texts: int
    text_chars: int
    images: int


class LeftOutFormat(Model):
    """Pictures in the indexed folders whose format is not supported."""

    suffix: str
    num: int
    remedy: str | None = Field(description="What to do; null if this server supports the format: index again.")


class Info(Model):
    """What answers here."""

    version: str
    model: str
    bundle: str | None = Field(description="Name of its folder.")
    dim: int
    image_px: int | list[int]
    device: str
    logit_scale: float
    threshold: float | None = Field(
        description="Cosine that tells matching pairs from others, if the bundle knows one."
    )
    pictures: int | None = Field(description="In the index; null without one.")
    limits: InfoLimits
    unreadable: int | None = Field(description="Files that `index add` could not read; null without an index.")
    left_out: list[LeftOutFormat] | None = Field(
        description="Pictures that `index add` left out because of their format, by suffix; null without an index."
    )


class OpenAIRequest(BaseModel):
    """As OpenAI's clients send it."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"input": ["a red square"], "model": "diptych"}]}
    )
    input: Text | Annotated[list[Annotated[Text, BeforeValidator(_no_token_ids)]], Field(min_length=1, fail_fast=True)]
    model: Annotated[str, NullIs("diptych")] = "diptych"
    """Any name. The server has one model; `/v1/models` returns its name."""
    encoding_format: Encoding = "float"
    dimensions: int | None = Field(default=None, ge=1)
    """The dimension of the model's embeddings, or null."""


class OpenAIEmbedding(Model):
    """One text's."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(Model):
    """In tokens."""

    prompt_tokens: int
    total_tokens: int


class OpenAIAnswer(Model):
    """Embeddings in the format of OpenAI's clients."""

    object: Literal["list"] = "list"
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage


class OpenAIModel(Model):
    """The model of this server."""

    id: str = Field(description="Name of the bundle's folder.")
    object: Literal["model"] = "model"
    created: int = Field(description="When the bundle was written, in seconds since 1970.")
    owned_by: Literal["diptych"] = "diptych"


class OpenAIModels(Model):
    """The models of this server: a list of one."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIError(BaseModel):
    """The error in the format of OpenAI's clients."""

    message: str = Field(description="The same as `detail`.")
    type: str
    param: str | None
    code: str


class FieldError(BaseModel):
    """What is wrong with one field."""

    where: str
    what: str


class ProblemAnswer(BaseModel):
    """RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What is wrong, and what to do.")
    errors: list[FieldError] | None = Field(default=None, description="The errors if fields of the request are wrong.")
    error: OpenAIError | None = Field(default=None, description="Present on the paths of OpenAI's API.")
