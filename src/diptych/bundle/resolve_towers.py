"""Replace the names of timm and transformers towers in the config of a run by explicit settings.

A config file may contain only the name of a tower. When a run starts, Diptych reads its input size, image transform, tokenizer,
text preparation, context length and architecture from timm or from the tower's folder, and writes them to the config. Neither a
later version of these libraries nor a change on the hub can then change a trained model.
"""

import math
import warnings
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, get_args

from diptych.bundle.foreign_tokenizer import preparation_of
from diptych.bundle.json_objects import read_object
from diptych.bundle.read_tokenizer import read_tokenizer
from diptych.bundle.sentence_transformers import modules_of
from diptych.bundle.tower_folders import tower_folder
from diptych.core.errors import BundleError, ConfigError, DiptychWarning, unknown_name
from diptych.images.resample import Interpolation
from diptych.images.transforms import PixelConfig, height_width
from diptych.models.config import CLIPConfig
from diptych.models.third_party import import_transformers
from diptych.models.third_party_config import TextPooling, TimmConfig, TransformersConfig, is_resolved
from diptych.models.timm_tower import pretrained_cfg
from diptych.models.transformers_tower import architecture_config, check_architecture, text_facts
from diptych.tokenizers.preparation import TextPreparation
from diptych.tokenizers.protocol import Tokenizer

TOKENIZER_FILE = "tokenizer.json"
_LONGEST_CONTEXT = 512
"""Maximum default context length of an encoder, in tokens. Some support 8,192, which captions do not need."""
_NOT_ARCHITECTURE = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "finetuning_task", "id2label", "label2id", "problem_type"),
    *("torch_dtype", "transformers_version", "use_cache", "return_dict", "output_hidden_states", "output_attentions"),
    *("gradient_checkpointing", "chunk_size_feed_forward", "task_specific_params", "transformers.js_config"),
}
"""Config entries that do not describe the architecture of an encoder."""


def resolve_towers(config: CLIPConfig) -> CLIPConfig:
    """Return the config with explicit settings for timm and transformers towers. A resolved config is returned unchanged.

    The user's settings are kept. For a timm image tower, settings of `model.pixels` that are at their default are replaced by
    timm's, unless `model.image.transform` is `config`.

    Raises:
        ConfigError: a library is missing or has no such tower, or a setting does not fit the tower.
        BundleError: a folder is missing or damaged, or the hub cannot be reached.
    """
    image, text = config.image, config.text
    if isinstance(image, TimmConfig) and not is_resolved(image):
        try:
            config = _with_timm(config, image)
        except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
            raise BundleError(
                f"{image.pretrained}: its config.json is damaged ({type(error).__name__}: {error!s:.100})"
            ) from None
    if isinstance(text, TransformersConfig) and not is_resolved(text):
        config = replace(config, text=_resolved_text(text))
    return config


def without_sources(config: CLIPConfig) -> CLIPConfig:
    """Return the config as it is stored in a bundle: without the paths from which the weights were read."""
    image, text = config.image, config.text
    if isinstance(image, TimmConfig):
        config = replace(config, image=replace(image, pretrained=None))
    if isinstance(text, TransformersConfig):
        is_local = Path(text.name).expanduser().exists()
        name = (Path(text.name).expanduser().resolve().name or text.name) if is_local else text.name
        config = replace(config, text=replace(text, name=name, pretrained=None))
    return config


def encoder_tokenizer(config: CLIPConfig) -> Tokenizer:
    """Return the tokenizer of the text encoder in a resolved config.

    Raises:
        BundleError: the tokenizer is missing, damaged or does not fit the encoder, or the hub cannot be reached.
    """
    assert isinstance(config.text, TransformersConfig)
    return read_tokenizer(config, _tokenizer_file(config.text))


def _tokenizer_file(text: TransformersConfig) -> Path:
    folder = _module_folder(tower_folder(text.name, with_weights=False))
    path = folder / TOKENIZER_FILE
    if not path.is_file():
        raise BundleError(
            f"{text.name}: has no {TOKENIZER_FILE}; set model.text.tokenizer to learned-bpe or another kind"
        )
    return path


def _with_timm(config: CLIPConfig, image: TimmConfig) -> CLIPConfig:
    known = pretrained_cfg(image.name)
    options: dict[str, Any] = {}
    if isinstance(image.pretrained, str) and not Path(image.pretrained).expanduser().is_file():
        content = read_object(tower_folder(image.pretrained, with_weights=False) / "config.json")
        architecture = content.get("architecture", image.name)
        if architecture.partition(".")[0] != image.name.partition(".")[0]:
            raise ConfigError(f"model.image.name is {image.name}, but {image.pretrained} contains {architecture}")
        known |= content.get("pretrained_cfg", {})
        options = content.get("model_args", {})
    size = tuple(known.get("input_size", (3, 224, 224)))[1:]
    is_sized = min(height_width(image.image_px)) > 0
    resolved = replace(
        image,
        image_px=image.image_px if is_sized else size,
        options={**options, **image.options},
        transform="config",
    )
    if image.transform == "config":
        return replace(config, image=resolved)
    return replace(config, image=resolved, pixels=_pixels(config.pixels, known, min(height_width(resolved.image_px))))


def _pixels(pixels: PixelConfig, known: dict[str, Any], side: int) -> PixelConfig:
    """Return the image transform with timm's values in place of defaults."""
    theirs: dict[str, Any] = {"mean": tuple(known["mean"]), "std": tuple(known["std"])} if "mean" in known else {}
    if known.get("interpolation") in get_args(Interpolation):
        theirs["interpolation"] = known["interpolation"]
    crop, mode = float(known.get("crop_pct") or 1.0), known.get("crop_mode") or "center"
    if mode == "squash":
        theirs["resize"] = "squash"
    elif mode == "center" and crop < 1:
        theirs["resize_px"] = math.floor(side / crop)
    defaults = {field.name: field.default for field in fields(PixelConfig)}
    return replace(pixels, **{name: value for name, value in theirs.items() if getattr(pixels, name) == defaults[name]})


def _resolved_text(text: TransformersConfig) -> TransformersConfig:
    folder = _folder(text)
    module = None if folder is None else _module_folder(folder)
    plain = {} if module is None else read_object(module / "config.json")
    if "auto_map" in plain:
        raise ConfigError(
            f"{text.name}: needs code from its repository, which Diptych never runs; choose another model"
        )
    given = {**plain, **({"model_type": text.name} if folder is None else {}), **text.config}
    if "model_type" not in given:
        raise BundleError(f"{text.name}: has no config.json with a model_type, so it is not a transformers encoder")
    cleaned = {name: value for name, value in given.items() if name not in _NOT_ARCHITECTURE}
    pooling = text.pooling if text.pooling != "auto" else _pooling(folder)
    text = replace(text, config=cleaned, pooling=pooling)
    whole = architecture_config(text).to_dict()
    whole = {name: value for name, value in whole.items() if name not in _NOT_ARCHITECTURE}
    text = replace(text, config={**whole, "model_type": cleaned["model_type"]})
    if text.tokenizer == "pretrained":
        if module is None:
            raise ConfigError(
                f"model.text.name is the architecture '{text.name}', which has no tokenizer; set model.text.tokenizer to "
                "learned-bpe, or name a model"
            )
        preparation = text.preparation if text.preparation != TextPreparation() else preparation_of(module)
        text = replace(text, preparation=preparation, vocab_size=text.vocab_size or int(whole.get("vocab_size", 0)))
        _tokenizer_file(text)
    elif not text.vocab_size:
        text = replace(text, vocab_size=8192)
    return replace(text, context_length=_context_length(text, folder, module))


def _folder(text: TransformersConfig) -> Path | None:
    """Return the folder of an encoder; None if its name is an architecture.

    Raises:
        ConfigError: the name is not a folder, a hub id or an architecture; the message names similar architectures.
    """
    known = import_transformers().CONFIG_MAPPING
    if text.name in known and not Path(text.name).is_dir():
        if text.pretrained is True:
            raise ConfigError(f"model.text.pretrained is true, but '{text.name}' is an architecture; name a model")
        return None
    try:
        return tower_folder(text.name, with_weights=text.pretrained is True)
    except BundleError as error:
        if "/" in text.name:
            raise
        raise ConfigError(f"{error}; {unknown_name('transformers architecture', text.name, sorted(known))}") from None


def _module_folder(folder: Path) -> Path:
    """Return the folder of the encoder in a sentence-transformers folder; any other folder is returned unchanged."""
    return next((module.folder for module in modules_of(folder) if module.kind == "Transformer"), folder)


def _pooling(folder: Path | None) -> TextPooling:
    """Return the pooling in a sentence-transformers folder; `mean` if the folder does not define one."""
    modules = [] if folder is None else modules_of(folder)
    for module in modules:
        if module.kind not in {"Transformer", "Pooling", "Normalize"}:
            warnings.warn(
                f"{folder}: ignores the module {module.kind}, because Diptych's projection replaces it",
                DiptychWarning,
                stacklevel=2,
            )
    pooling = next((module for module in modules if module.kind == "Pooling"), None)
    return "mean" if pooling is None else _named_pooling(read_object(pooling.folder / "config.json"), pooling.folder)


def _named_pooling(content: dict[str, Any], folder: Path) -> TextPooling:
    modes: dict[str, TextPooling] = {
        "pooling_mode_mean_tokens": "mean",
        "pooling_mode_cls_token": "cls",
        "pooling_mode_lasttoken": "last",
    }
    by_name: dict[str, TextPooling] = {"mean": "mean", "cls": "cls", "lasttoken": "last"}
    if content.get("pooling_mode") in by_name:  # sentence-transformers 5
        return by_name[content["pooling_mode"]]
    used = [name for name, value in content.items() if name.startswith("pooling_mode_") and value is True]
    if len(used) != 1 or used[0] not in modes:
        found = ", ".join(used) or "nothing"
        raise ConfigError(
            f"{folder}: uses the pooling {found}, which Diptych does not support; set model.text.pooling to mean, cls or last"
        )
    return modes[used[0]]


def _context_length(text: TransformersConfig, folder: Path | None, module: Path | None) -> int:
    check_architecture(str(text.config["model_type"]))
    positions = text_facts(text).max_positions
    if text.context_length:
        if positions is not None and text.context_length > positions:
            raise ConfigError(
                f"model.text.context_length is {text.context_length}; {text.name} supports at most {positions} tokens"
            )
        return text.context_length
    limits = [_LONGEST_CONTEXT, positions, text.config.get("max_position_embeddings")]
    if folder is not None and module is not None:
        limits.append(read_object(module / "sentence_bert_config.json").get("max_seq_length"))
        limits.append(read_object(folder / "sentence_bert_config.json").get("max_seq_length"))
        limits.append(read_object(module / "tokenizer_config.json").get("model_max_length"))
    return int(min(limit for limit in limits if isinstance(limit, int) and limit > 2))
