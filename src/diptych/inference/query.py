"""What is looked for: texts and pictures with weights, as `"beach" + 0.5*photo.jpg - "people"`.

Shapes: Q queries, E embedding.
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
    """One thing that is looked for, or to be avoided."""

    kind: Literal["text", "image"]
    value: ImageInput
    """The text, or the picture."""
    weight: float = 1.0
    """Negative to avoid the term; within [-100, 100]."""

    def __post_init__(self) -> None:
        if not abs(self.weight) <= MAX_WEIGHT:
            raise ConfigError(
                f"the weight of {describe(self.value)!r} is {self.weight:g}; it must lie within "
                f"[{-MAX_WEIGHT:g}, {MAX_WEIGHT:g}]"
            )


@dataclass(frozen=True)
class Query:
    """The weighted sum of some terms."""

    terms: tuple[Term, ...]

    def __str__(self) -> str:
        """As it is written, signs and weights where they say something."""
        shown = [
            f"{'-' if term.weight < 0 else '+'} {'' if abs(term.weight) == 1 else f'{abs(term.weight):g}*'}"
            f"{describe(term.value)}"
            for term in self.terms
        ]
        return " ".join(shown).removeprefix("+ ")


def parse_query(text: str) -> Query:
    """Terms between ` + ` and ` - `, each with a weight in front if it has one.

    What is quoted is a text; what is not is a picture, if there is such a file, it ends as one or is a URL; otherwise a text.

    Raises:
        ConfigError: a term is empty, a quotation mark is unmatched, or a weight is above 100.

    >>> parse_query('a dog + 0.5*"snow" - people').terms[1]
    Term(kind='text', value='snow', weight=0.5)
    """
    rest = text.strip()
    lead = re.match(r"-\s+", rest)
    sign, place, terms = (-1.0, lead.end(), []) if lead else (1.0, 0, list[Term]())
    while True:
        match = _TERM.match(rest, place)
        if match is None or rest.count('"', place, match.end()) not in {0, 2}:
            raise ConfigError(f"the query cannot be read from {rest[place : place + 20]!r} on, in {text!r}")
        value = match["quoted"] if match["quoted"] is not None else match["bare"]
        weight = sign * float(match["weight"] or 1)
        terms.append(_term(value.strip(), weight, is_quoted=match["quoted"] is not None))
        following = _SIGN.match(rest, match.end())
        if following is None:
            return Query(tuple(terms))
        sign, place = (1.0 if following[1] == "+" else -1.0), following.end()


def _term(value: str, weight: float, *, is_quoted: bool) -> Term:
    if not value:
        raise ConfigError("the text to search for is empty")
    looks_so = Path(value).suffix.lower() in IMAGE_SUFFIXES or is_remote(value)
    is_picture = not is_quoted and (looks_so or path_kind(value) == "file")
    return Term(kind="image" if is_picture else "text", value=value, weight=weight)


def query_embeddings(
    embedder: Encoder, queries: Sequence[str | Query], *, advance: Callable[[], object] = lambda: None
) -> Float32[ndarray, "Q E"]:
    """Of each query the weighted sum of its terms' unit embeddings, of unit length; a string is one text as it stands.

    `advance` is called once for each text.

    Raises:
        ConfigError: a query has no term, or its terms cancel out.
        DiptychError: `queries` is a single query.
        ImageError: a picture cannot be read.
    """
    check_list(queries, "queries")
    terms = [
        (row, term)
        for row, query in enumerate(queries)
        for term in (query.terms if isinstance(query, Query) else (Term(kind="text", value=query),))
    ]
    texts = [(row, term) for row, term in terms if term.kind == "text"]
    pictures = [(row, term) for row, term in terms if term.kind == "image"]
    total = np.zeros((len(queries), embedder.dim), dtype=np.float32)
    if texts:
        _sum_up(total, texts, embedder.encode_texts([str(term.value) for _, term in texts], advance=advance))
    if pictures:
        _sum_up(total, pictures, embedder.encode_images([term.value for _, term in pictures]))
    for query in queries:
        if isinstance(query, Query) and not query.terms:
            raise ConfigError("nothing to search for")
    return unit_sums(total, queries)


def unit_sums(total: Float32[ndarray, "Q E"], names: Sequence[object]) -> Float32[ndarray, "Q E"]:
    """Sums of terms, brought to unit length; `names` say in an error which it is.

    Raises:
        ConfigError: the terms of a query cancel out, or their sum is not finite.
    """
    lengths = np.linalg.norm(total, axis=1, keepdims=True)
    for name, length in zip(names, lengths[:, 0], strict=True):
        if not np.isfinite(length):
            raise ConfigError(f"the sum of the query's terms is not a finite vector: {name}")
        if not length > 1e-6:
            raise ConfigError(f"the terms of the query cancel out; nothing is left to search for: {name}")
    return total / lengths


def _sum_up(total: Float32[ndarray, "Q E"], terms: Sequence[tuple[int, Term]], emb: Float32[ndarray, "N E"]) -> None:
    for (row, term), vector in zip(terms, emb, strict=True):
        total[row] += np.float32(term.weight) * vector
