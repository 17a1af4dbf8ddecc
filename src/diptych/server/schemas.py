"""Schemas of requests and responses, with examples that work. They are part of `/openapi.json`."""

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
"""A PNG of 16 x 16 pixels in base64, for the examples."""

_STANDARD = bytes.maketrans(b"-_", b"+/")
"""Maps the URL-safe alphabet of base64 to the standard one."""
_WHITESPACE = b" \t\r\n"
MAX_TERMS = 32
ID_PATTERN = "^[0-9a-f]{1,128}$"


class Uploaded(bytes):
    """The content of an image file that was uploaded in a form."""


@dataclass(frozen=True)
class NullIs:
    """Replaces null with the default of a field, because many clients send null for unset fields."""

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
            "token ids are not accepted, because they belong to another tokenizer: send texts. "
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
"""Validation stops at the first invalid item: a body of 32 MiB can contain millions, each with its own error."""
Encoding = Annotated[Literal["float", "base64"], NullIs("float")]
Vector = Annotated[list[float], Field(description="A vector of length 1.")]


def _with_examples(*bodies: dict[str, Any]) -> ConfigDict:
    """The configuration of a request's schema, with bodies as examples. Pydantic adds it to that of the base class."""
    return ConfigDict(json_schema_extra={"examples": [*bodies]})


class Model(BaseModel):
    """Base class of schemas that do not accept unknown fields."""

    model_config = ConfigDict(extra="forbid")


class EmbedRequest(Model):
    """Texts, images, or both."""

    model_config = _with_examples({"texts": ["a red square", "two dogs"]}, {"images": [PICTURE]})
    texts: Annotated[Texts, NullIs([])] = []
    images: Annotated[Pictures, NullIs([])] = []
    encoding: Encoding = "float"
    """`base64` returns each embedding as its little-endian float32 bytes in base64."""

    @model_validator(mode="after")
    def _something(self) -> "EmbedRequest":
        if not self.texts and not self.images:
            raise ValueError("nothing to embed: give texts or images")
        return self


class EmbedAnswer(Model):
    """One embedding per text and one per image, in their order."""

    model: str
    dim: int
    texts: list[Vector] | list[str]
    images: list[Vector] | list[str]


class SimilarityRequest(Model):
    """The images and the texts to compare."""

    model_config = _with_examples({"images": [PICTURE], "texts": ["a red square", "two dogs"]})
    images: Pictures = Field(min_length=1)
    texts: Texts = Field(min_length=1)


class SimilarityAnswer(Model):
    """Matrices with one row per image and one column per text."""

    cosine: list[list[float]]
    probability: list[list[float]] = Field(description="Softmax over the texts; each row sums to 1.")


class ClassifyRequest(Model):
    """Images, and the names of the classes to choose from."""

    model_config = _with_examples({"images": [PICTURE], "classes": ["square", "dog"], "templates": ["a {}"]})
    images: Pictures = Field(min_length=1)
    classes: Texts = Field(min_length=1)
    templates: Annotated[Texts, Field(min_length=1), NullIs(["a photo of a {}"])] = ["a photo of a {}"]
    threshold: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | Literal["auto"] | None = None
    """Cosine below which the result is none of the classes; `auto` uses the calibrated threshold of the bundle."""


class ClassScoreAnswer(Model):
    """The score of one class for one image."""

    name: str
    probability: float
    cosine: float


class PictureClasses(Model):
    """The classes of one image, the most probable first."""

    best: str | None = Field(description="The most probable class; null if its cosine is below the threshold.")
    threshold: float | None
    scores: list[ClassScoreAnswer]


class ClassifyAnswer(Model):
    """One result per image, in their order."""

    images: list[PictureClasses]


class SearchTerm(Model):
    """One term of a query: a text, an image, or the id of an image in the index."""

    text: Text | None = None
    image: Picture | None = None
    id: str | None = Field(default=None, pattern=ID_PATTERN)
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT, allow_inf_nan=False), NullIs(1.0)] = Field(
        default=1.0, description="Factor of the term; a negative one finds images unlike the term."
    )

    @model_validator(mode="after")
    def _one(self) -> "SearchTerm":
        if sum(value is not None for value in (self.text, self.image, self.id)) != 1:
            raise ValueError("a term must have exactly one of text, image and id")
        return self


class SearchRequest(Model):
    """A search for a text, or for the weighted sum of several terms."""

    model_config = _with_examples(
        {"text": "a dog on a beach", "limit": 5},
        {"terms": [{"text": "a dog"}, {"text": "snow", "weight": -0.5}], "where": "width >= 16"},
        {"terms": [{"image": PICTURE}], "offset": 20, "limit": 20},
        {"text": "a dog on a beach", "group_similar": True},
    )
    text: Text | None = None
    terms: Annotated[list[SearchTerm], Field(max_length=MAX_TERMS), NullIs([])] = []
    where: str | None = Field(default=None, max_length=2000)
    """A filter, such as `taken > 2024-01-01 and width >= 800 and caption like '%dog%'`."""
    offset: Annotated[int, Field(ge=0), NullIs(0)] = 0
    limit: Annotated[int, Field(ge=1, le=200), NullIs(20)] = 20
    group_similar: Annotated[StrictBool | Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)], NullIs(False)] = (
        Field(
            default=False,
            description="Group near-duplicates under the best hit. True means a minimum cosine of 0.95; a number sets the "
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
        """All terms of the query; `text` is the first one, if it is set."""
        return [*([] if self.text is None else [SearchTerm(text=self.text)]), *self.terms]


class Hit(Model):
    """An image of the index."""

    id: str
    name: str = Field(description="Name of the file, without its folder.")
    path: str | None = Field(
        description="Path relative to the deepest folder that contains all images of the index; null if that is the root."
    )
    absolute_path: str | None = Field(
        description="Absolute path; null unless the server is reachable only from its own machine, without keys and proxy."
    )
    score: float | None = Field(description="Cosine similarity with the query, within [-1, 1].")
    width: int | None
    height: int | None
    taken: str | None
    captions: list[str]


class SearchHit(Hit):
    """A hit of a search."""

    similar: list[Hit] = Field(
        description="Near-duplicates that are grouped under this hit; empty without `group_similar`."
    )


class SearchAnswer(Model):
    """One page of results, in descending order of similarity."""

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
    """A format of image files in the indexed folders that is not supported."""

    suffix: str
    num: int
    remedy: str | None = Field(description="What to do; null if the server supports the format now: index again.")


class Info(Model):
    """A description of the server: its model, its limits and its index."""

    version: str
    model: str
    bundle: str | None = Field(description="Name of the bundle's folder.")
    dim: int
    image_px: int | list[int]
    device: str
    heat_maps: bool = Field(description="Whether the server draws heat maps; false for an ONNX export.")
    logit_scale: float
    threshold: float | None = Field(
        description="Calibrated cosine that separates matching pairs from others; null if the bundle has none."
    )
    pictures: int | None = Field(description="Number of images in the index; null without an index.")
    limits: InfoLimits
    unreadable: int | None = Field(
        description="Number of files that `index add` could not read; null without an index."
    )
    left_out: list[LeftOutFormat] | None = Field(
        description="Files that `index add` skipped because of their format, by suffix; null without an index."
    )


class OpenAIRequest(BaseModel):
    """An embedding request in the format of OpenAI's clients."""

    model_config = _with_examples({"input": ["a red square"], "model": "diptych"})  # Unknown fields are ignored.
    input: Text | Annotated[list[Annotated[Text, BeforeValidator(_no_token_ids)]], Field(min_length=1, fail_fast=True)]
    model: Annotated[str, NullIs("diptych")] = "diptych"
    """Any name. The server has one model; `/v1/models` returns its name."""
    encoding_format: Encoding = "float"
    dimensions: int | None = Field(default=None, ge=1)
    """Must be the dimension of the model's embeddings, or null."""


class OpenAIEmbedding(Model):
    """The embedding of one text."""

    object: Literal["embedding"] = "embedding"
    index: int
    embedding: list[float] | str


class OpenAIUsage(Model):
    """The number of tokens in the request."""

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
    """The models of this server: a list with one model."""

    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class OpenAIError(BaseModel):
    """An error in the format of OpenAI's clients."""

    message: str = Field(description="The same as `detail`.")
    type: str
    param: str | None
    code: str


class FieldError(BaseModel):
    """The error of one field."""

    where: str
    what: str


class ProblemAnswer(BaseModel):
    """An error response as defined by RFC 9457."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str = Field(description="What is wrong, and how to fix it.")
    errors: list[FieldError] | None = Field(default=None, description="The errors of single fields, if there are any.")
    error: OpenAIError | None = Field(default=None, description="Present on the paths of OpenAI's API.")


BODIES = (EmbedRequest, SimilarityRequest, ClassifyRequest, SearchRequest, OpenAIRequest, ProblemAnswer)
"""Bodies that FastAPI does not describe in `/openapi.json` by itself."""
