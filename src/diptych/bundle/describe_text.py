"""Describe the text preparation of a model in words."""

from diptych.models.config import TextConfig, TextTowerConfig
from diptych.models.third_party_config import TransformersConfig
from diptych.tokenizers.clip_bpe import NAMES
from diptych.tokenizers.load_tokenizer import PREPARED
from diptych.tokenizers.preparation import TextPreparation

_CLEANING = {
    "none": [],
    "whitespace": ["repairs broken encodings, resolves HTML entities and collapses whitespace"],
    "lower": ["repairs broken encodings, resolves HTML entities, collapses whitespace and lowercases the text"],
    "canonicalize": [
        "repairs broken encodings, resolves HTML entities, replaces underscores with spaces, removes ASCII punctuation, "
        "lowercases the text and collapses whitespace"
    ],
}
_CASES = {
    "full": "lowercases the text",
    "character": "lowercases the text, one character at a time",
    "ascii": "lowercases the letters A to Z",
}
_TOKENIZERS = {
    "character": "lowercases the text, collapses whitespace and splits it into characters",
    "learned-bpe": "lowercases the text, collapses whitespace and splits it into byte pairs learned from captions",
    "hashing": "lowercases the text and hashes its words",
    "clip-bpe": "repairs broken encodings, resolves HTML entities, lowercases the text and splits it into CLIP's byte pairs",
    "pretrained": "splits the text with the model's own tokenizer.json",
    "sentencepiece": "splits the text with the model's own sentencepiece model",
}


def describe_preparation(text: TextTowerConfig) -> list[str]:
    """Return the steps from a text to its embedding in order, one phrase per step.

    >>> siglip = TextPreparation(lowercase=True, end_id=1, pad_id=1)
    >>> config = TextConfig(tokenizer="pretrained", preparation=siglip, context_length=64, layout="siglip", is_causal=False)
    >>> steps = describe_preparation(config)
    >>> steps[0], steps[3], steps[-1]
    ('lowercases the text', 'adds token 1 after each text', 'pools the last position')
    >>> steps[5]
    'pads with token 1 to 64 tokens and attends to the padding'
    """
    steps = [*_before(text), _TOKENIZERS[text.tokenizer], *_special(text)]
    if text.tokenizer in PREPARED:
        ids = (("before", text.preparation.start_id), ("after", text.preparation.end_id))
        steps += [f"adds token {i} {where} each text" for where, i in ids if i is not None]
    else:
        steps.append("adds a start token and an end token")
    steps.append(f"truncates the text to {text.context_length} tokens and keeps the added tokens")
    return [*steps, *_padding(text), _attention(text), f"pools {_pooled(text)}"]


def _before(text: TextTowerConfig) -> list[str]:
    preparation = text.preparation if text.tokenizer in PREPARED else TextPreparation()
    return [
        *_CLEANING[preparation.clean],
        *([_CASES[preparation.case_rule]] if preparation.lowercase else []),
        *(["removes ASCII punctuation and collapses whitespace"] if preparation.remove_punctuation else []),
    ]


def _special(text: TextTowerConfig) -> list[str]:
    match text.tokenizer:
        case "pretrained":
            is_parsed = text.preparation.special_tokens == "parse"
            return [f"{'parses' if is_parsed else 'does not parse'} special tokens that are written in the text"]
        case "clip-bpe":
            return [f"parses {' and '.join(NAMES[text.preparation.special_names])} that are written in the text"]
        case _:
            return []


def _padding(text: TextTowerConfig) -> list[str]:
    if isinstance(text, TextConfig) and text.layout == "siglip":
        return [f"pads with token {text.pad_id} to {text.context_length} tokens and attends to the padding"]
    stops = text.preparation.stops_at_end if text.tokenizer in PREPARED else True
    return [*(["ignores what follows the first end token"] if stops else []), "does not attend to padding"]


def _attention(text: TextTowerConfig) -> str:
    if isinstance(text, TransformersConfig):
        return f"attends as the {text.config.get('model_type', 'encoder')} architecture of transformers does"
    return "attends to earlier tokens only" if text.is_causal else "attends in both directions"


def _pooled(text: TextTowerConfig) -> str:
    is_padded = isinstance(text, TextConfig) and text.layout == "siglip"
    match text.pooling:
        case "mean":
            return "the mean of all positions" if is_padded else "the mean of all tokens"
        case "cls":
            return "the first token"
        case "pooler":
            return "the first token with the encoder's own pooler"
        case "appended":
            return "a learned token that is appended to the text"
        case _:
            is_end = text.tokenizer not in PREPARED or text.preparation.end_id is not None
            is_last_position = is_padded and text.pooling == "eot"
            return "the last position" if is_last_position else f"the {'end' if is_end else 'last'} token"
