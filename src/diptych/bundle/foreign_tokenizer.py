"""The tokenizer in a model folder of open_clip or Hugging Face.

Other libraries read `tokenizer.json` in Hugging Face's format. If the tokenizer may be another one than CLIP's, `diptych
export` also writes the tokenizer file of the bundle, as `diptych_KIND.json`. Diptych reads that file, so the ids and the
identity of the model stay the same.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from diptych.bundle.read_tokenizer import read_tokenizer
from diptych.models.config import CLIPConfig
from diptych.tokenizers.clip_bpe import MARKS, ClipBPETokenizer
from diptych.tokenizers.hugging_face import tokenizer_files
from diptych.tokenizers.load_tokenizer import TokenizerKind
from diptych.tokenizers.protocol import Tokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
"""Names of CLIP's start and end tokens in models on the Hugging Face hub."""
_HUB_MARKS = {mark.strip("<>"): name.strip("<>") for mark, name in zip(MARKS, (START, END), strict=True)}


def own_tokenizer_file(folder: Path) -> tuple[TokenizerKind, Path] | None:
    """Return the kind and the path of Diptych's tokenizer file in a folder; None if there is none."""
    kinds: tuple[TokenizerKind, ...] = get_args(TokenizerKind)
    return next(((kind, path) for kind in kinds if (path := _path(folder, kind)).is_file()), None)


def write_own_tokenizer(tokenizer: Tokenizer, kind: TokenizerKind, folder: Path) -> None:
    """Write Diptych's tokenizer file to a folder.

    Raises:
        OSError: the file cannot be written.
    """
    tokenizer.save(_path(folder, kind))


def tokenizer_of(config: CLIPConfig, folder: Path) -> Tokenizer:
    """Return the tokenizer of a model that was read from a folder of open_clip or Hugging Face.

    Raises:
        BundleError: Diptych's tokenizer file is damaged or does not fit the model.
    """
    found = own_tokenizer_file(folder)
    if found is None:
        return ClipBPETokenizer(context_length=config.text.context_length)
    return read_tokenizer(config, found[1])


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


def _path(folder: Path, kind: TokenizerKind) -> Path:
    return folder / f"diptych_{kind}.json"


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
