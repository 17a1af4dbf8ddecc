"""The optimizer: AdamW as in the paper, decay on matrices only."""

import torch
from torch import nn

from diptych.core.errors import ConfigError
from diptych.core.settings import settings


@settings
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019); betas, epsilon and decay default to the paper's for vision transformers (table 18)."""

    lr: float = 5e-4
    """Peak learning rate, reached after warm-up."""
    betas: tuple[float, float] = (0.9, 0.98)
    """Decay of the running means of gradient and squared gradient."""
    eps: float = 1e-6
    """Added to the denominator."""
    weight_decay: float = 0.2
    """Applied to matrices and embeddings; never to biases, norms and the temperature."""
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


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Fused AdamW over two groups: what decays and what does not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=True)
