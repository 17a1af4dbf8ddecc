"""The optimizers: AdamW as in the paper, Lion or Muon; decay on matrices only, slower layers away from the output."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from diptych.core.errors import ConfigError
from diptych.core.settings import settings
from diptych.models.clip import CLIP
from diptych.models.depth import LayerLocation, locate_parameter
from diptych.training.optim.lion import Lion
from diptych.training.optim.muon import Muon


@settings
class OptimizerConfig:
    """Which optimizer, and how it moves; betas, epsilon and decay default to the paper's for vision transformers (table 18)."""

    name: Literal["adamw", "lion", "muon"] = "adamw"
    """`adamw` (Loshchilov & Hutter 2019); `lion` (Chen et al. 2023), which wants a rate 3 to 10 times smaller and as much more
    decay; `muon` (Jordan et al. 2024) for the matrices and convolutions of blocks and the towers' projections, scaled to
    AdamW's step (Liu et al. 2025, sec. 2.2), with AdamW for all else, so that rate and decay stay AdamW's."""
    lr: float = 5e-4
    """Peak learning rate, reached after warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the running means of gradient and squared gradient (of Lion: of its step and its momentum, in its paper 0.9 and
    0.99). Muon's matrices have a momentum of 0.95 instead."""
    eps: float = 1e-6
    """Added to AdamW's denominator; Lion has none."""
    weight_decay: float = 0.2
    """Applied to matrices and embeddings; never to biases, norms and the temperature."""
    image_weight_decay: float | None = None
    """Instead of `weight_decay` in the image tower; None for the same."""
    text_weight_decay: float | None = None
    """Instead of `weight_decay` in the text tower; None for the same."""
    layer_decay: float = 1.0
    """The rate is multiplied by this for each layer further from a tower's output, within (0, 1] (Clark et al. 2020)."""
    max_grad_norm: float | None = 1.0
    """Longer gradients are scaled down to this length; None leaves them."""

    def __post_init__(self) -> None:
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ConfigError(f"optimizer.betas is {self.betas}; each must lie within [0, 1)")
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ConfigError(f"optimizer.max_grad_norm is {self.max_grad_norm}; it must be above 0, or none")
        if not (self.lr > 0 and self.eps > 0 and self.weight_decay >= 0):  # Not a number is refused, too.
            raise ConfigError(
                f"optimizer: lr {self.lr} and eps {self.eps} must be above 0, weight_decay {self.weight_decay} at least 0"
            )
        for tower, decay in (("image", self.image_weight_decay), ("text", self.text_weight_decay)):
            if decay is not None and not decay >= 0:
                raise ConfigError(f"optimizer.{tower}_weight_decay is {decay}; it must be at least 0, or none")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"optimizer.layer_decay is {self.layer_decay}; it must lie within (0, 1]; 1 is none")
        if self.name == "lion" and self.eps != OptimizerConfig.eps:
            raise ConfigError(
                f"optimizer.eps is {self.eps}, but Lion has no denominator; leave it at {OptimizerConfig.eps}"
            )

    def weight_decay_at(self, place: LayerLocation | None) -> float:
        """Of a matrix at this place of the model; None for one in neither tower."""
        own = {None: None, "image": self.image_weight_decay, "text": self.text_weight_decay}
        decay = own[None if place is None else place.tower]
        return self.weight_decay if decay is None else decay

    def lr_factor_at(self, place: LayerLocation | None) -> float:
        """What the learning rate is multiplied by there: `layer_decay` for each layer up to the output.

        >>> OptimizerConfig(layer_decay=0.5).lr_factor_at(LayerLocation("text", depth=11, num_layers=12))
        0.25
        """
        return 1.0 if place is None else self.layer_decay**place.from_output


class _Learned(NamedTuple):
    """A parameter that learns, and where it lies."""

    name: str
    parameter: nn.Parameter
    place: LayerLocation | None

    @property
    def is_hidden_matrix(self) -> bool:
        """Of a transformer's block, a convolution of a stage, which is one row an output channel, or a tower's projection."""
        is_inside = self.place is not None and (self.place.is_in_layer or ".projection." in self.name)
        return is_inside and self.parameter.ndim >= 2


def build_optimizers(model: CLIP, config: OptimizerConfig) -> tuple[torch.optim.Optimizer, ...]:
    """What moves the parameters that require a gradient: one optimizer, or for Muon two, together holding each of them once.

    Every parameter group carries `lr_factor`: a step sets `group["lr"] = lr * group["lr_factor"]`. Parameters of equal rate and
    decay share a group; the fastest group is the first, and of two as fast the one that decays more. Single numbers, such as
    the temperature, have a group of their own: where all else is cut in shards, they stay whole.
    """
    hidden_matrices: list[_Learned] = []
    others: list[_Learned] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            learned = _Learned(name, parameter, locate_parameter(name, model.config))
            (hidden_matrices if config.name == "muon" and learned.is_hidden_matrix else others).append(learned)
    optimizers: list[torch.optim.Optimizer] = []
    if hidden_matrices:
        groups = _groups(hidden_matrices, config)
        optimizers.append(Muon(groups, lr=config.lr))
    if others:
        groups = _groups(others, config)
        optimizers.append(
            Lion(groups, lr=config.lr, betas=config.betas)
            if config.name == "lion"
            else torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
        )
    return tuple(optimizers)


def _groups(all_learned: Sequence[_Learned], config: OptimizerConfig) -> list[dict[str, Any]]:
    groups: dict[tuple[float, float, bool], list[nn.Parameter]] = {}
    for _, parameter, place in all_learned:
        weight_decay = config.weight_decay_at(place) if parameter.ndim >= 2 else 0.0
        groups.setdefault((config.lr_factor_at(place), weight_decay, parameter.ndim > 0), []).append(parameter)
    return [
        {"params": groups[key], "lr": config.lr * key[0], "lr_factor": key[0], "weight_decay": key[1]}
        for key in sorted(groups, reverse=True)
    ]
