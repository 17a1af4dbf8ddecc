"""The text tower as a transformers text encoder.

Shapes: B texts, T tokens of the longest text, N tokens of all texts, W width, E embedding.
"""

import inspect
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn

from diptych.core.errors import ConfigError, unknown_name
from diptych.models.packing import PackedTexts
from diptych.models.projection import projection_of
from diptych.models.third_party import import_transformers, quiet_transformers
from diptych.models.third_party_buffers import fill_buffers, limited_parameters
from diptych.models.third_party_config import TransformersConfig

_NEEDS_OTHER_INPUT = "needs input other than token ids; choose a text encoder such as bert, xlm-roberta or modernbert"


class TransformersTower(nn.Module):
    """A transformers text encoder, pooling, and a projection.

    Texts are padded. The padding follows the tokens of each text and is not attended to.
    """

    def __init__(self, config: TransformersConfig, embed_dim: int) -> None:
        """Build the tower with random weights.

        Raises:
            ConfigError: transformers is missing, has no such architecture, or rejects its config.
        """
        super().__init__()
        self.config = config
        self.model: Any = encoder(config)
        width = _width(self.model, config)
        self.projection = projection_of(config, width, embed_dim, where="model.text")
        self.gradient_checkpointing = False

    def forward(
        self, ids: Int64[Tensor, "B T"] | Int64[Tensor, " N"] | PackedTexts, lengths: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B E"]:
        """Return embeddings of texts, not normalized.

        Args:
            ids: token ids, one padded row per text, or all texts concatenated without padding.
            lengths: number of tokens of each text, including start and end token. For padded rows, the lengths can be on any
                device; those on a GPU are not read on the host.
        """
        assert isinstance(ids, Tensor), "packing_spec tells data workers not to pack texts for this tower"
        assert lengths is not None
        if ids.ndim == 1:
            rows = torch.split(ids, lengths.tolist())
            ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)
        if lengths.device.type == "cpu":
            ids = ids[:, : int(lengths.max())] if len(lengths) else ids
            if bool((lengths == ids.shape[1]).all()):
                return self._pooled(ids, None)
        position = torch.arange(ids.shape[1], device=ids.device)
        return self._pooled(ids, position < lengths.to(ids.device, non_blocking=True)[:, None])

    def encode_padded(self, ids: Int64[Tensor, "B T"], is_token: Bool[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Return embeddings of padded texts, not normalized. No length is read on the host, so the method can be exported.

        Args:
            ids: token ids, one row per text.
            is_token: False at the padding, which follows the tokens of each text.
        """
        return self._pooled(ids, is_token)

    @property
    def supports_prefix_sharing(self) -> bool:
        """Always False, because transformers layers cannot share activations between texts."""
        return False

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Enable or disable recomputation of activations in the backward pass.

        Raises:
            ConfigError: transformers does not support it for this architecture.
        """
        if enabled and not self.model.supports_gradient_checkpointing:
            raise ConfigError(f"transformers does not support gradient checkpointing in {model_type(self.config)}")
        if enabled != self.gradient_checkpointing:
            _switch(self.model, enabled)
        self.gradient_checkpointing = enabled

    def fill_buffers(self) -> None:
        """Compute the buffers that weights files do not contain, for a tower that was built on the `meta` device."""
        fill_buffers(self.model, lambda: encoder(self.config))

    def _pooled(self, ids: Int64[Tensor, "B T"], is_token: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B E"]:
        if is_token is None:
            mask = None
        else:
            ids, mask = torch.where(is_token, ids, self.model.config.pad_token_id or 0), is_token.long()
        out = self.model(input_ids=ids, attention_mask=mask)
        return self.projection(self._pool(out, is_token))

    def _pool(self, out: Any, is_token: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B W"]:
        if self.config.pooling == "pooler":
            pooled: Tensor = out.pooler_output
            return pooled
        hidden: Tensor = out.last_hidden_state  # B T W
        if self.config.pooling == "cls":
            return hidden[:, 0]
        if self.config.pooling == "last":
            if is_token is None:
                return hidden[:, -1]
            last = is_token.sum(dim=1) - 1
            return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[2]))[:, 0]
        if is_token is None:
            return hidden.mean(dim=1)
        weight = is_token[:, :, None].to(hidden.dtype)
        return (hidden * weight).sum(dim=1) / weight.sum(dim=1)


def encoder(config: TransformersConfig) -> Any:
    """Build a transformers text encoder with random weights in float32.

    Raises:
        ConfigError: transformers is missing, has no such architecture, or rejects its config.
    """
    if config.pooling == "auto":
        raise ConfigError("model.text.pooling is 'auto'; a model is built from a resolved config (resolve_towers)")
    architecture = architecture_config(config)
    cls = _encoder_class(architecture)
    options = pooler_options(cls, config)
    if not options and config.pooling == "pooler" and not _has_pooler_output(cls):
        raise ConfigError(
            f"model.text.pooling is 'pooler', but {model_type(config)} has no pooler; use mean, cls or last"
        )
    try:
        with limited_parameters():
            built = _built(cls, architecture, options)
    except Exception as error:  # The exception class for unsupported sizes depends on the architecture.
        raise ConfigError(
            f"model.text.config: transformers cannot build {model_type(config)} ({_line(error)})"
        ) from None
    if (
        type(architecture) not in import_transformers().MODEL_FOR_TEXT_ENCODING_MAPPING
        and architecture.is_encoder_decoder
    ):
        built = built.get_encoder()  # Without the decoder.
    if built.main_input_name != "input_ids":
        raise ConfigError(f"model.text.config: {model_type(config)} {_NEEDS_OTHER_INPUT}")
    return built.train()


def _built(cls: Any, architecture: Any, options: Mapping[str, bool]) -> Any:
    try:
        return cls._from_config(architecture, attn_implementation="sdpa", dtype=torch.float32, **options)
    except ValueError:  # A few old architectures have only their own attention.
        return cls._from_config(architecture, attn_implementation="eager", dtype=torch.float32, **options)


def pooler_options(cls: Any, config: TransformersConfig) -> dict[str, bool]:
    """Return the arguments that disable an unused pooler, so that the encoder has no weights for it."""
    is_supported = "add_pooling_layer" in inspect.signature(cls.__init__).parameters
    return {"add_pooling_layer": config.pooling == "pooler"} if is_supported else {}


def architecture_config(config: TransformersConfig) -> Any:
    """Return the config of an encoder as a transformers object.

    Raises:
        ConfigError: transformers is missing, has no such architecture (the message names similar ones), or rejects the config.
    """
    transformers = import_transformers()
    plain = {name: value for name, value in config.config.items() if name != "model_type"}
    check_architecture(model_type(config))
    if config.vocab_size:
        plain["vocab_size"] = config.vocab_size
    try:
        with quiet_transformers():
            usual = transformers.CONFIG_MAPPING[model_type(config)]()
            plain |= _special_ids(plain, usual)
            return transformers.AutoConfig.for_model(model_type(config), **{**plain, "use_cache": False})
    except Exception as error:  # The exception class for unsupported values depends on the config.
        raise ConfigError(f"model.text.config does not fit {model_type(config)} ({_line(error)})") from None


def _special_ids(plain: Mapping[str, Any], usual: Any) -> dict[str, int | None]:
    """Return replacements for default special ids that are outside a vocabulary smaller than the architecture's default."""
    vocab_size = plain.get("vocab_size", getattr(usual, "vocab_size", 0))
    names = [f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep", "mask")]
    ids = {name: plain.get(name, getattr(usual, name, None)) for name in names}
    outside = [name for name, found in ids.items() if isinstance(found, int) and found >= vocab_size]
    return {name: 0 if name == "pad_token_id" else None for name in outside}


def check_architecture(name: str) -> None:
    """Raise a ConfigError that names similar architectures if transformers has none of this name."""
    known = import_transformers().CONFIG_MAPPING
    if name not in known:
        raise ConfigError(
            f"model.text.config.model_type: {unknown_name('transformers architecture', name, sorted(known))}"
        )


def model_type(config: TransformersConfig) -> str:
    """Return the name of the architecture in transformers, such as `bert`; the config must be resolved."""
    return str(config.config.get("model_type", ""))


def max_positions(model: nn.Module) -> int | None:
    """Return the number of positions with learned embeddings that an encoder has for tokens; None if it has none.

    RoBERTa's positions start after the id of its padding.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in {
            "position_embeddings",
            "position_embedding",
        }:
            return module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1)
    return None


class TextFacts(NamedTuple):
    """Facts about an encoder that its config does not contain."""

    depths: dict[str, int]
    """Depth of each parameter, as in `depth.py`."""
    num_layers: int
    max_positions: int | None


@lru_cache(maxsize=16)
def text_facts(config: TransformersConfig) -> TextFacts:
    """Return facts about an encoder, from an instance that is built on the `meta` device.

    Raises:
        ConfigError: see `TransformersTower`.
    """
    with torch.device("meta"):
        model = encoder(config)
    names = [name for name, _ in model.named_parameters()]
    numbers = {name: next((int(part) for part in name.split(".") if part.isdigit()), None) for name in names}
    layers = [number for number in numbers.values() if number is not None]
    num_layers, depths, is_after = max(layers, default=-1) + 1, {}, False
    for name in names:  # In module order: embeddings, layers, norm.
        number = numbers[name]
        is_after = is_after or number is not None
        depths[name] = number + 1 if number is not None else num_layers + 1 if is_after else 0
    return TextFacts(depths, num_layers, max_positions(model))


def _switch(model: Any, enabled: bool) -> None:
    """Enable or disable gradient checkpointing. transformers 5.20 renamed the methods."""
    prefix = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enabled:
        options = {f"{prefix}_checkpointing_kwargs": {"use_reentrant": False}}
        getattr(model, f"{prefix}_checkpointing_enable")(**options)
    else:
        getattr(model, f"{prefix}_checkpointing_disable")()


def _encoder_class(architecture: Any) -> Any:
    transformers = import_transformers()
    for mapping in (transformers.MODEL_FOR_TEXT_ENCODING_MAPPING, transformers.MODEL_MAPPING):
        if type(architecture) in mapping:
            return mapping[type(architecture)]
    raise ConfigError(f"model.text.config: {architecture.model_type} is not a text encoder, or {_NEEDS_OTHER_INPUT}")


def _has_pooler_output(cls: Any) -> bool:
    return "CLIPText" in cls.__name__


def _width(model: Any, config: TransformersConfig) -> int:
    width = getattr(model.config, "hidden_size", None)
    if not isinstance(width, int):
        raise ConfigError(f"model.text.config: {model_type(config)} {_NEEDS_OTHER_INPUT}")
    return width


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split()):.160}"
