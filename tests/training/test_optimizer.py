import io
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diptych.core.errors import ConfigError
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.optim.lion import Lion
from diptych.training.optim.muon import Muon, orthogonalized
from tests.conftest import TINY_MODEL

DEEP = CLIPConfig(
    embed_dim=16,
    image=ViTConfig(image_px=32, patch_px=16, width=16, layers=2, heads=2, pooling="attention"),
    text=TextConfig(vocab_size=300, context_length=8, width=16, layers=3, heads=2),
)
RESNET = CLIPConfig(
    embed_dim=16, image=ResNetConfig(image_px=32, layers=(1, 1, 1, 1), width=4, heads=4), text=DEEP.text
)


def _by_name(model: CLIP, optimizers: tuple[torch.optim.Optimizer, ...]) -> dict[str, dict[str, Any]]:
    """The group of each parameter; none is in two."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = [
        (names[id(parameter)], group)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    ]
    assert len(dict(groups)) == len(groups)
    return dict(groups)


def test_decay_falls_on_matrices_alone() -> None:
    model = CLIP(TINY_MODEL)
    (optimizer,) = build_optimizers(model, OptimizerConfig(weight_decay=0.3))
    decayed, free, numbers = optimizer.param_groups
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.3, 0.0, 0.0]
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    kept = {names[id(p)] for p in free["params"]}
    assert [names[id(p)] for p in numbers["params"]] == ["log_logit_scale"]
    assert all(name.endswith(("bias", "class_emb")) or "norm" in name for name in kept)
    assert all("norm" not in names[id(p)] for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) + 1 == len(names)
    assert isinstance(optimizer, torch.optim.AdamW)
    assert {group["lr_factor"] for group in optimizer.param_groups} == {1.0}
    assert all(group["fused"] for group in optimizer.param_groups)


def test_each_tower_has_its_decay() -> None:
    model = CLIP(DEEP)
    config = OptimizerConfig(weight_decay=0.3, image_weight_decay=0.1, text_weight_decay=0.0)
    optimizers = build_optimizers(model, config)
    groups = _by_name(model, optimizers)
    assert groups["image_tower.projection.weight"]["weight_decay"] == 0.1
    assert groups["image_tower.projection.weight"] is groups["image_tower.transformer.blocks.0.mlp.0.weight"]
    assert {group["weight_decay"] for name, group in groups.items() if name.startswith("text_tower")} == {0.0}
    assert len(optimizers[0].param_groups) == 3  # A decay of zero is no decay; the temperature is apart.
    one_sided = _by_name(model, build_optimizers(model, OptimizerConfig(weight_decay=0.3, text_weight_decay=0.2)))
    assert one_sided["image_tower.projection.weight"]["weight_decay"] == 0.3
    assert one_sided["text_tower.token_emb.weight"]["weight_decay"] == 0.2


def test_layers_away_from_the_output_are_slower() -> None:
    model = CLIP(DEEP)
    (optimizer,) = build_optimizers(model, OptimizerConfig(lr=1e-3, layer_decay=0.5))
    groups = _by_name(model, (optimizer,))
    expected = {
        "log_logit_scale": 1.0,
        "image_tower.projection.weight": 1.0,
        "image_tower.pool.query": 1.0,
        "image_tower.norm_post.weight": 1.0,
        "image_tower.transformer.blocks.1.mlp.0.weight": 0.5,
        "image_tower.transformer.blocks.0.mlp.0.bias": 0.25,
        "image_tower.stem.embed.weight": 0.125,
        "text_tower.transformer.blocks.2.norm_1.weight": 0.5,
        "text_tower.transformer.blocks.0.norm_1.weight": 0.125,
        "text_tower.token_emb.weight": 0.0625,
    }
    assert {name: groups[name]["lr_factor"] for name in expected} == expected
    assert all(group["lr"] == 1e-3 * group["lr_factor"] for group in optimizer.param_groups)
    factors = [(group["lr_factor"], group["weight_decay"]) for group in optimizer.param_groups]
    layers = [(0.5**i, decay) for i in range(5) for decay in (0.2, 0.0)][:-1]  # Embeddings have no bias.
    assert factors == [*layers[:2], (1.0, 0.0), *layers[2:]]  # The temperature is apart.
    stages = CLIP(RESNET)
    by_stage = _by_name(stages, build_optimizers(stages, OptimizerConfig(layer_decay=0.5)))
    assert by_stage["image_tower.stages.1.0.conv_1.weight"]["lr_factor"] == 0.125
    assert by_stage["image_tower.conv_1.weight"]["lr_factor"] == 0.5**5


@pytest.mark.parametrize("config", [DEEP, RESNET], ids=["vit", "resnet"])
def test_muon_gets_the_matrices_and_convolutions_of_blocks_and_the_projections(config: CLIPConfig) -> None:
    model = CLIP(config)
    muon, adamw = build_optimizers(model, OptimizerConfig(name="muon", weight_decay=0.3, layer_decay=0.9))
    assert isinstance(muon, Muon)
    assert isinstance(adamw, torch.optim.AdamW)
    matrices = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and ".transformer.blocks." in path
    }
    assert len(matrices) == 6 * (3 if config is RESNET else 5)
    convolutions = {
        f"{path}.weight"
        for path, module in model.named_modules()
        if isinstance(module, nn.Conv2d) and ".stages." in path
    }
    assert len(convolutions) == (16 if config is RESNET else 0)
    projections = {f"{tower}_tower.projection.weight" for tower in ("image", "text")} & dict(
        model.named_parameters()
    ).keys()
    assert len(projections) == (1 if config is RESNET else 2)
    assert set(_by_name(model, (muon,))) == matrices | convolutions | projections
    assert set(_by_name(model, (muon, adamw))) == {name for name, _ in model.named_parameters()}
    for group in muon.param_groups:
        assert group["weight_decay"] == 0.3
    assert [group["lr_factor"] for group in muon.param_groups[:2]] == [1.0, 0.9]


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_muon_steps_as_pytorchs_does(shape: tuple[int, int]) -> None:
    """PyTorch's rounds to bfloat16 on the way."""
    torch.manual_seed(0)
    mine, theirs = (nn.Parameter(torch.ones(shape)) for _ in range(2))
    muon = Muon([mine], lr=0.01, weight_decay=0.3)
    torchs = torch.optim.Muon([theirs], lr=0.01, weight_decay=0.3, adjust_lr_fn="match_rms_adamw")
    for _ in range(4):
        mine.grad = torch.randn(shape)
        theirs.grad = mine.grad.clone()
        muon.step()
        torchs.step()
    torch.testing.assert_close(mine, theirs, atol=1e-3, rtol=0)
    assert (mine - 1).abs().mean() > 0.01


def test_muon_takes_a_convolution_as_a_matrix() -> None:
    torch.manual_seed(0)
    whole = nn.Parameter(torch.ones(8, 4, 3, 3))
    flat = nn.Parameter(torch.ones(8, 36))
    whole.grad = torch.randn(8, 4, 3, 3).to(memory_format=torch.channels_last)
    flat.grad = whole.grad.flatten(1)
    for parameter in (whole, flat):
        Muon([parameter], lr=0.1).step()
    torch.testing.assert_close(whole.flatten(1), flat)


def test_orthogonalized_directions_are_about_equally_long() -> None:
    torch.manual_seed(0)
    lengths = torch.linalg.svdvals(orthogonalized(torch.randn(32, 100)))
    assert 0.65 < lengths.min() < lengths.max() < 1.15


def test_what_asks_no_gradient_is_left_out_and_no_optimizer_is_empty() -> None:
    model = CLIP(DEEP)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".blocks." not in name and ".projection." not in name)
    (adamw,) = build_optimizers(model, OptimizerConfig(name="muon"))
    assert isinstance(adamw, torch.optim.AdamW)
    assert set(_by_name(model, (adamw,))) == {name for name, p in model.named_parameters() if p.requires_grad}
    model.requires_grad_(False)
    assert build_optimizers(model, OptimizerConfig()) == ()


Update = Callable[[Tensor, Tensor, dict[str, Any], int], Tensor]


def _adamw(x: Tensor, g: Tensor, state: dict[str, Any], step: int) -> Tensor:
    """Loshchilov & Hutter 2019, algorithm 2."""
    lr, decay, beta_1, beta_2, eps = (state[key] for key in ("lr", "decay", "beta_1", "beta_2", "eps"))
    state["m"] = beta_1 * state.get("m", 0.0) + (1 - beta_1) * g
    state["v"] = beta_2 * state.get("v", 0.0) + (1 - beta_2) * g * g
    m, v = state["m"] / (1 - beta_1**step), state["v"] / (1 - beta_2**step)
    return x - lr * (m / (v.sqrt() + eps) + decay * x)


def _lion(x: Tensor, g: Tensor, state: dict[str, Any], step: int) -> Tensor:
    """Chen et al. 2023, algorithm 2."""
    m = state.get("m", torch.zeros_like(x))
    update = (state["beta_1"] * m + (1 - state["beta_1"]) * g).sign()
    state["m"] = state["beta_2"] * m + (1 - state["beta_2"]) * g
    return x - state["lr"] * (update + state["decay"] * x)


def _gradients(model: CLIP, num_steps: int) -> Iterator[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for _ in range(num_steps):
        yield {name: torch.randn(p.shape, generator=generator) for name, p in model.named_parameters()}


@pytest.mark.parametrize(("name", "update"), [("adamw", _adamw), ("lion", _lion)])
def test_steps_are_those_of_the_formula(name: Any, update: Update) -> None:
    torch.manual_seed(0)
    model = CLIP(DEEP)
    config = OptimizerConfig(name=name, weight_decay=0.3, text_weight_decay=0.7, layer_decay=0.5, betas=(0.8, 0.95))
    (optimizer,) = build_optimizers(model, config)
    groups = _by_name(model, (optimizer,))
    twins = {key: parameter.detach().double() for key, parameter in model.named_parameters()}
    states: dict[str, dict[str, Any]] = {
        key: {"decay": groups[key]["weight_decay"], "beta_1": 0.8, "beta_2": 0.95, "eps": 1e-6} for key in twins
    }
    for step, gradients in enumerate(_gradients(model, 5), start=1):
        lr = 0.01 * step
        for key, parameter in model.named_parameters():
            parameter.grad = gradients[key]
            states[key]["lr"] = lr * groups[key]["lr_factor"]
            twins[key] = update(twins[key], gradients[key].double(), states[key], step)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_factor"]
        optimizer.step()
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.detach(), twins[key].float(), rtol=1e-4, atol=1e-5)


def _from_disk(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name: Any) -> None:
    config = OptimizerConfig(name=name, layer_decay=0.7)
    torch.manual_seed(0)
    model, other = CLIP(DEEP), CLIP(DEEP)
    optimizers = build_optimizers(model, config)
    for step, gradients in enumerate(_gradients(model, 4)):
        if step == 2:
            other.load_state_dict(model.state_dict())
            others = build_optimizers(other, config)
            for restored, saved in zip(others, optimizers, strict=True):
                restored.load_state_dict(_from_disk(saved.state_dict()))
        for moved, movers in ((model, optimizers), *(((other, others),) if step >= 2 else ())):
            for key, parameter in moved.named_parameters():
                parameter.grad = gradients[key].clone()
            for optimizer in movers:
                optimizer.step()
    for (key, one), two in zip(model.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two), key


def test_lion_skips_what_has_no_gradient_and_gives_back_the_closures_loss() -> None:
    with_gradient, without = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    lion = Lion([with_gradient, without], lr=0.5, weight_decay=0.1)
    assert lion.step() is None
    assert lion.state == {}

    def closure() -> float:
        loss = (3 * with_gradient).sum()
        loss.backward()
        return loss.item()

    assert lion.step(closure) == 6.0
    torch.testing.assert_close(with_gradient.detach(), torch.full((2,), 0.95 - 0.5))
    assert torch.equal(without.detach(), torch.ones(2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"lr": 0.0}, "lr"),
        ({"eps": 0.0}, "eps"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"lr": math.nan}, "lr"),
        ({"layer_decay": 0.0}, "layer_decay is 0.0"),
        ({"layer_decay": 1.01}, "layer_decay is 1.01"),
        ({"layer_decay": math.nan}, "layer_decay is nan"),
        ({"image_weight_decay": -0.1}, "image_weight_decay is -0.1"),
        ({"text_weight_decay": math.nan}, "text_weight_decay is nan"),
        ({"name": "lion", "eps": 1e-8}, "eps is 1e-08, but Lion has no denominator"),
    ],
)
def test_impossible_optimizers_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerConfig(**wrong)
