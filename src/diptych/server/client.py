"""A server's model as if it were here: the same four functions, with the same answers. Shapes: N inputs, E embedding."""

import base64
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, TypeVar

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError, DiptychError, ImageError
from diptych.core.lists import check_list
from diptych.core.progress import Track, silently
from diptych.core.sample import ImageInput
from diptych.images.decode import decode, file_content
from diptych.inference.encoder import Encoder
from diptych.inference.query import Query
from diptych.inference.uses import FourUses

T = TypeVar("T")

_TEXTS, _IMAGES = 256, 16
_TRIES = 5


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A picture of the server's index."""

    id: str
    name: str
    score: float
    width: int | None
    height: int | None
    taken: str | None
    captions: tuple[str, ...]


class Client(FourUses):
    """Asks a server that `diptych serve` started.

        clip = diptych.Client("http://127.0.0.1:8000")
        clip.search("a dog on a beach", limit=5)

    Pictures are sent as they are. When the server has too much to do, it is asked again after the seconds that it names.

    Raises (every method):
        DiptychError: the server cannot be reached, or refuses; its own words are told.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url}: is no address; it begins with http:// or https://")
        self.url = url.rstrip("/")
        self._key, self._timeout_s = api_key, timeout_s
        self._told: dict[str, Any] | None = None

    @property
    def encoder(self) -> Encoder:
        """Itself: the server makes the embeddings."""
        return self

    @property
    def track(self) -> Track:
        """Nobody is told."""
        return silently

    @property
    def info(self) -> dict[str, Any]:
        """What the server says of itself: model, numbers of an embedding, pictures in its index."""
        if self._told is None:
            self._told = self._ask("GET", "/v1/info")
        return self._told

    @property
    def logit_scale(self) -> float:
        """What cosines are multiplied by before a softmax."""
        return float(self.info["logit_scale"])

    @property
    def metrics(self) -> dict[str, Any]:
        """As much of the bundle's as the four functions read."""
        threshold = self.info["threshold"]
        return {} if threshold is None else {"retrieval": {"pairs": {"threshold": threshold}}}

    @property
    def dim(self) -> int:
        """Numbers of an embedding."""
        return int(self.info["dim"])

    def encode_texts(
        self, texts: Sequence[str], *, advance: Callable[[], object] = lambda: None
    ) -> Float32[ndarray, "N E"]:
        """Unit embeddings of the texts; `advance` is called once for each."""
        check_list(texts, "texts")
        rows = []
        for some in _chunks(texts, _TEXTS):
            rows += self._embed("texts", some)
            for _ in some:
                advance()
        return self._stacked(rows)

    def encode_images(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[int, ImageError], None] | None = None,
        advance: Callable[[], object] = lambda: None,
    ) -> Float32[ndarray, "N E"]:
        """Unit embeddings of the images; those that `on_error` is told of are NaN. Each is decoded here before it is sent."""
        check_list(images, "images")
        rows: list[Float32[ndarray, " E"]] = []
        for some in _chunks(enumerate(images), _IMAGES):
            contents = dict[int, str]()
            for position, image in some:
                try:
                    contents[position] = _sent(image)
                except ImageError as error:
                    if on_error is None:
                        raise
                    on_error(position, error)
                advance()
            found = dict(zip(contents, self._embed("images", list(contents.values())), strict=True))
            nothing = np.full(self.dim, np.nan, dtype=np.float32)
            rows += [found.get(position, nothing) for position, _ in some]
        return self._stacked(rows)

    def search(self, query: str | Query, *, where: str | None = None, limit: int = 20, offset: int = 0) -> list[Hit]:
        """Pictures of the server's index, the nearest first."""
        terms: list[dict[str, Any]] = [{"text": query}]
        if isinstance(query, Query):
            terms = [
                {"text": term.value, "weight": term.weight}
                if term.kind == "text"
                else {"image": _sent(term.value), "weight": term.weight}
                for term in query.terms
            ]
        body = {"terms": terms, "limit": limit, "offset": offset, "where": where}
        found = self._ask("POST", "/v1/search", body)["results"]
        return [Hit(**{**one, "captions": tuple(one["captions"])}) for one in found]

    def _embed(self, kind: Literal["texts", "images"], some: Sequence[str]) -> list[Float32[ndarray, " E"]]:
        if not some:
            return []
        rows = self._ask("POST", "/v1/embed", {kind: list(some), "encoding": "base64"})[kind]
        return [np.frombuffer(base64.b64decode(row), dtype="<f4").astype(np.float32) for row in rows]

    def _stacked(self, rows: list[Float32[ndarray, " E"]]) -> Float32[ndarray, "N E"]:
        return np.stack(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({} if self._key is None else {"X-API-Key": self._key})
        request = urllib.request.Request(self.url + path, content, headers, method=method)
        for attempt in range(_TRIES):
            try:
                with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                with error:
                    told, wait = _detail(error), error.headers.get("Retry-After", "")
                if error.code not in {429, 503} or attempt == _TRIES - 1:
                    raise DiptychError(f"{self.url}: {told}") from None
                time.sleep(float(wait) if wait.isdigit() else 1.0)
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                raise DiptychError(f"{self.url}: does not answer ({reason})") from None
        raise AssertionError  # The last attempt returned or raised.


def _chunks(items: Iterable[T], size: int) -> Iterator[list[T]]:
    source = iter(items)
    while chunk := list(islice(source, size)):
        yield chunk


def _sent(image: ImageInput) -> str:
    """A picture's file in base64; of what has none, a PNG. One that cannot be decoded is found out here."""
    decode(image)
    return base64.b64encode(file_content(image)).decode("ascii")


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"answered {error.code} {error.reason}"
