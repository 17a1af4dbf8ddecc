"""Builds the optimizers: AdamW as in the paper, Lion or Muon, with weight decay on matrices only and layer-wise decay."""

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias, assert_never

import torch
from torch import nn

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.models.clip import CLIP
from diptych.models.depth import LayerLocation, locate_parameter
from diptych.training.optim.lion import Lion
from diptych.training.optim.muon import Muon

_Located: TypeAlias = tuple[nn.Parameter, LayerLocation | None]
"""A trainable parameter and its location in the model."""


@settings
class OptimizerConfig:
    """Optimizer and its settings. Betas, epsilon and decay default to the paper's values for vision transformers (table 18)."""

    name: Literal["adamw", "lion", "muon"] = "adamw"
    """`adamw` (Loshchilov & Hutter 2019); `lion` (Chen et al. 2023), which needs a learning rate 3 to 10 times smaller and a
    weight decay larger by the same factor; or `muon` (Jordan et al. 2024) for the matrices and convolutions of blocks and the
    towers' projections, with AdamW for all other parameters. Muon's updates are scaled to the size of AdamW's (Liu et al. 2025,
    sec. 2.2), so learning rate and weight decay for AdamW also suit Muon."""
    lr: float = 5e-4
    """Peak learning rate, reached after warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay rates of the running means of gradient and squared gradient; for Lion, of its update and its momentum (0.9 and 0.99
    in its paper). Matrices under Muon use a momentum of 0.95 instead."""
    eps: float = 1e-6
    """Added to the denominator of AdamW. Lion has no denominator."""
    weight_decay: float = 0.2
    """Decoupled weight decay of matrices and embeddings. Biases, norms and the temperature are not decayed."""
    image_weight_decay: float | None = None
    """Weight decay of the image tower; None for `weight_decay`."""
    text_weight_decay: float | None = None
    """Weight decay of the text tower; None for `weight_decay`."""
    layer_decay: float = 1.0
    """Factor of the learning rate per layer of distance from a tower's output, within (0, 1] (Clark et al. 2020)."""
    max_grad_norm: float | None = 1.0
    """Gradients with a larger norm are scaled down to this norm; None disables clipping."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas is {self.betas}; each must lie within [0, 1)")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ConfigError(f"optimizer.max_grad_norm is {self.max_grad_norm}; it must be above 0, or none")
        if not (self.lr > 0 and self.eps > 0 and self.weight_decay >= 0):  # Also rejects NaN.
            raise ConfigError(
                f"optimizer: lr {self.lr} and eps {self.eps} must be above 0, weight_decay {self.weight_decay} at least 0"
            )
        for tower, decay in (("image", self.image_weight_decay), ("text", self.text_weight_decay)):
            if decay is not None and not decay >= 0:
                raise ConfigError(f"optimizer.{tower}_weight_decay is {decay}; it must be at least 0, or none")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay is {self.layer_decay}; it must lie within (0, 1]; 1 disables it")
        if self.name == "lion" and self.eps != OptimizerConfig.eps:
            raise ConfigError(
                f"optimizer.eps is {self.eps}, but Lion has no denominator; leave it at {OptimizerConfig.eps}"
            )

    def weight_decay_at(self, location: LayerLocation | None) -> float:
        """The weight decay of a matrix at a location of the model; None for a location outside of both towers."""
        by_tower = {None: None, "image": self.image_weight_decay, "text": self.text_weight_decay}
        decay = by_tower[None if location is None else location.tower]
        return self.weight_decay if decay is None else decay

    def lr_factor_at(self, location: LayerLocation | None) -> float:
        """The factor of the learning rate at a location: `layer_decay` to the power of the layers between it and the output.

        >>> OptimizerConfig(layer_decay=0.5).lr_factor_at(LayerLocation("text", depth=11, num_layers=12))
        0.25
        """
        return 1.0 if location is None else self.layer_decay**location.from_output


def build_optimizers(model: CLIP, config: OptimizerConfig) -> tuple[torch.optim.Optimizer, ...]:
    """Build the optimizers for the parameters that require a gradient: one, or two for Muon. Each parameter belongs to one.

    Every parameter group has a key `lr_factor`; a training step must set `group["lr"] = lr * group["lr_factor"]`. Parameters
    with the same learning rate and weight decay share a group. Groups are sorted by falling learning rate, then by falling
    weight decay. Scalars, such as the temperature, have groups of their own, because FSDP does not shard them.
    """
    hidden_matrices: list[_Located] = []
    others: list[_Located] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            location = locate_parameter(name, model.config)
            is_for_muon = config.name == "muon" and _is_hidden_matrix(name, parameter, location)
            (hidden_matrices if is_for_muon else others).append((parameter, location))
    optimizers: list[torch.optim.Optimizer] = []
    if hidden_matrices:
        optimizers.append(Muon(_param_groups(hidden_matrices, config), lr=config.lr))
    if others:
        groups = _param_groups(others, config)
        match config.name:
            case "lion":
                optimizers.append(Lion(groups, lr=config.lr, betas=config.betas))
            case "adamw" | "muon":
                adamw = torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
                optimizers.append(adamw)
            case _:
                assert_never(config.name)
    return tuple(optimizers)


def _is_hidden_matrix(name: str, parameter: nn.Parameter, location: LayerLocation | None) -> bool:
    """Whether a parameter is a matrix of a transformer block, a convolution of a stage, or a tower's projection."""
    return parameter.ndim >= 2 and location is not None and (location.is_in_layer or ".projection." in name)


def _param_groups(trainable: Sequence[_Located], config: OptimizerConfig) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for parameter, location in trainable:
        weight_decay = config.weight_decay_at(location) if parameter.ndim >= 2 else 0.0
        groups.setdefault((config.lr_factor_at(location), weight_decay, parameter.ndim > 0), []).append(parameter)
    return [
        {"params": groups[key], "lr": config.lr * key[0], "lr_factor": key[0], "weight_decay": key[1]}
        for key in sorted(groups, reverse=True)
    ]
