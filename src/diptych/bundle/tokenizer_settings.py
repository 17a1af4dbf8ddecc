"""Read the ids of special tokens from the tokenizer files of a Hugging Face folder."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from diptych.bundle.json_objects import read_object
from diptych.core.errors import BundleError
from diptych.tokenizers.pretrained import MAX_BYTES

TOKENIZER_JSON = "tokenizer.json"
SETTINGS, SPECIAL, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
_MAX_ID = 2**24


class TokenizerFolder:
    """The tokenizer files of a folder. Each file is parsed on first use, because a `tokenizer.json` can have 60 MB."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content of `tokenizer.json`.

        Raises:
            BundleError: the file is damaged.
        """
        return _object(self.folder / TOKENIZER_JSON)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The content of `tokenizer_config.json`.

        Raises:
            BundleError: the file is damaged.
        """
        return _object(self.folder / SETTINGS)

    @cached_property
    def model_type(self) -> str:
        """The `model_type` in `config.json`; empty if there is none.

        Raises:
            BundleError: the file is damaged.
        """
        return str(_object(self.folder / "config.json").get("model_type", ""))

    @cached_property
    def added(self) -> dict[int, dict[str, Any]]:
        """The tokens that were added to the vocabulary, by id, in the format of `tokenizer.json`.

        The source is `added_tokens_decoder` in `tokenizer_config.json` and, in older folders, `added_tokens.json`.

        Raises:
            BundleError: the files contradict each other, or an id is not valid.
        """
        listed: dict[int, dict[str, Any]] = {}
        for i, entry in _pairs(self.settings.get("added_tokens_decoder"), self.folder / SETTINGS):
            if (token := _content(entry)) is not None:
                given = entry if isinstance(entry, Mapping) else {}
                listed[i] = {"id": i, "content": token, **{flag: given.get(flag) is True for flag in _FLAGS}}
        plain = {str(i): token for token, i in _object(self.folder / ADDED).items()}
        for i, token in _pairs(plain, self.folder / ADDED):
            if i in listed and listed[i]["content"] != token:
                raise BundleError(
                    f"{self.folder}: {ADDED} says that token {i} is {token!r:.40}, but {SETTINGS} says "
                    f"{listed[i]['content']!r:.40}"
                )
            listed.setdefault(i, {"id": i, "content": token, **dict.fromkeys(_FLAGS, False), "normalized": True})
        return dict(sorted(listed.items()))

    def special_name(self, name: str) -> str | None:
        """Return the special token with a name such as `pad_token`; None if the folder does not define it.

        Raises:
            BundleError: two files contradict each other.
        """
        plain = {SETTINGS: self.settings, SPECIAL: _object(self.folder / SPECIAL)}
        found = {file: token for file in plain if (token := _content(plain[file].get(name))) is not None}
        if len(set(found.values())) > 1:
            raise BundleError(
                f"{self.folder}: {SETTINGS} says that {name} is {found[SETTINGS]!r:.40}, but {SPECIAL} says "
                f"{found[SPECIAL]!r:.40}"
            )
        return next(iter(found.values()), None)


def _object(path: Path) -> dict[str, Any]:
    return read_object(path, max_bytes=MAX_BYTES)


def vocabulary_of(content: Mapping[str, Any], path: Path) -> dict[str, int]:
    """Return the id of each entry of a `tokenizer.json`, including added tokens.

    Raises:
        BundleError: there is no vocabulary.
    """
    model = content.get("model")
    entries = model.get("vocab") if isinstance(model, Mapping) else None
    if isinstance(entries, Mapping):
        vocabulary = {str(token): i for token, i in entries.items() if isinstance(i, int)}
    elif isinstance(entries, list):  # Unigram: (token, score) in order of id.
        vocabulary = {str(entry[0]): i for i, entry in enumerate(entries) if isinstance(entry, list) and entry}
    else:
        raise BundleError(f"{path}: has no vocabulary")
    return vocabulary | {token: i for i, token in _listed_tokens(content)}


def start_and_end(content: Mapping[str, Any], path: Path) -> tuple[int | None, int | None]:
    """Return the ids of the tokens that the post-processor of a `tokenizer.json` adds before and after one text.

    Raises:
        BundleError: the post-processor adds several tokens on one side, or its kind is unknown.
    """
    processor = content.get("post_processor")
    if not isinstance(processor, Mapping):
        return None, None
    match processor.get("type"):
        case "Sequence":
            pairs = [start_and_end({"post_processor": part}, path) for part in processor.get("processors", [])]
            return next((pair for pair in pairs if pair != (None, None)), (None, None))
        case "ByteLevel":
            return None, None
        case "BertProcessing" | "RobertaProcessing":
            return int(processor["cls"][1]), int(processor["sep"][1])
        case "TemplateProcessing":
            return _of_template(processor, path)
        case other:
            raise BundleError(f"{path}: has a post-processor of kind {other!r:.40}, which Diptych does not support")


def _of_template(processor: Mapping[str, Any], path: Path) -> tuple[int | None, int | None]:
    before, after = list[int](), list[int]()
    side = before
    for part in processor["single"]:
        if "Sequence" in part:
            side = after
        else:
            side += processor["special_tokens"][part["SpecialToken"]["id"]]["ids"]
    if max(len(before), len(after)) > 1:
        raise BundleError(
            f"{path}: adds {len(before)} tokens before each text and {len(after)} after it; Diptych supports at most one each"
        )
    return (before[0] if before else None), (after[0] if after else None)


def _listed_tokens(content: Mapping[str, Any]) -> list[tuple[int, str]]:
    listed = content.get("added_tokens")
    entries = listed if isinstance(listed, list) else []
    return [(entry["id"], entry["content"]) for entry in entries if isinstance(entry, Mapping)]


def _content(entry: Any) -> str | None:
    """Return the text of a special token, which is a string or an object with a `content`."""
    found = entry.get("content") if isinstance(entry, Mapping) else entry
    return found if isinstance(found, str) and found else None


def _pairs(plain: Any, path: Path) -> list[tuple[int, Any]]:
    """Return the entries of an object whose keys are ids."""
    entries = plain if isinstance(plain, Mapping) else {}
    for key in entries:
        if not key.isdecimal() or int(key) > _MAX_ID:
            raise BundleError(f"{path}: {key!r:.40} is not the id of an added token")
    return [(int(key), entry) for key, entry in entries.items()]
