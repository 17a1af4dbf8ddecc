"""Load the weights with which timm and transformers towers start a run: from the hub, a folder, or a file."""

import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from diptych.bundle.efficientnet_lite_names import is_efficientnet_lite, to_timm_names
from diptych.bundle.renaming import shape_text
from diptych.bundle.tower_folders import tower_folder, weights_file
from diptych.bundle.weights import read_weights
from diptych.core.errors import BundleError
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig
from diptych.models.third_party import import_timm, quiet_transformers
from diptych.models.third_party_config import TimmConfig, TransformersConfig
from diptych.models.timm_tower import TimmTower, model_options, pretrained_cfg
from diptych.models.transformers_tower import TransformersTower, architecture_config, pooler_options


def load_pretrained(model: CLIP, config: CLIPConfig) -> None:
    """Load the weights that `pretrained` selects into the towers of a model at the start of a run.

    Args:
        model: the model. Weights of the projections stay as they are.
        config: the resolved config of the run.

    Raises:
        BundleError: weights are missing, damaged, or do not fit the tower.
        ConfigError: an extra is not installed.
    """
    image, text = config.image, config.text
    if isinstance(image, TimmConfig) and image.pretrained not in (None, False):
        assert isinstance(model.image_tower, TimmTower)
        _load_timm(model.image_tower, image)
    if isinstance(text, TransformersConfig) and text.pretrained not in (None, False):
        assert isinstance(model.text_tower, TransformersTower)
        _load_transformers(model.text_tower, text)


def _load_timm(tower: TimmTower, config: TimmConfig) -> None:
    source = str(config.name if config.pretrained is True else config.pretrained)
    is_timms = config.pretrained is True
    weights = _of_timm(source, tower) if is_timms else _fitted(read_weights(_file(source)), tower.model)
    if config.projection == "classifier":  # A classifier for another task is not loaded.
        expected = tower.model.state_dict()
        names = [name for name in expected if name.startswith(f"{pretrained_cfg(config.name)['classifier']}.")]
        weights = {
            **weights,
            **{n: expected[n] for n in names if n not in weights or weights[n].shape != expected[n].shape},
        }
    _load(tower.model, weights, what=source)


def _of_timm(name: str, tower: TimmTower) -> dict[str, Tensor]:
    """Return the weights of a timm model, which timm downloads into the hub's usual cache."""
    num_classes = tower.embed_dim if tower.config.projection == "classifier" else 0
    try:
        loaded = import_timm().create_model(
            name, pretrained=True, num_classes=num_classes, **model_options(tower.config)
        )
    except Exception as error:  # Raised by several libraries: timm, HTTP client, huggingface_hub, operating system.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{name}: timm cannot load its weights ({reason:.200})") from None
    weights: dict[str, Tensor] = loaded.state_dict()
    return weights


def _fitted(weights: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Return the weights under the names of a timm model: unchanged, renamed, or converted by timm's own filter."""
    expected = model.state_dict().keys()
    if is_efficientnet_lite(weights):
        weights = to_timm_names(weights, expected)
    if expected <= weights.keys():
        return weights
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        with suppress(Exception):  # Filters assume their own checkpoints; `_load` names what is missing.
            weights = convert(dict(weights), model)
    return weights


def _load_transformers(tower: TransformersTower, config: TransformersConfig) -> None:
    source = config.name if config.pretrained is True else str(config.pretrained)
    weights = read_weights(_file(source))
    cls: Any = type(tower.model)
    try:
        with quiet_transformers():
            loaded, info = cls.from_pretrained(
                None,
                config=architecture_config(config),
                state_dict=dict(weights),
                output_loading_info=True,
                dtype=torch.float32,
                **pooler_options(cls, config),
            )
    except Exception as error:  # transformers raises several classes for wrong shapes.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise BundleError(f"{source}: its weights do not fit the text tower ({reason:.200})") from None
    missing = sorted(info["missing_keys"])
    if missing:
        raise BundleError(
            f"{source}: its weights do not fit the text tower: {missing[0]} is missing ({len(missing)} in all)"
        )
    _load(tower.model, loaded.state_dict(), what=source)


def _file(source: str) -> Path:
    """Return the weights file for a path or a hub id."""
    path = Path(source).expanduser()
    if path.is_file():
        return path
    folder = tower_folder(source, with_weights=True)
    found = weights_file(folder) or next((weights_file(child) for child in sorted(folder.glob("0_*"))), None)
    if found is None:
        raise BundleError(f"{source}: contains no weights (model.safetensors or pytorch_model.bin)")
    return found


def _load(model: nn.Module, weights: Mapping[str, Tensor], *, what: str) -> None:
    """Copy weights into a tower. Tensors that the tower does not have, such as those of a classifier, are ignored.

    Raises:
        BundleError: a tensor is missing, has another shape, or is not finite.
    """
    expected = model.state_dict()
    for name, tensor in expected.items():
        found = weights.get(name)
        if found is None and name.endswith("num_batches_tracked"):
            continue
        if found is None:
            missing = [other for other in expected if other not in weights]
            raise BundleError(f"{what}: its weights do not fit the tower: {name} is missing ({len(missing)} in all)")
        if found.shape != tensor.shape:
            raise BundleError(
                f"{what}: its weights do not fit the tower: {name} is {shape_text(found.shape)}, expected "
                f"{shape_text(tensor.shape)}"
            )
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise BundleError(f"{what}: {name} is not finite")
    model.load_state_dict({name: weights[name] for name in expected if name in weights}, strict=False)
