"""Write Hugging Face's tokenizer files, from which other libraries compute the same ids as a Diptych tokenizer.

`tokenizer.json` describes text cleaning, merges, start and end tokens, truncation and padding. It contains no code, so it
cannot express a hash function, a sentencepiece model or `ftfy`'s repair of broken encodings. `docs/guides/models.md` lists the
differences.
"""

import json
import re
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

from diptych.tokenizers.character import CharacterTokenizer
from diptych.tokenizers.clip_bpe import MARKS, NAMES, ClipBPETokenizer, clip_merges, clip_vocabulary
from diptych.tokenizers.learned_bpe import LearnedBPETokenizer
from diptych.tokenizers.preparation import SpecialNames, TextPreparation
from diptych.tokenizers.pretrained import PretrainedTokenizer
from diptych.tokenizers.protocol import SPECIAL_TOKENS, UNKNOWN, Tokenizer

Json: TypeAlias = dict[str, Any]

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
"""The last file is an empty object: libraries require it, but would parse tokens that it lists in captions."""

_WHITESPACE = "[\t-\r\x1c- \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]+"
"""The whitespace of `str.split`. The characters are literal because escapes differ between regex engines."""
_ENTITIES = {"&lt;": "<", "&gt;": ">", "&quot;": '"', "&#39;": "'", "&apos;": "'", "&nbsp;": " "}
_SYMBOL = r"[^\s\p{L}\p{N}]"
_CASED, _IGNORED = r"\p{Cased}", r"\p{Case_Ignorable}"
_MAX_IGNORED = 8
_WORD_BEFORE = "|".join(_CASED + _IGNORED * count for count in range(_MAX_IGNORED + 1))
"""A letter with case, and at most `_MAX_IGNORED` marks after it: the engine looks behind a fixed number of characters."""
_C1_CONTROLS = {
    chr(byte): bytes([byte]).decode("cp1252")
    for byte in range(0x80, 0xA0)
    if byte not in {0x81, 0x8D, 0x8F, 0x90, 0x9D}
}
"""Control characters that `ftfy` takes for characters of Windows, such as U+0085 for an ellipsis."""
_MAX_MARKS = 3
"""Number of marks in sequence that are text after a symbol; a longer sequence is not expressed."""
_ASCII_PUNCTUATION = r"[!-/:-@\[-`{-~]"
_PIECES = rf"'t|'re|'ve|'m|'ll|'d|[\p{{L}}]+|[\p{{N}}]|{_SYMBOL}+"


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, Json] | None:
    """Return the content of `FILES` by name; None if the format cannot express the tokenizer (`hashing`, `sentencepiece`).

    With these files, `tokenizers.Tokenizer.from_file` and the `AutoTokenizer` of transformers and transformers.js return the
    same ids as `tokenizer.encode`. Texts are padded to the longest text of a call and truncated to the context length.
    transformers.js also removes the end token of a truncated text.

    >>> files = tokenizer_files(CharacterTokenizer("ab", context_length=8))
    >>> files["tokenizer.json"]["model"]["vocab"]
    {'<pad>': 0, '<unk>': 1, '<start>': 2, '<end>': 3, 'a': 4, 'b': 5}
    """
    match tokenizer:
        case ClipBPETokenizer():
            marks = NAMES[tokenizer.special_names]
            content, names = _clip_bpe(tokenizer.special_names), (clip_entry(tokenizer.pad_id), *marks)
        case LearnedBPETokenizer():
            content, names = _learned_bpe(tokenizer), (SPECIAL_TOKENS[0], *SPECIAL_TOKENS[2:])
        case CharacterTokenizer():
            content, names = _character(tokenizer), (SPECIAL_TOKENS[0], *SPECIAL_TOKENS[2:])
        case PretrainedTokenizer():
            content, names = _pretrained(tokenizer), _names(tokenizer)
        case _:
            return None
    pad, start, end = names
    content |= {
        "version": "1.0",
        "truncation": {
            "direction": "Right",
            "max_length": tokenizer.context_length,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": "BatchLongest",
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": tokenizer.pad_id,
            "pad_type_id": 0,
            "pad_token": pad,
        },
        "post_processor": _marked((start, tokenizer.start_id), (end, tokenizer.end_id)),
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": tokenizer.context_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "pad_token": pad,
        "split_special_tokens": True,  # Special tokens, such as the one for padding, are text in a caption.
        "clean_up_tokenization_spaces": False,
    }
    if isinstance(tokenizer, PretrainedTokenizer):
        preparation = tokenizer.preparation  # Without punctuation, special tokens in a text become words.
        settings["split_special_tokens"] = preparation.special_tokens == "text" or preparation.remove_punctuation
    else:  # transformers copies it into the pre-tokenizer.
        settings["add_prefix_space"] = isinstance(tokenizer, LearnedBPETokenizer)
    return dict(zip(FILES, (content, settings, Json()), strict=True))


def write_tokenizer_files(tokenizer: Tokenizer, folder: Path) -> bool:
    """Write `FILES` to a folder. Return False and write nothing if the format cannot express the tokenizer.

    Raises:
        OSError: a file cannot be written.
    """
    contents = tokenizer_files(tokenizer)
    for name, content in (contents or {}).items():
        (folder / name).write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")
    return contents is not None


def clip_entry(token_id: int) -> str:
    """Return the vocabulary entry of CLIP's tokenizer with this id.

    >>> clip_entry(0), clip_entry(49407)
    ('!', '<end_of_text>')
    """
    return next(entry for entry, i in clip_vocabulary().items() if i == token_id)


def clip_tokenizer_json() -> Json:
    """Return the `tokenizer.json` of transformers' `CLIPTokenizer`, which lacks the text cleaning of OpenAI's tokenizer."""
    start, end = NAMES["openai"]
    vocabulary = _clip_vocabulary("openai")
    pieces = "|".join([*map(re.escape, NAMES["openai"]), "'s", _PIECES])
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    split = {"type": "Split", "pattern": {"Regex": pieces}, "behavior": "Removed", "invert": True}
    special = [{**_added(name, vocabulary[name]), "normalized": False, "special": True} for name in (start, end)]
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [{"type": "NFC"}, _replace(r"\s+", " "), {"type": "Lowercase"}],
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, to_bytes]},
        "post_processor": _marked((start, vocabulary[start]), (end, vocabulary[end])),
        "decoder": {"type": "Sequence", "decoders": [to_bytes, _replace("</w>", " ", is_regex=False)]},
        "model": _bpe(vocabulary, clip_merges(), end_of_word_suffix="</w>", unk_token=end),
    }


def _clip_vocabulary(special_names: SpecialNames) -> dict[str, int]:
    names = dict(zip(MARKS, NAMES[special_names], strict=True))
    return {names.get(token, token): i for token, i in clip_vocabulary().items()}


def _clip_bpe(special_names: SpecialNames) -> Json:
    vocabulary, marks = _clip_vocabulary(special_names), NAMES[special_names]
    patterns = [re.escape(mark) for mark in marks]
    # A start or end token right after a symbol is text, because the piece begins with the symbol. A space prevents a match.
    after_symbol = f"(?<={_SYMBOL})" + "".join(f"(?<!{pattern})" for pattern in patterns)
    cleaning = [
        *_repair(),
        *_lowercase(),
        _replace(_WHITESPACE, " "),
        *(_replace(f"{after_symbol}{pattern}", f"< {pattern[1:]}") for pattern in patterns * _MAX_MARKS),
    ]
    piece = "|".join([*patterns, "'[s\u017f]", _PIECES])
    pieces = {"type": "Split", "pattern": {"Regex": piece}, "behavior": "Removed", "invert": True}
    to_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {
        # Not marked as special, because CLIP's tokenizer parses these tokens in a caption.
        "added_tokens": [_added(mark, vocabulary[mark]) for mark in marks],
        "normalizer": {"type": "Sequence", "normalizers": cleaning},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pieces, to_bytes]},
        "decoder": {"type": "Sequence", "decoders": [to_bytes, _replace("</w>", " ", is_regex=False)]},
        "model": _bpe(vocabulary, clip_merges(), end_of_word_suffix="</w>"),
    }


def _learned_bpe(tokenizer: LearnedBPETokenizer) -> Json:
    content: Json = json.loads(tokenizer.engine_json())
    # JavaScript and the `tokenizers` library lowercase a capital sigma at the end of a word differently.
    cleaning = [_replace("\u03a3", "\u03c3", is_regex=False), content["normalizer"]]
    return content | {"added_tokens": [], "normalizer": {"type": "Sequence", "normalizers": cleaning}}


def _character(tokenizer: CharacterTokenizer) -> Json:
    vocabulary = {token: i for i, token in enumerate((*SPECIAL_TOKENS, *tokenizer.alphabet))}
    cleaning = [*_lowercase(), _replace(_WHITESPACE, " "), {"type": "Strip", "strip_left": True, "strip_right": True}]
    characters = {"type": "Split", "pattern": {"Regex": r"[\s\S]"}, "behavior": "Isolated", "invert": False}
    return {
        "added_tokens": [],
        "normalizer": {"type": "Sequence", "normalizers": cleaning},
        "pre_tokenizer": characters,
        "decoder": {"type": "Fuse"},
        # BPE without merges, because transformers.js does not support the `WordLevel` model.
        "model": _bpe(vocabulary, [], unk_token=SPECIAL_TOKENS[UNKNOWN]),
    }


def _pretrained(tokenizer: PretrainedTokenizer) -> Json:
    """Return the tokenizer's own file with the text preparation before its normalizer."""
    content: Json = json.loads(tokenizer.engine_json())
    own = content.get("normalizer")
    if tokenizer.preparation.special_tokens == "text":
        content["added_tokens"] = [entry for entry in content.get("added_tokens") or [] if not entry["special"]]
    cleaning = [*_cleaning(tokenizer.preparation), *([] if own is None else [own])]
    return content | ({"normalizer": {"type": "Sequence", "normalizers": cleaning}} if cleaning else {})


def _cleaning(preparation: TextPreparation) -> list[Json]:
    """Return normalizers equivalent to `prepare_text`, except for texts that `ftfy` repairs and the case of rare letters."""
    collapse = [_replace(_WHITESPACE, " "), {"type": "Strip", "strip_left": True, "strip_right": True}]
    punctuation = _replace(_ASCII_PUNCTUATION, "")
    lower = {
        "full": _lowercase(),
        "character": [{"type": "Lowercase"}],
        "ascii": [_replace(letter, letter.lower(), is_regex=False) for letter in string.ascii_uppercase],
    }[preparation.case_rule]
    steps: list[Json] = []
    if preparation.clean != "none":
        steps += _repair()
        if preparation.clean == "canonicalize":
            steps += [_replace("_", " ", is_regex=False), punctuation, *_lowercase()]
        steps += collapse
        steps += _lowercase() if preparation.clean == "lower" else []
    is_last = preparation.case_rule == "character"
    steps += lower if preparation.lowercase and not is_last else []
    steps += [punctuation, *collapse] if preparation.remove_punctuation else []
    return steps + (lower if preparation.lowercase and is_last else [])


def _names(tokenizer: PretrainedTokenizer) -> tuple[str, str, str]:
    """Return the vocabulary entries for padding, start and end; an entry is empty if the tokenizer does not add that token."""
    ids = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id)
    pad, start, end = ("" if i is None else tokenizer.entry(i) for i in ids)
    return pad, start, end


def _repair() -> list[Json]:
    """Return normalizers for the most common repairs of `ftfy.fix_text` and HTML entities."""
    return [
        _replace("[\0-\b\v\x0e-\x1f\x7f\u206a-\u206f\ufeff\ufff9-\ufffc]", ""),
        {"type": "NFC"},
        _replace("&(?:amp;)+", "&"),
        *(_replace(entity, character) for entity, character in _ENTITIES.items()),
        *(_replace(control, character, is_regex=False) for control, character in _C1_CONTROLS.items()),
        _replace("[\u02bc\u2018-\u201b]", "'"),
        _replace("[\u201c-\u201f]", '"'),
    ]


def _lowercase() -> list[Json]:
    """Normalizers equal to `str.lower`. The format's own `Lowercase` does not handle a sigma at the end of a word."""
    return [_replace(f"(?<={_WORD_BEFORE})\u03a3(?!{_IGNORED}*{_CASED})", "\u03c2"), {"type": "Lowercase"}]


def _replace(pattern: str, content: str, *, is_regex: bool = True) -> Json:
    return {"type": "Replace", "pattern": {"Regex" if is_regex else "String": pattern}, "content": content}


def _added(token: str, token_id: int) -> Json:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "special"), False)
    return {"id": token_id, "content": token, "normalized": True, **flags}


def _bpe(vocabulary: Mapping[str, int], merges: list[tuple[str, str]], **given: str) -> Json:
    optional = dict.fromkeys(("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix"))
    flags = dict.fromkeys(("fuse_unk", "byte_fallback", "ignore_merges"), False)
    return {"type": "BPE", **optional, **flags, **given, "vocab": dict(vocabulary), "merges": [list(m) for m in merges]}


def _marked(*marks: tuple[str, int | None]) -> Json:
    """Return a post-processor that adds start and end token, each given as (name, id). A token with id None is left out."""
    (start, start_id), (end, end_id) = marks
    before, after = [_special(start)] * (start_id is not None), [_special(end)] * (end_id is not None)
    single = [*before, {"Sequence": {"id": "A", "type_id": 0}}, *after]
    pair = [*single, {"Sequence": {"id": "B", "type_id": 0}}, *after]
    tokens = {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in marks if i is not None}
    return {"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}


def _special(name: str) -> Json:
    return {"SpecialToken": {"id": name, "type_id": 0}}
