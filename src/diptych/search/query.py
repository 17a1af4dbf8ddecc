"""What is looked for: texts and pictures with weights, as `"beach" + 0.5*photo.jpg - "people"`. Shapes: E embedding."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from diptych.core.errors import ConfigError
from diptych.images.decode import IMAGE_SUFFIXES
from diptych.inference.loaded import LoadedBundle

_TERM = re.compile(
    r"""(?:(?P<weight>\d+(?:\.\d+)?|\.\d+)\s*\*\s*)?(?:"(?P<quoted>[^"]*)"|(?P<bare>.+?))(?=\s+[+-]\s|\s*$)"""
)
_SIGN = re.compile(r"\s*([+-])\s+")


@dataclass(frozen=True, kw_only=True)
class Term:
    """One thing that is looked for, or to be avoided."""

    kind: Literal["text", "image"]
    value: str
    """The text, or the picture's path."""
    weight: float = 1.0
    """Negative for what is to be avoided."""


def parse_query(text: str) -> list[Term]:
    """Terms between ` + ` and ` - `, each with a weight in front if it has one.

    What is quoted is a text; what is not is a picture, if there is such a file or it ends as one, and a text otherwise.

    Raises:
        ConfigError: a term is empty, or a quotation mark is alone.

    >>> parse_query('a dog + 0.5*"snow" - people')[1]
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
            return terms
        sign, place = (1.0 if following[1] == "+" else -1.0), following.end()


def _term(value: str, weight: float, *, is_quoted: bool) -> Term:
    if not value:
        raise ConfigError("the text to search for is empty")
    is_picture = not is_quoted and (Path(value).suffix.lower() in IMAGE_SUFFIXES or Path(value).is_file())
    return Term(kind="image" if is_picture else "text", value=value, weight=weight)


def query_vector(clip: LoadedBundle, terms: Sequence[Term]) -> Float32[ndarray, " E"]:
    """The weighted sum of the terms' unit embeddings, of unit length.

    Raises:
        ConfigError: there is no term, or they cancel out.
        ImageError: a picture cannot be read.
    """
    if not terms:
        raise ConfigError("nothing to search for")
    texts = [term for term in terms if term.kind == "text"]
    pictures = [term for term in terms if term.kind == "image"]
    total = np.zeros(clip.bundle.config.embed_dim, dtype=np.float32)
    if texts:
        total += _weights(texts) @ clip.encode_texts([term.value for term in texts])
    if pictures:
        total += _weights(pictures) @ clip.encode_images([term.value for term in pictures])
    length = float(np.linalg.norm(total))
    if length < 1e-6:
        raise ConfigError("the terms of the query cancel out; nothing is left to search for")
    return total / np.float32(length)


def _weights(terms: Sequence[Term]) -> Float32[ndarray, " N"]:
    return np.array([term.weight for term in terms], dtype=np.float32)
