from typing import Any

import pytest
import torch

from diptych.core.errors import ConfigError
from diptych.core.settings import from_plain, override, to_plain
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.models.modified_resnet import BatchNorm
from diptych.training.optim.build import OptimizerConfig, build_optimizers
from diptych.training.optim.freeze import LockConfig, apply_freeze, check_freeze, set_training_mode

TEXT = TextConfig(vocab_size=300, context_length=8, width=16, layers=3, heads=2)
VIT = CLIPConfig(embed_dim=16, image=ViTConfig(image_px=32, patch_px=16, width=16, layers=2, heads=2), text=TEXT)
RESNET = CLIPConfig(embed_dim=16, image=ResNetConfig(image_px=32, layers=(1, 1, 1, 1), width=4, heads=4), text=TEXT)


def _learning(config: CLIPConfig, lock: LockConfig) -> set[str]:
    model = CLIP(config)
    apply_freeze(model, lock)
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def _names(config: CLIPConfig, *prefixes: str) -> set[str]:
    return {name for name, _ in CLIP(config).named_parameters() if name.startswith(prefixes)}


def test_no_lock_locks_nothing() -> None:
    assert _learning(VIT, LockConfig()) == _names(VIT, "")


def test_a_whole_tower() -> None:
    assert _learning(VIT, LockConfig(image="all")) == _names(VIT, "text_tower.", "log_logit_scale")
    assert _learning(RESNET, LockConfig(image="all")) == _names(RESNET, "text_tower.", "log_logit_scale")
    assert _learning(VIT, LockConfig(text="all")) == _names(VIT, "image_tower.", "log_logit_scale")


def test_the_first_blocks_with_stem_and_embeddings() -> None:
    head = ("image_tower.norm_post", "image_tower.projection")
    text = ("text_tower.", "log_logit_scale")
    blocks = "image_tower.transformer.blocks."
    assert _learning(VIT, LockConfig(image=0)) == _names(VIT, blocks, *head, *text)
    assert _learning(VIT, LockConfig(image=1)) == _names(VIT, f"{blocks}1.", *head, *text)
    assert _learning(VIT, LockConfig(image=2)) == _names(VIT, *head, *text)
    both = _learning(VIT, LockConfig(image="all", text=2))
    text_head = ("text_tower.norm_post", "text_tower.projection")
    assert both == _names(VIT, "text_tower.transformer.blocks.2.", *text_head, "log_logit_scale")


def test_the_first_stages_of_a_resnet() -> None:
    learning = _learning(RESNET, LockConfig(image=3))
    assert learning == _names(RESNET, "image_tower.stages.3.", "image_tower.pool.", "text_tower.", "log_logit_scale")


def test_locked_batch_norms_keep_their_statistics_and_the_others_do_not() -> None:
    torch.manual_seed(0)
    model, lock = CLIP(RESNET), LockConfig(image=2)
    set_training_mode(model.eval(), lock)
    assert model.training
    assert model.get_submodule("image_tower.pool").training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if "running" in name}
    model.encode_image(torch.randn(4, 3, 32, 32))
    moved = {name for name, tensor in before.items() if not torch.equal(tensor, model.state_dict()[name])}
    assert moved == {name for name in before if name.startswith(("image_tower.stages.2.", "image_tower.stages.3."))}
    set_training_mode(model, LockConfig())
    assert all(module.training for module in model.modules())
    set_training_mode(model, LockConfig(image="all"))
    assert not any(module.training for module in model.modules() if isinstance(module, BatchNorm))


def test_what_is_locked_does_not_move() -> None:
    torch.manual_seed(0)
    model, lock = CLIP(RESNET), LockConfig(image=2, text=1)
    apply_freeze(model, lock)
    set_training_mode(model, lock)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizers = build_optimizers(model, OptimizerConfig(weight_decay=0.5))
    ids, lengths = torch.randint(4, 300, (4, 6)), torch.full((4,), 6)
    out = model(torch.randn(4, 3, 32, 32), ids, lengths)
    (-out.logit_scale * (out.image_emb * out.text_emb).sum()).backward()
    for optimizer in optimizers:
        optimizer.step()
    moved = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    still = set(before) - moved
    locked = (
        "image_tower.conv",
        "image_tower.norm",
        "image_tower.stages.0",
        "image_tower.stages.1",
        "text_tower.token",
    )
    assert {name for name in before if name.startswith(locked)} <= still
    assert {name for name in moved if name.startswith("text_tower.transformer.blocks.0.")} == set()
    assert {"image_tower.stages.2.0.conv_1.weight", "text_tower.projection.weight", "log_logit_scale"} <= moved


@pytest.mark.parametrize(
    ("config", "lock", "message"),
    [
        (VIT, LockConfig(image=3), "lock.image is 3, but the image tower has 2 blocks"),
        (VIT, LockConfig(text=4), "lock.text is 4, but the text tower has 3 blocks"),
        (RESNET, LockConfig(image=5), "lock.image is 5, but the image tower has 4 stages"),
    ],
)
def test_more_blocks_than_there_are_are_refused(config: CLIPConfig, lock: LockConfig, message: str) -> None:
    model = CLIP(config)
    with pytest.raises(ConfigError, match=message):
        apply_freeze(model, lock)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"image": -1}, "lock.image is -1"), ({"image": "all", "text": "all"}, "both towers are locked")],
)
def test_impossible_locks_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LockConfig(**wrong)


def test_a_decay_for_a_locked_tower_is_refused() -> None:
    check_freeze(LockConfig(image="all"), OptimizerConfig(text_weight_decay=0.1))
    check_freeze(LockConfig(image=1), OptimizerConfig(image_weight_decay=0.1))
    with pytest.raises(ConfigError, match=r"image_weight_decay is 0.1, but lock.image is all"):
        check_freeze(LockConfig(image="all"), OptimizerConfig(image_weight_decay=0.1))
    with pytest.raises(ConfigError, match=r"text_weight_decay is 0.0, but lock.text is all"):
        check_freeze(LockConfig(text="all"), OptimizerConfig(text_weight_decay=0.0))


def test_a_lock_in_a_file_and_on_the_command_line() -> None:
    lock = LockConfig(image="all", text=2)
    assert from_plain(LockConfig, to_plain(lock)) == lock
    assert override(LockConfig(), {"image": "all", "text": "2"}) == lock
    assert override(lock, {"image": "none", "text": "0"}) == LockConfig(text=0)
    with pytest.raises(ConfigError, match="image"):
        override(lock, {"image": "most"})
