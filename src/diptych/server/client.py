"""A server's model as if it were here: the same four functions, with the same answers. Shapes: N inputs, E embedding."""

import base64
import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError, DiptychError, ImageError
from diptych.core.lists import check_list
from diptych.core.progress import Track, silently
from diptych.core.sample import ImageInput
from diptych.images.decode import decode, describe, file_content
from diptych.inference.encoder import Encoder
from diptych.inference.query import Query
from diptych.inference.uses import ClipTasks
from diptych.server.keys import check_key

Kind = Literal["texts", "images"]

_MOST = {"texts": 256, "images": 16}
"""Maximum number of inputs per request, if the server accepts as many."""
_BODY_BYTES = 16 * 2**20
"""Maximum size of a request with several inputs, so that it arrives in time over a slow connection."""
_FRAME_BYTES = 128
"""Size of a request without its inputs."""
_CUT_BYTES = 2**18
"""If the connection breaks during a request larger than this, the request is treated as too large."""
_TRIES = 5


class _TooLargeError(DiptychError):
    """The server refused a request because of its size."""


@dataclass(frozen=True, kw_only=True)
class Hit:
    """A picture of the server's index."""

    id: str
    name: str
    path: str | None
    """Relative to the nearest folder that holds all pictures of the index; None if they share only the root."""
    absolute_path: str | None
    """None unless the server listens on its own machine alone, without keys and without a proxy."""
    score: float
    width: int | None
    height: int | None
    taken: str | None
    captions: tuple[str, ...]
    similar: tuple["Hit", ...] = ()
    """Near-equal pictures that are folded into this hit; empty without `group_similar`."""


class Client(ClipTasks):
    """A client of a server that `diptych serve` started.

        clip = diptych.Client("http://127.0.0.1:8000")
        clip.search("a dog on a beach", limit=5)

    Files of pictures are sent unchanged, in requests that fit the server's limits. If the server is overloaded, a request is
    repeated after the time that the server specifies.

    Raises (every method):
        DiptychError: the server cannot be reached, or refuses a request; the message is the server's.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url}: is no address; it begins with http:// or https://")
        self.url = url.rstrip("/")
        self._key, self._timeout_s = None if api_key is None else check_key(api_key, "api_key"), timeout_s
        self._told: dict[str, Any] | None = None
        self._most_bytes = _BODY_BYTES
        """Maximum size of a request. It shrinks after refused requests: a proxy may accept less than the server."""

    @property
    def encoder(self) -> Encoder:
        """Itself: the server makes the embeddings."""
        return self

    @property
    def track(self) -> Track:
        """No progress is reported."""
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
        for some in self._portions("texts", texts):
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
        positions: list[int] = []
        num = 0

        def contents() -> Iterator[str]:
            nonlocal num
            for position, image in enumerate(images):
                num += 1
                try:
                    content = self._sent(image)
                except ImageError as error:
                    if on_error is None:
                        raise
                    on_error(position, error)
                else:
                    positions.append(position)
                    yield content
                advance()

        rows = [row for some in self._portions("images", contents()) for row in self._embed("images", some)]
        emb = np.full((num, self.dim), np.nan, dtype=np.float32)
        emb[positions] = self._stacked(rows)
        return emb

    def search(
        self,
        query: str | Query,
        *,
        where: str | None = None,
        limit: int = 20,
        offset: int = 0,
        group_similar: bool | float = False,
    ) -> list[Hit]:
        """Pictures of the server's index, the nearest first.

        Args:
            query: a text, or weighted terms.
            where: a filter.
            limit: maximum number of hits.
            offset: number of hits to skip.
            group_similar: fold near-equal pictures into the best hit. True uses the server's default for the minimum cosine;
                a number sets it.
        """
        terms: list[dict[str, Any]] = [{"text": query}]
        if isinstance(query, Query):
            terms = [
                {"text": term.value, "weight": term.weight}
                if term.kind == "text"
                else {"image": self._sent(term.value), "weight": term.weight}
                for term in query.terms
            ]
        body: dict[str, Any] = {"terms": terms, "limit": limit, "offset": offset, "where": where}
        if group_similar is not False:  # Servers of earlier versions do not know the field.
            body["group_similar"] = group_similar
        return [_hit(one) for one in self._ask("POST", "/v1/search", body)["results"]]

    def _limit(self, name: str, default: int) -> int:
        """A limit of the server for one request. Servers of earlier versions do not report limits."""
        return int(self.info.get("limits", {}).get(name, default))

    def _sent(self, image: ImageInput) -> str:
        """A picture's file in base64; a PNG if there is no file.

        Raises:
            ImageError: the picture cannot be decoded, or is larger than the server accepts.
        """
        decode(image)
        content = base64.b64encode(file_content(image)).decode("ascii")
        most = self._limit("body_bytes", sys.maxsize)
        if _FRAME_BYTES + len(content) > most:
            raise ImageError(
                f"{describe(image)}: is too large for one request ({most / 2**20:g} MiB in base64); send a smaller copy, or "
                "start the server with a larger --body-mb"
            )
        return content

    def _portions(self, kind: Kind, items: Iterable[str]) -> Iterator[list[str]]:
        """The items in portions that fit the server's limits on number and bytes."""
        some: list[str] = []
        num_bytes = _FRAME_BYTES
        for item in items:
            most = min(_BODY_BYTES, self._limit("body_bytes", _BODY_BYTES), self._most_bytes)
            if some and (len(some) >= min(_MOST[kind], self._limit(kind, 1000)) or num_bytes + _size(item) > most):
                yield some
                some, num_bytes = [], _FRAME_BYTES
            some.append(item)
            num_bytes += _size(item)
        if some:
            yield some

    def _embed(self, kind: Kind, some: Sequence[str]) -> list[Float32[ndarray, " E"]]:
        """One embedding per item. A request that is too large is split into two halves."""
        try:
            rows = self._ask("POST", "/v1/embed", {kind: list(some), "encoding": "base64"})[kind]
        except _TooLargeError:
            if len(some) == 1:
                raise
            self._most_bytes = min(self._most_bytes, sum(map(_size, some)) // 2)
            middle = len(some) // 2
            return self._embed(kind, some[:middle]) + self._embed(kind, some[middle:])
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
                    kind = _TooLargeError if error.code == 413 else DiptychError
                    raise kind(f"{self.url}: {told}") from None
                time.sleep(float(wait) if wait.isdigit() else 1.0)
            except (OSError, ValueError) as error:
                reason = getattr(error, "reason", None) or error
                # Servers and proxies that refuse a large request often close the connection before their response is read.
                is_cut = isinstance(reason, BrokenPipeError | ConnectionResetError) and len(content or b"") > _CUT_BYTES
                kind = _TooLargeError if is_cut else DiptychError
                raise kind(f"{self.url}: does not answer ({reason})") from None
        raise AssertionError  # The last attempt returned or raised.


def _size(item: str) -> int:
    """Bytes of an input in JSON, with its separator."""
    return len(json.dumps(item)) + 2


def _hit(told: dict[str, Any]) -> Hit:
    """Parse a hit. Unknown fields are ignored; fields that an earlier server does not send are None."""
    known: dict[str, Any] = {one.name: told.get(one.name) for one in fields(Hit)}
    known |= {"captions": tuple(told["captions"]), "similar": tuple(_hit(one) for one in told.get("similar", ()))}
    return Hit(**known)


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"answered {error.code} {error.reason}"
