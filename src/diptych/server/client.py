"""Client of a Diptych server, with the same methods and results as a local bundle. Shapes: N inputs, E embedding."""

import base64
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.deprecation import renamed_names
from diptych.core.errors import ConfigError, DiptychError, ImageError
from diptych.core.lists import check_list
from diptych.core.progress import Track, silently
from diptych.core.retry import retry
from diptych.core.sample import ImageInput
from diptych.images.decode import decode, describe, file_content
from diptych.inference.encoder import Encoder
from diptych.inference.query import Query
from diptych.inference.uses import ClipTasks
from diptych.server.keys import check_key

Kind = Literal["texts", "images"]

_MAX_INPUTS: dict[Kind, int] = {"texts": 256, "images": 16}
"""Maximum number of inputs per request, if the server accepts as many."""
_BODY_BYTES = 16 * 2**20
"""Maximum size of a request with several inputs, so that it arrives in time over a slow connection."""
_EMPTY_REQUEST_BYTES = 128
"""Size of a request without its inputs."""
_LARGE_BYTES = 2**18
"""If the connection breaks during a request larger than this, the request is treated as too large."""
_MAX_ATTEMPTS = 5


class _TooLargeError(DiptychError):
    """The server refused a request because of its size."""


@dataclass(frozen=True, kw_only=True)
class SearchHit:
    """An image of the server's index that a search returned."""

    id: str
    """Digest of the content of the file."""
    name: str
    """Name of the file, without its folder."""
    path: str | None
    """Path relative to the deepest folder that contains all images of the index; None if that is the root folder."""
    absolute_path: str | None
    """Absolute path on the server; None unless the server is reachable only from its own machine, without keys and proxy."""
    score: float
    """Cosine similarity with the query, within [-1, 1]."""
    width: int | None
    """Width in pixels, if known."""
    height: int | None
    """Height in pixels, if known."""
    taken: str | None
    """When the photo was taken, if known."""
    captions: tuple[str, ...]
    similar: tuple["SearchHit", ...] = ()
    """Near-duplicates that are grouped under this hit; empty without `group_similar`."""


class Client(ClipTasks):
    """A client of a server that was started by `diptych serve`.

        clip = diptych.Client("http://127.0.0.1:8000")
        clip.search("a dog on a beach", limit=5)

    Image files are sent unchanged, in requests that fit the limits of the server. If the server is overloaded, the client
    repeats a request after the time that the server specifies.

    Every method raises DiptychError if the server cannot be reached or refuses a request; the error contains the message of
    the server.

    Args:
        url: address of the server; it begins with `http://` or `https://`.
        api_key: key to send with each request, if the server needs one.
        timeout_s: timeout of the connection, in seconds.

    Raises:
        ConfigError: `url` is not an address, or `api_key` has a character that is not printable ASCII.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout_s: float = 60.0) -> None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"{url}: is not a server address; it must begin with http:// or https://")
        self.url = url.rstrip("/")
        self._key, self._timeout_s = None if api_key is None else check_key(api_key, "api_key"), timeout_s
        self._info: dict[str, Any] | None = None
        self._max_request_bytes = _BODY_BYTES
        """Maximum size of a request. It shrinks after refused requests: a proxy may accept less than the server."""

    @property
    def encoder(self) -> Encoder:
        """The client itself, because the server computes the embeddings."""
        return self

    @property
    def track(self) -> Track:
        """A progress reporter that reports nothing."""
        return silently

    @property
    def info(self) -> dict[str, Any]:
        """The response of `/v1/info`: model, embedding dimension, limits, number of images in the index."""
        if self._info is None:
            self._info = self._request("GET", "/v1/info")
        return self._info

    @property
    def logit_scale(self) -> float:
        """The factor by which cosine similarities are multiplied before a softmax."""
        return float(self.info["logit_scale"])

    @property
    def metrics(self) -> dict[str, Any]:
        """The metrics of the bundle that the server reports: the calibrated threshold, if there is one."""
        threshold = self.info["threshold"]
        return {} if threshold is None else {"retrieval": {"pairs": {"threshold": threshold}}}

    @property
    def dim(self) -> int:
        """Dimension of the embeddings."""
        return int(self.info["dim"])

    def encode_texts(
        self, texts: Sequence[str], *, advance: Callable[[], object] = lambda: None
    ) -> Float32[ndarray, "N E"]:
        """The L2-normalized embeddings of texts, in their order.

        Args:
            texts: the texts.
            advance: called once for each text.
        """
        check_list(texts, "texts")
        rows = []
        for batch in self._batches("texts", texts):
            rows += self._embed("texts", batch)
            for _ in batch:
                advance()
        return self._stacked(rows)

    def encode_images(
        self,
        images: Iterable[ImageInput],
        *,
        on_error: Callable[[int, ImageError], None] | None = None,
        advance: Callable[[], object] = lambda: None,
    ) -> Float32[ndarray, "N E"]:
        """The L2-normalized embeddings of images, in their order. Each image is decoded locally before it is sent.

        Args:
            images: the images.
            on_error: called with the position and the error of each image that cannot be read. Its embedding is NaN.
            advance: called once for each image.

        Raises:
            ImageError: an image cannot be read, and `on_error` is None.
        """
        check_list(images, "images")
        is_read = list[bool]()

        def contents() -> Iterator[str]:
            for position, image in enumerate(images):
                is_read.append(False)
                try:
                    content = self._base64(image)
                except ImageError as error:
                    if on_error is None:
                        raise
                    on_error(position, error)
                else:
                    is_read[position] = True
                    yield content
                advance()

        rows = [row for batch in self._batches("images", contents()) for row in self._embed("images", batch)]
        emb = np.full((len(is_read), self.dim), np.nan, dtype=np.float32)
        emb[np.flatnonzero(is_read)] = self._stacked(rows)
        return emb

    def search(
        self,
        query: str | Query,
        *,
        where: str | None = None,
        limit: int = 20,
        offset: int = 0,
        group_similar: bool | float = False,
    ) -> list[SearchHit]:
        """Search the images of the server's index.

        Args:
            query: a text, or weighted terms.
            where: a filter, such as `width >= 800`.
            limit: maximum number of hits.
            offset: number of hits to skip.
            group_similar: group near-duplicates under the best hit. True uses the server's default for the minimum cosine
                similarity; a number sets it.

        Returns:
            The hits, in descending order of similarity.

        Raises:
            ImageError: an image of the query cannot be read.
        """
        terms: list[dict[str, Any]] = [{"text": query}]
        if isinstance(query, Query):
            terms = [
                {term.kind: term.value if term.kind == "text" else self._base64(term.value), "weight": term.weight}
                for term in query.terms
            ]
        body: dict[str, Any] = {"terms": terms, "limit": limit, "offset": offset, "where": where}
        if group_similar is not False:  # Servers of earlier versions do not know the field.
            body["group_similar"] = group_similar
        return [_parse_hit(payload) for payload in self._request("POST", "/v1/search", body)["results"]]

    def _limit(self, name: str, default: int) -> int:
        """A limit of the server for one request. Servers of earlier versions do not report limits."""
        return int(self.info.get("limits", {}).get(name, default))

    def _base64(self, image: ImageInput) -> str:
        """The file of an image in base64, or a PNG if the image is not a file.

        Raises:
            ImageError: the image cannot be decoded, or is larger than the server accepts.
        """
        decode(image)
        content = base64.b64encode(file_content(image)).decode("ascii")
        max_bytes = self._limit("body_bytes", sys.maxsize)
        if _EMPTY_REQUEST_BYTES + len(content) > max_bytes:
            raise ImageError(
                f"{describe(image)}: is too large for one request ({max_bytes / 2**20:g} MiB in base64); send a smaller copy, "
                "or start the server with a larger --body-mb"
            )
        return content

    def _batches(self, kind: Kind, items: Iterable[str]) -> Iterator[list[str]]:
        """The items in batches that fit the server's limits on number and bytes."""
        batch: list[str] = []
        num_bytes = _EMPTY_REQUEST_BYTES
        for item in items:
            max_bytes = min(_BODY_BYTES, self._limit("body_bytes", _BODY_BYTES), self._max_request_bytes)
            max_inputs = min(_MAX_INPUTS[kind], self._limit(kind, 1000))
            if batch and (len(batch) >= max_inputs or num_bytes + _size(item) > max_bytes):
                yield batch
                batch, num_bytes = [], _EMPTY_REQUEST_BYTES
            batch.append(item)
            num_bytes += _size(item)
        if batch:
            yield batch

    def _embed(self, kind: Kind, batch: Sequence[str]) -> list[Float32[ndarray, " E"]]:
        """One embedding per item. A request that is too large is split into two halves."""
        try:
            rows = self._request("POST", "/v1/embed", {kind: list(batch), "encoding": "base64"})[kind]
        except _TooLargeError:
            if len(batch) == 1:
                raise
            self._max_request_bytes = min(self._max_request_bytes, sum(map(_size, batch)) // 2)
            middle = len(batch) // 2
            return self._embed(kind, batch[:middle]) + self._embed(kind, batch[middle:])
        return [np.frombuffer(base64.b64decode(row), dtype="<f4").astype(np.float32) for row in rows]

    def _stacked(self, rows: list[Float32[ndarray, " E"]]) -> Float32[ndarray, "N E"]:
        return np.stack(rows) if rows else np.empty((0, self.dim), dtype=np.float32)

    def _request(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON response of the server. Requests that are answered with 429 or 503 are repeated.

        Raises:
            _TooLargeError: the request is too large for the server or a proxy.
            DiptychError: the server cannot be reached, or refuses the request.
        """
        content = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | ({} if self._key is None else {"X-API-Key": self._key})
        request = urllib.request.Request(self.url + path, content, headers, method=method)

        def send() -> Any:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as response:
                return json.load(response)

        try:
            return retry(send, attempts=_MAX_ATTEMPTS, is_temporary=_is_busy, wait_s=lambda _, error: _wait_s(error))
        except urllib.error.HTTPError as error:
            with error:
                kind = _TooLargeError if error.code == 413 else DiptychError
                raise kind(f"{self.url}: {_detail(error)}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            # Servers and proxies often close the connection before the client reads that a large request was refused.
            is_cut = isinstance(reason, BrokenPipeError | ConnectionResetError) and len(content or b"") > _LARGE_BYTES
            kind = _TooLargeError if is_cut else DiptychError
            raise kind(f"{self.url}: does not answer ({reason})") from None


def _is_busy(error: Exception) -> bool:
    return isinstance(error, urllib.error.HTTPError) and error.code in {429, 503}


def _wait_s(error: Exception) -> float:
    """The seconds to wait according to the response of a busy server, 1 by default. Closes the response."""
    assert isinstance(error, urllib.error.HTTPError)
    with error:
        wait = error.headers.get("Retry-After", "")
    return float(wait) if wait.isdigit() else 1.0


def _size(item: str) -> int:
    """Bytes of an input in JSON, with its separator."""
    return len(json.dumps(item)) + 2


def _parse_hit(payload: dict[str, Any]) -> SearchHit:
    """Parse a hit. Unknown fields are ignored; fields that an earlier server does not send are None."""
    known: dict[str, Any] = {field.name: payload.get(field.name) for field in fields(SearchHit)}
    known |= {
        "captions": tuple(payload["captions"]),
        "similar": tuple(_parse_hit(similar) for similar in payload.get("similar", ())),
    }
    return SearchHit(**known)


def _detail(error: urllib.error.HTTPError) -> str:
    try:
        return str(json.load(error)["detail"])
    except (ValueError, KeyError, TypeError, OSError):
        return f"answered {error.code} {error.reason}"


__getattr__ = renamed_names(__name__, {"Hit": "SearchHit"})
