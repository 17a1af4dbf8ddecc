"""The text preparation of a model: how texts become the token ids that its text tower was trained with.

A tokenizer's own file contains its vocabulary and its normalization. The rest is lowercasing, removal of punctuation, the added
special tokens, and the id of the padding. Other libraries have it in code, in the config of a processor, or in the
documentation. Diptych stores it in the config of a bundle, and needs it to build a tokenizer. Decision 0046 lists the sources.
"""

import html
import re
import string
from typing import Literal, TypeAlias

from diptych.core.errors import DataError
from diptych.core.settings import settings

Cleaning: TypeAlias = Literal["none", "whitespace", "lower", "canonicalize"]
"""The names of open_clip's `clean` modes, and `none`."""
SpecialNames: TypeAlias = Literal["open-clip", "openai"]
"""Library whose names of CLIP's start and end tokens are parsed in a text."""

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ASCII_LOWER = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


@settings
class TextPreparation:
    """Processing of a text before and after the tokenizer's own file is applied.

    The tokenizers `pretrained` and `sentencepiece` use all settings. `clip-bpe` uses only `special_names`. The other tokenizers
    have fixed rules and ignore the settings.
    """

    clean: Cleaning = "none"
    """open_clip's cleaning, which is the first step. All modes except `none` repair broken encodings (ftfy), resolve HTML
    entities twice and collapse whitespace. `lower` also lowercases. `canonicalize` also replaces underscores with spaces,
    removes ASCII punctuation and lowercases."""
    lowercase: bool = False
    """Whether texts are lowercased before they are tokenized. Parsed special tokens are not changed."""
    case_rule: Literal["full", "character", "ascii"] = "full"
    """Rule of `lowercase`. `full`: as in `str.lower`. `character`: each character on its own, without the rule for a final
    sigma, as in the normalizer of Hugging Face's `tokenizers`. `ascii`: only A to Z, as in TensorFlow."""
    remove_punctuation: bool = False
    """Whether ASCII punctuation is removed and whitespace is collapsed, as in SigLIP's tokenizer in transformers. Parsed
    special tokens are not changed."""
    special_tokens: Literal["parse", "text"] = "parse"
    """Whether names of special tokens in a text become their ids, as in transformers, or are encoded as normal text. A
    sentencepiece model always encodes them as normal text."""
    special_names: SpecialNames = "open-clip"
    """Names of CLIP's start and end tokens that `clip-bpe` parses in a text: `<start_of_text>` and `<end_of_text>` for
    `open-clip`, `<|startoftext|>` and `<|endoftext|>` for `openai`."""
    start_id: int | None = None
    """Id of the token that is added before each text; None for no token."""
    end_id: int | None = None
    """Id of the token that is added after each text, including truncated texts; None for no token."""
    stops_at_end: bool = False
    """Whether the model ignores tokens after the first end token, as CLIP does. The end token may be part of the text."""
    pad_id: int = 0
    """Id of the padding after a text. A text without tokens becomes one padding token."""


SIGLIP = TextPreparation(lowercase=True, remove_punctuation=True, special_tokens="text", end_id=1, pad_id=1)
"""The preparation of SigLIP's English and multilingual T5 vocabularies: canonical text, padded with the end token."""
SIGLIP_2 = TextPreparation(lowercase=True, case_rule="ascii", special_tokens="text", end_id=1, pad_id=0)
"""The preparation of SigLIP 2, which has Gemma's vocabulary."""


def prepare_text(text: str, preparation: TextPreparation) -> str:
    """Return the text to which the tokenizer's own file is applied.

    The case rule `character` is not applied, because the engine of `PretrainedTokenizer` applies it.

    >>> prepare_text("  A dog, running!", TextPreparation(lowercase=True, remove_punctuation=True))
    'a dog running'
    >>> prepare_text("snow_man &amp; dog", TextPreparation(clean="canonicalize"))
    'snow man dog'

    Raises:
        DataError: the text cannot be cleaned.
    """
    return normalized_text(clean_text(text, preparation), preparation)


def clean_text(text: str, preparation: TextPreparation) -> str:
    """Return the text after open_clip's cleaning, which is the first part of `prepare_text`.

    Raises:
        DataError: the text cannot be cleaned.
    """
    return text if preparation.clean == "none" else _cleaned(text, preparation.clean)


def normalized_text(text: str, preparation: TextPreparation) -> str:
    """Return the text after lowercasing and removal of punctuation, which is the second part of `prepare_text`."""
    if preparation.lowercase and preparation.case_rule != "character":
        text = text.lower() if preparation.case_rule == "full" else text.translate(_ASCII_LOWER)
    if preparation.remove_punctuation:
        text = _collapsed(text.translate(_PUNCTUATION))
    return text


def lowercase_characters(text: str) -> str:
    """Return the text with each character lowercased on its own: the case rule `character`.

    >>> lowercase_characters("ΟΔΟΣ"), "ΟΔΟΣ".lower()
    ('οδοσ', 'οδος')
    """
    return text.replace("Σ", "σ").lower() if "Σ" in text else text.lower()


def _cleaned(text: str, mode: Cleaning) -> str:
    """Return the text after open_clip's cleaning.

    Raises:
        DataError: ftfy or the parser of HTML entities cannot handle it.
    """
    text = repaired(text)
    if mode == "canonicalize":
        text = text.replace("_", " ").translate(_PUNCTUATION).lower()
    text = _collapsed(text)
    return text.lower() if mode == "lower" else text


def repaired(text: str) -> str:
    """Return the text with broken encodings repaired and HTML entities resolved twice, as in OpenAI's tokenizer.

    Raises:
        DataError: the text has an HTML entity with a number that is too long.
    """
    import ftfy  # noqa: PLC0415  (the import takes 60 ms)

    try:
        return html.unescape(html.unescape(ftfy.fix_text(text)))
    except ValueError as error:
        raise DataError(f"cannot be cleaned: {error}") from None


def _collapsed(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()
