"""Queries: weighted sums of texts and images, such as `"beach" + 0.5*photo.jpg - "people"`.

Shapes: Q queries, N terms, E embedding.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.core.lists import check_list
from diptych.core.paths import path_kind
from diptych.core.remote import is_remote
from diptych.core.sample import ImageInput
from diptych.images.decode import IMAGE_SUFFIXES, describe
from diptych.inference.encoder import Encoder

MAX_WEIGHT = 100.0
"""Maximum absolute weight of a term."""
_TERM = re.compile(
    r"""(?:(?P<weight>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+)?)\s*\*\s*)?(?:"(?P<quoted>[^"]*)"|(?P<bare>.+?))(?=\s+[+-]\s|\s*$)"""
)
_SIGN = re.compile(r"\s*([+-])\s+")


@dataclass(frozen=True, kw_only=True)
class Term:
    """A text or an image with a weight.

    Raises:
        ConfigError: the weight is outside [-100, 100].
    """

    kind: Literal["text", "image"]
    value: ImageInput
    """The text, or the image."""
    weight: float = 1.0
    """Weight within [-100, 100]; negative to search for results that are dissimilar to the term."""

    def __post_init__(self) -> None:
        if not abs(self.weight) <= MAX_WEIGHT:
            raise ConfigError(
                f"the weight of {describe(self.value)!r} is {self.weight:g}; it must lie within "
                f"[{-MAX_WEIGHT:g}, {MAX_WEIGHT:g}]"
            )


@dataclass(frozen=True)
class Query:
    """A weighted sum of terms.

    >>> str(Query((Term(kind="text", value="a dog"), Term(kind="text", value="snow", weight=-0.5))))
    'a dog - 0.5*snow'
    """

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        """The query in the syntax of `parse_query`, without quotation marks. A weight of 1 is omitted."""
        shown = [
            f"{'-' if term.weight < 0 else '+'} {'' if abs(term.weight) == 1 else f'{abs(term.weight):g}*'}"
            f"{describe(term.value)}"
            for term in self.terms
        ]
        return " ".join(shown).removeprefix("+ ")


def parse_query(text: str) -> Query:
    """Parse a query: terms separated by ` + ` or ` - `, each with an optional weight and `*` in front.

    A quoted term is a text. An unquoted term is an image if it is an existing file, has the suffix of an image file or is a
    URL; otherwise it is a text.

    Raises:
        ConfigError: a term is empty, a quotation mark is unmatched, or a weight is above 100.

    >>> parse_query('a dog + 0.5*"snow" - people').terms[1]
    Term(kind='text', value='snow', weight=0.5)
    """
    rest = text.strip()
    if not rest:
        raise ConfigError("the query is empty")
    lead = re.match(r"-\s+", rest)
    sign, position, terms = (-1.0, lead.end(), []) if lead else (1.0, 0, list[Term]())
    while True:
        match = _TERM.match(rest, position)
        if match is None or rest.count('"', position, match.end()) not in {0, 2}:
            raise ConfigError(f"the query {text!r} cannot be parsed at {rest[position : position + 20]!r}")
        value = match["quoted"] if match["quoted"] is not None else match["bare"]
        weight = sign * float(match["weight"] or 1)
        terms.append(_term(value.strip(), weight, is_quoted=match["quoted"] is not None))
        following = _SIGN.match(rest, match.end())
        if following is None:
            return Query(tuple(terms))
        sign, position = (1.0 if following[1] == "+" else -1.0), following.end()


def _term(value: str, weight: float, *, is_quoted: bool) -> Term:
    if not value:
        raise ConfigError("the text to search for is empty")
    is_image_name = Path(value).suffix.lower() in IMAGE_SUFFIXES or is_remote(value)
    is_image = not is_quoted and (is_image_name or path_kind(value) == "file")
    return Term(kind="image" if is_image else "text", value=value, weight=weight)


def query_embeddings(
    embedder: Encoder, queries: Sequence[str | Query], *, advance: Callable[[], object] = lambda: None
) -> Float32[ndarray, "Q E"]:
    """Embeddings of unit length, one row per query: the normalized weighted sum of the embeddings of its terms.

    Args:
        embedder: the encoder.
        queries: queries; a string is a single text and is not parsed.
        advance: called once per text.

    Raises:
        ConfigError: a query has no term, or its terms cancel out.
        DiptychError: `queries` is a single query.
        ImageError: an image cannot be read.
    """
    check_list(queries, "queries")
    terms = [
        (row, term)
        for row, query in enumerate(queries)
        for term in (query.terms if isinstance(query, Query) else (Term(kind="text", value=query),))
    ]
    texts = [(row, term) for row, term in terms if term.kind == "text"]
    images = [(row, term) for row, term in terms if term.kind == "image"]
    total = np.zeros((len(queries), embedder.dim), dtype=np.float32)
    if texts:
        _add_terms(total, texts, embedder.encode_texts([str(term.value) for _, term in texts], advance=advance))
    if images:
        _add_terms(total, images, embedder.encode_images([term.value for _, term in images]))
    for query in queries:
        if isinstance(query, Query) and not query.terms:
            raise ConfigError("nothing to search for")
    return unit_sums(total, queries)


def unit_sums(total: Float32[ndarray, "Q E"], names: Sequence[object]) -> Float32[ndarray, "Q E"]:
    """Normalize sums of terms to unit length.

    Args:
        total: one sum per query.
        names: one name per query, for error messages.

    Raises:
        ConfigError: the terms of a query cancel out, or their sum is not finite.

    >>> unit_sums(np.array([[0, 2]], dtype=np.float32), ["a query"]).tolist()
    [[0.0, 1.0]]
    """
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    for name, length in zip(names, lengths[:, 0], strict=True):
        if not np.isfinite(length):
            raise ConfigError(f"the sum of the query's terms is not a finite vector: {name}")
        if not length > 1e-6:
            raise ConfigError(f"the terms of the query cancel out; their sum is close to zero: {name}")
    return total / lengths


def _add_terms(total: Float32[ndarray, "Q E"], terms: Sequence[tuple[int, Term]], emb: Float32[ndarray, "N E"]) -> None:
    for (row, term), vector in zip(terms, emb, strict=True):
        total[row] += np.float32(term.weight) * vector
