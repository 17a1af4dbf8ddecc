"""Read the tokenizer in an open_clip or Hugging Face folder, and the text preparation that its files describe.

Other libraries read `tokenizer.json` in Hugging Face's format. If the tokenizer may differ from CLIP's, `diptych export` also
writes the bundle's own tokenizer file, as `diptych_KIND.json`, and its text preparation. Diptych reads those files, so the ids
and the identity of the model stay the same.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from diptych.bundle.json_objects import read_object
from diptych.bundle.read_tokenizer import checked_tokenizer, read_tokenizer
from diptych.bundle.tokenizer_settings import (
    ADDED,
    SETTINGS,
    TOKENIZER_JSON,
    TokenizerFolder,
    start_and_end,
    vocabulary_of,
)
from diptych.core.errors import BundleError, ConfigError
from diptych.core.settings import from_plain, read_bytes, to_plain
from diptych.models.config import CLIPConfig
from diptych.tokenizers.clip_bpe import MARKS, NAMES, ClipBPETokenizer, clip_vocabulary
from diptych.tokenizers.hugging_face import clip_tokenizer_json, tokenizer_files
from diptych.tokenizers.load_tokenizer import TokenizerKind, tokenizer_file
from diptych.tokenizers.preparation import SIGLIP, SIGLIP_2, Cleaning, TextPreparation
from diptych.tokenizers.pretrained import MAX_BYTES, PretrainedTokenizer
from diptych.tokenizers.protocol import Tokenizer
from diptych.tokenizers.sentence_pieces import sentence_piece_ids

START, END = NAMES["openai"]
"""Names of CLIP's start and end tokens in models on the Hugging Face hub."""
_SENTENCE_PIECES = ("spiece.model", "tokenizer.model")
_FAIRSEQ = "sentencepiece.bpe.model"
_PREPARATION = "diptych_preparation.json"
_SAVE = (
    "save the tokenizer once more with transformers (AutoTokenizer.from_pretrained, save_pretrained), which writes it"
)
_HUB_MARKS = {mark.strip("<>"): name.strip("<>") for mark, name in zip(MARKS, (START, END), strict=True)}
_CLIP_TYPES = frozenset({"clip", "clip_text_model", "metaclip_2"})
"""Model types whose text tower pools the first end token."""


def own_tokenizer_file(folder: Path) -> tuple[TokenizerKind, Path] | None:
    """Return the kind and the path of Diptych's tokenizer file in a folder; None if there is none."""
    kinds: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
    return next(((kind, path) for kind in kinds if (path := _path(folder, kind)).is_file()), None)


def write_own_tokenizer(tokenizer: Tokenizer, kind: TokenizerKind, folder: Path) -> None:
    """Write Diptych's tokenizer file to a folder, and the text preparation if the tokenizer has one.

    Raises:
        OSError: a file cannot be written.
    """
    tokenizer.save(_path(folder, kind))
    preparation = getattr(tokenizer, "preparation", TextPreparation())
    if preparation != TextPreparation():
        (folder / _PREPARATION).write_text(json.dumps(to_plain(preparation), indent=2) + "\n", encoding="utf-8")


def tokenizer_file_of(folder: Path) -> tuple[TokenizerKind, Path | None]:
    """Return the kind and the file of the tokenizer in an open_clip or Hugging Face folder.

    The order of precedence is Diptych's own file, `tokenizer.json`, CLIP's `vocab.json`, a sentencepiece model. For a folder
    without any of them, the kind is CLIP's tokenizer and the path is None. CLIP's vocabulary with added tokens is `pretrained`.

    Raises:
        BundleError: the files contradict each other, or Diptych does not read their format.
    """
    return _file_of(TokenizerFolder(folder))


def _file_of(files: TokenizerFolder) -> tuple[TokenizerKind, Path | None]:
    folder, own = files.folder, own_tokenizer_file(files.folder)
    if own is not None:
        return own
    path, old = folder / TOKENIZER_JSON, folder / "vocab.json"
    is_old_clip = old.is_file() and read_object(old) in _clip_vocabularies()
    if path.is_file():
        is_clip = _is_clip(files.content)
        if is_old_clip and not is_clip:
            raise BundleError(f"{folder}: vocab.json holds CLIP's vocabulary, but {TOKENIZER_JSON} holds another")
        return ("clip-bpe" if is_clip and not _beyond_clip(files) else "pretrained"), path
    if is_old_clip:
        return ("pretrained" if _beyond_clip(files) else "clip-bpe"), old
    for name in _SENTENCE_PIECES:
        if (folder / name).is_file():
            return "sentencepiece", folder / name
    for name in (_FAIRSEQ, "vocab.json", "vocab.txt"):
        if (folder / name).is_file():
            reason = ", whose ids differ from the model's" if name == _FAIRSEQ else ""
            raise BundleError(f"{folder}: has {name}{reason}, but no {TOKENIZER_JSON}; {_SAVE}")
    return "clip-bpe", None


def preparation_of(folder: Path) -> TextPreparation:
    """Return the text preparation that the files of a Hugging Face folder describe.

    The start and end tokens come from the post-processor of `tokenizer.json` and the switches of `tokenizer_config.json`. The
    padding comes from `tokenizer_config.json` or `special_tokens_map.json`. SigLIP and SigLIP 2 are recognized by `model_type`
    or by the class of their tokenizer or processor. Where versions of transformers differ, the result follows big_vision, with
    which these models were trained.

    Raises:
        BundleError: the files contradict each other, are damaged, or do not define which tokens are added to a text.
    """
    files = TokenizerFolder(folder)
    kind, path = _file_of(files)
    if (folder / _PREPARATION).is_file() and own_tokenizer_file(folder) is not None:
        try:
            return from_plain(TextPreparation, read_object(folder / _PREPARATION), what=str(folder / _PREPARATION))
        except ConfigError as error:
            raise BundleError(str(error)) from None
    if path is None or kind == "clip-bpe":
        return TextPreparation(special_names="openai")
    if path.name.startswith("diptych_"):
        return TextPreparation()
    try:
        return _of_sentence_pieces(files, path) if kind == "sentencepiece" else _of_json(files, path)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise BundleError(f"{path}: is damaged ({type(error).__name__}: {error})") from None


def with_open_clip_cleaning(
    preparation: TextPreparation, *, clean: str = "whitespace", strip_sep_token: bool = False
) -> TextPreparation:
    """Return a preparation that also contains the steps of open_clip's `HFTokenizer`.

    Args:
        preparation: the preparation that the tokenizer's own files describe.
        clean: open_clip's cleaning mode.
        strip_sep_token: whether the end token is replaced with id 0, as for CLIPA.

    Raises:
        ConfigError: the mode is unknown.
    """
    modes: tuple[Cleaning, ...] = get_args(Cleaning)
    mode = next((known for known in modes[1:] if known == clean), None)
    if mode is None:
        raise ConfigError(f"tokenizer_kwargs has clean {clean!r:.40}; Diptych supports {', '.join(modes[1:])}")
    found = replace(preparation, clean=mode, end_id=0 if strip_sep_token else preparation.end_id)
    # Without punctuation, a text contains no special tokens.
    return replace(found, special_tokens="text") if mode == "canonicalize" else found


def tokenizer_of(config: CLIPConfig, folder: Path) -> Tokenizer:
    """Return the tokenizer of a model that was read from an open_clip or Hugging Face folder.

    Raises:
        BundleError: the tokenizer's file is damaged, does not fit the model, or is of another kind than in the config.
        ConfigError: the tokenizer is a sentencepiece model, and `sentencepiece` is not installed.
    """
    files, text = TokenizerFolder(folder), config.text
    if text.tokenizer == "clip-bpe" and own_tokenizer_file(folder) is None:
        return ClipBPETokenizer(context_length=text.context_length, special_names=text.preparation.special_names)
    kind, path = _file_of(files)
    if kind != text.tokenizer or path is None:
        raise BundleError(f"{folder}: has a tokenizer of kind {kind}, but its model expects {text.tokenizer}")
    missing = _missing_tokens(files, path) if kind == "pretrained" else []
    if not missing:
        return read_tokenizer(config, path)
    content = clip_tokenizer_json() if path.name == "vocab.json" else files.content
    content = {**content, "added_tokens": [*content.get("added_tokens", []), *missing]}
    tokenizer = checked_tokenizer(config, path, lambda: _of_content(content, config))
    _check_added(tokenizer, missing, folder)
    return tokenizer


def with_hub_marks(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of CLIP's `tokenizer.json` with the names of the start and end tokens that OpenAI's models use.

    >>> with_hub_marks({"vocab": {"<start_of_text>": 49406}, "names": ["<end_of_text>"]})
    {'vocab': {'<|startoftext|>': 49406}, 'names': ['<|endoftext|>']}
    """
    return {_renamed(name): _with_hub_marks(value, is_regex=name == "Regex") for name, value in content.items()}


def transformers_tokenizer_files(tokenizer: Tokenizer, *, with_mask: bool) -> dict[str, dict[str, Any]]:
    """Return the content of the tokenizer files of a folder for `transformers`, by name.

    `tokenizer.json` has no truncation, because `transformers` would print a warning in each call that pads without truncating.
    `transformers` reads the context length from `tokenizer_config.json`.

    Args:
        tokenizer: the tokenizer; Hugging Face's format must support it.
        with_mask: whether the model uses an attention mask.
    """
    files = tokenizer_files(tokenizer)
    assert files is not None
    files["tokenizer.json"]["truncation"] = None
    if not with_mask:
        files["tokenizer_config.json"]["model_input_names"] = ["input_ids"]
    return files


def _of_json(files: TokenizerFolder, path: Path) -> TextPreparation:
    """Return the preparation of a folder with `tokenizer.json`, or with CLIP's `vocab.json` and added tokens."""
    content = clip_tokenizer_json() if path.name == "vocab.json" else files.content
    vocabulary = vocabulary_of(content, path) | {each["content"]: i for i, each in files.added.items()}
    start_id, end_id = start_and_end(content, path)
    if content.get("post_processor") is None:
        start_id, end_id = (_added_by_switch(files, name, vocabulary) for name in ("bos_token", "eos_token"))
    else:
        _check_switch(files, "bos_token", start_id, vocabulary)
        _check_switch(files, "eos_token", end_id, vocabulary)
    _check_case(files)
    pad = files.special_name("pad_token")
    pad_id = (end_id or 0) if pad is None else _id_of(pad, vocabulary, files.folder)
    found = TextPreparation(start_id=start_id, end_id=end_id, pad_id=pad_id)
    if _is_siglip(files):
        return _siglip(files, found, is_t5=content["model"].get("type") == "Unigram")
    return replace(found, stops_at_end=files.model_type in _CLIP_TYPES and end_id is not None)


def _of_sentence_pieces(files: TokenizerFolder, path: Path) -> TextPreparation:
    """Return the preparation of a folder with only a sentencepiece model. The tokenizer's class defines the added tokens."""
    folder, settings = files.folder, files.settings
    try:
        pieces = sentence_piece_ids(read_bytes(path, max_bytes=MAX_BYTES))
    except RuntimeError as error:
        raise BundleError(f"{path}: is damaged ({' '.join(str(error).split()):.200})") from None
    of_class, is_siglip = str(settings.get("tokenizer_class", "")), _is_siglip(files)
    adds_end = settings.get("add_eos_token", is_siglip or of_class.startswith(("T5", "MT5")) or None)
    if adds_end is None:
        raise BundleError(f"{folder}: does not define which tokens are added to a text; {_SAVE} as {TOKENIZER_JSON}")
    is_t5 = "Gemma" not in of_class and "Siglip2" not in of_class
    names = {"eos_token": "</s>" if is_t5 else "<eos>", "bos_token": "<bos>", "pad_token": "<pad>"}
    names["pad_token"] = names["eos_token"] if is_siglip and is_t5 else names["pad_token"]
    ids = {name: _id_of(files.special_name(name) or names[name], pieces, folder) for name in ("eos_token", "pad_token")}
    start = files.special_name("bos_token") or names["bos_token"]
    start_id = _id_of(start, pieces, folder) if settings.get("add_bos_token") else None
    found = TextPreparation(start_id=start_id, end_id=ids["eos_token"] if adds_end else None, pad_id=ids["pad_token"])
    return _siglip(files, found, is_t5=is_t5) if is_siglip else found


def _siglip(files: TokenizerFolder, found: TextPreparation, *, is_t5: bool) -> TextPreparation:
    """Return SigLIP's preparation with the ids in a folder.

    Raises:
        BundleError: the folder adds a start token, or no end token.
    """
    if found.start_id is not None or found.end_id is None:
        added = "no end token" if found.end_id is None else "a start token"
        raise BundleError(
            f"{files.folder}: adds {added}, but SigLIP was trained with an end token and without a start token"
        )
    return replace(SIGLIP if is_t5 else SIGLIP_2, end_id=found.end_id, pad_id=found.pad_id)


def _is_siglip(files: TokenizerFolder) -> bool:
    names = [files.settings.get("tokenizer_class"), files.settings.get("processor_class")]
    return files.model_type.startswith("siglip") or any(str(name).startswith("Siglip") for name in names)


def _check_switch(files: TokenizerFolder, name: str, found: int | None, vocabulary: Mapping[str, int]) -> None:
    """Raise an error if `add_bos_token` or `add_eos_token` contradicts the post-processor."""
    switch, token = files.settings.get(f"add_{name}"), files.special_name(name)
    is_this = found is not None and found == vocabulary.get(token or "")
    if (switch is True and found is None) or (switch is False and is_this):
        raise BundleError(
            f"{files.folder}: {SETTINGS} has add_{name} {switch}, but the post-processor of {TOKENIZER_JSON} adds "
            f"{'none' if found is None else 'one'}"
        )


def _added_by_switch(files: TokenizerFolder, name: str, vocabulary: Mapping[str, int]) -> int | None:
    if files.settings.get(f"add_{name}") is not True:
        return None
    token = files.special_name(name)
    if token is None:
        raise BundleError(f"{files.folder}: {SETTINGS} has add_{name}, but no {name}")
    return _id_of(token, vocabulary, files.folder)


def _check_case(files: TokenizerFolder) -> None:
    """Raise an error if `do_lower_case` contradicts BERT's normalizer, which defines whether texts are lowercased."""
    normalizer, switch = files.content.get("normalizer"), files.settings.get("do_lower_case")
    if not isinstance(normalizer, Mapping) or normalizer.get("type") != "BertNormalizer":
        return
    if isinstance(switch, bool) and normalizer["lowercase"] != switch:
        raise BundleError(
            f"{files.folder}: {SETTINGS} has do_lower_case {switch}, but the normalizer of {TOKENIZER_JSON} has lowercase "
            f"{normalizer['lowercase']}"
        )


def _id_of(token: str, vocabulary: Mapping[str, int], folder: Path) -> int:
    if token not in vocabulary:
        raise BundleError(f"{folder}: names the special token {token!r:.40}, which is not in its vocabulary")
    return vocabulary[token]


def _clip_vocabularies() -> tuple[dict[str, int], dict[str, int]]:
    """Return CLIP's vocabulary twice: with the special token names used on the hub, and with open_clip's."""
    ours = clip_vocabulary()
    names = dict(zip(MARKS, (START, END), strict=True))
    return {names.get(token, token): i for token, i in ours.items()}, ours


def _is_clip(content: Mapping[str, Any]) -> bool:
    model = content.get("model")
    return isinstance(model, Mapping) and model.get("vocab") in _clip_vocabularies()


def _beyond_clip(files: TokenizerFolder) -> bool:
    """Whether tokens were added to CLIP's vocabulary."""
    listed = files.content.get("added_tokens") or []
    ids = [each.get("id") for each in listed if isinstance(each, Mapping)]
    return any(isinstance(i, int) and i >= len(clip_vocabulary()) for i in [*ids, *files.added])


def _missing_tokens(files: TokenizerFolder, path: Path) -> list[dict[str, Any]]:
    """Return the added tokens of a folder that are missing in its `tokenizer.json` or CLIP's `vocab.json`."""
    if path.name not in (TOKENIZER_JSON, "vocab.json") or not files.added:
        return []
    known = vocabulary_of(clip_tokenizer_json() if path.name == "vocab.json" else files.content, path)
    for i, entry in files.added.items():
        if known.get(entry["content"], i) != i:
            raise BundleError(
                f"{files.folder}: token {entry['content']!r:.40} has id {i} in {SETTINGS} or {ADDED}, but "
                f"{known[entry['content']]} in {path.name}"
            )
    return [entry for entry in files.added.values() if entry["content"] not in known]


def _of_content(content: Mapping[str, Any], config: CLIPConfig) -> Tokenizer:
    text = config.text
    return PretrainedTokenizer(
        json.dumps(content, ensure_ascii=False), context_length=text.context_length, preparation=text.preparation
    )


def _check_added(tokenizer: Tokenizer, added: list[dict[str, Any]], folder: Path) -> None:
    """Raise an error unless the added tokens have the ids that the folder lists. The engine numbers them without gaps."""
    assert isinstance(tokenizer, PretrainedTokenizer)
    for entry in added:
        if (found := tokenizer.id_of(entry["content"])) != entry["id"]:
            raise BundleError(
                f"{folder}: the added token {entry['content']!r:.40} would get id {found}, not {entry['id']}"
            )


def _path(folder: Path, kind: TokenizerKind) -> Path:
    return folder / f"diptych_{kind}{Path(tokenizer_file(kind)).suffix}"


def _with_hub_marks(value: Any, *, is_regex: bool) -> Any:
    if isinstance(value, str):
        return _renamed(value, is_regex=is_regex)
    if isinstance(value, Mapping):
        return with_hub_marks(value)
    return [_with_hub_marks(each, is_regex=False) for each in value] if isinstance(value, list) else value


def _renamed(text: str, *, is_regex: bool = False) -> str:
    for mark, name in _HUB_MARKS.items():
        text = text.replace(mark, name.replace("|", r"\|") if is_regex else name)
    return text
