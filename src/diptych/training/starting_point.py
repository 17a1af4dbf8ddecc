"""Build or load the model and the tokenizer with which a run starts."""

from dataclasses import replace
from pathlib import Path

import torch

from diptych.bundle.folder import Bundle
from diptych.bundle.open_bundle import open_bundle
from diptych.bundle.resolve_towers import encoder_tokenizer, resolve_towers, without_sources
from diptych.bundle.tower_weights import load_pretrained
from diptych.core.array_cache import MIN_ROWS
from diptych.core.errors import RunError
from diptych.data.sources.protocol import Source
from diptych.device.distributed import Ranks
from diptych.models.clip import CLIP
from diptych.models.third_party_config import TransformersConfig
from diptych.tokenizers.kept import kept_or_trained
from diptych.tokenizers.load_tokenizer import PREPARED, UNTRAINED, load_tokenizer, tokenizer_file, train_tokenizer
from diptych.tokenizers.protocol import Tokenizer
from diptych.training.config import TrainConfig


def with_resolved_towers(config: TrainConfig) -> TrainConfig:
    """Return the config of a run with explicit settings for timm and transformers towers (`resolve_towers`).

    Raises:
        ConfigError: a library is missing or has no such tower, or a setting does not fit the tower.
        BundleError: a folder is missing or damaged, or the hub cannot be reached.
    """
    return config if config.init is not None else replace(config, model=resolve_towers(config.model))


def starting_point(
    config: TrainConfig, resumed: Path | None, source: Source, ranks: Ranks, *, captions_hash: str | None = None
) -> Bundle:
    """Return model and tokenizer before the first step: those of `config.init`, or random weights and a new tokenizer.

    timm and transformers towers start from their pretrained weights if the config sets `pretrained`, except in a resumed run.

    Args:
        config: config of the run.
        resumed: folder of a run that is resumed, from which the tokenizer is loaded; None for a new run.
        source: captions to train a new tokenizer on.
        ranks: the ranks of the run.
        captions_hash: hash of the captions of `source`, used as the cache key of a new tokenizer; None disables the cache.

    Raises:
        BundleError: `config.init` or pretrained weights cannot be read.
        RunError: the tokenizer in the run folder is damaged.
    """
    if config.init is not None and resumed is None:
        bundle = open_bundle(config.init)
        return replace(bundle, model=bundle.model.float())
    tokenizer = ranks.run_on_rank0(lambda: _load_or_train_tokenizer(config, resumed, source, captions_hash))
    torch.manual_seed(config.seed)
    text = config.model.text
    if text.tokenizer not in PREPARED:  # The embedding of a pretrained model may have more rows than its tokenizer.
        text = replace(text, vocab_size=tokenizer.vocab_size)
    model = CLIP(without_sources(replace(config.model, text=text)))
    if resumed is None:
        load_pretrained(model, config.model)
    return Bundle(model=model, tokenizer=tokenizer)


def _load_or_train_tokenizer(
    config: TrainConfig, resumed: Path | None, source: Source, captions_hash: str | None
) -> Tokenizer:
    text = config.model.text
    if resumed is not None:
        path, preparation = resumed / tokenizer_file(text.tokenizer), text.preparation
        try:
            return load_tokenizer(text.tokenizer, path, context_length=text.context_length, preparation=preparation)
        except Exception as error:  # The tokenizer library raises plain `Exception`.
            raise RunError(f"{path}: is damaged ({error})") from None
    if isinstance(text, TransformersConfig) and text.tokenizer == "pretrained":
        return encoder_tokenizer(config.model)
    captions = (caption for i in range(len(source)) for caption in source.captions(i))
    sizes = {"vocab_size": text.vocab_size, "context_length": text.context_length}
    is_small = len(source) < MIN_ROWS or text.tokenizer in UNTRAINED
    if captions_hash is None or is_small:
        return train_tokenizer(text.tokenizer, captions, preparation=text.preparation, **sizes)
    return kept_or_trained(text.tokenizer, captions, captions_hash=captions_hash, **sizes)
