"""What a model can be turned into: another resolution, another precision, less memory, fewer patches."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from diptych.core.errors import ConfigError
from diptych.images.transforms import PixelConfig
from diptych.losses.contrastive import clip_loss
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ImageConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.models.modified_resnet import ModifiedResNet
from diptych.models.resolution import at_resolution, resize_positions

VIT = ViTConfig(image_px=32, patch_px=8, width=32, layers=3, heads=4)
RESNET = ResNetConfig(image_px=64, layers=(1, 1, 1, 1), width=8, heads=4)
TEXT = TextConfig(vocab_size=50, context_length=12, width=32, layers=3, heads=4)
IDS, LENGTHS = torch.tensor([[2, 7, 8, 3, 0], [2, 5, 9, 11, 3]]), torch.tensor([4, 5])


def _model(image: ImageConfig = VIT, text: TextConfig = TEXT) -> CLIP:
    torch.manual_seed(0)
    return CLIP(CLIPConfig(embed_dim=24, image=image, text=text, init_logit_bias=-10.0))


def _pixels(model: CLIP, num: int = 2) -> torch.Tensor:
    side = model.config.image.image_px
    assert isinstance(side, int)
    return torch.randn(num, 3, side, side, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("image", [VIT, replace(VIT, pooling="attention"), replace(VIT, stem="conv"), RESNET])
def test_half_precision_keeps_norms_and_temperature_in_full(image: ImageConfig, dtype: torch.dtype) -> None:
    model = _model(image).eval()
    before = model(_pixels(model), IDS, LENGTHS)
    model.convert(dtype)
    kept = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.float32}
    norms = {
        f"{name}.{part}"
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d | nn.GroupNorm)
        for part in ("weight", "bias")
    }
    assert kept == norms | {"log_logit_scale", "logit_bias"}
    assert {parameter.dtype for parameter in model.parameters()} == {dtype, torch.float32}
    after = model(_pixels(model), IDS, LENGTHS)
    for ours, theirs in zip(after[:2], before[:2], strict=True):
        assert ours.dtype == torch.float32
        assert float((ours * theirs).detach().sum(1).min()) > 0.999
    assert torch.equal(after.logit_scale, before.logit_scale)
    clip_loss(after.image_emb, after.text_emb, after.logit_scale).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_gradient_checkpointing_changes_nothing_but_memory() -> None:
    model = _model(replace(VIT, patch_dropout=0.5, dropout=0.1), replace(TEXT, dropout=0.1))
    results = []
    for enabled in (False, True):
        model.set_gradient_checkpointing(enabled)
        model.zero_grad()
        torch.manual_seed(3)
        out = model(_pixels(model), IDS, LENGTHS)
        loss = clip_loss(out.image_emb, out.text_emb, out.logit_scale)
        loss.backward()
        results.append((loss, [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    assert torch.equal(results[0][0], results[1][0])
    assert all(torch.equal(a, b) for a, b in zip(results[0][1], results[1][1], strict=True))


def test_gradient_checkpointing_stores_less() -> None:
    model = _model()

    def stored(enabled: bool) -> int:
        model.set_gradient_checkpointing(enabled)
        total = 0

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model.image_tower(_pixels(model))
        return total

    assert stored(True) < stored(False) / 2


def test_gradient_checkpointing_refuses_batch_norms() -> None:
    with pytest.raises(ConfigError, match="convolutions with batch norms"):
        _model(RESNET).set_gradient_checkpointing()


def test_patch_dropout_leaves_out_its_share_in_training_alone() -> None:
    model = _model(replace(VIT, patch_dropout=0.7))
    seen = []
    model.image_tower.norm_pre.register_forward_hook(lambda *event: seen.append(event[2].shape))  # type: ignore[union-attr]
    pixels = _pixels(model).requires_grad_()
    first, second = model.image_tower(pixels), model.image_tower(pixels)
    assert not torch.equal(first, second)
    first[0].sum().backward()
    assert pixels.grad is not None
    touched = pixels.grad[0].abs().sum(0).unflatten(0, (4, 8)).unflatten(2, (4, 8)).sum(dim=(1, 3)) > 0
    assert int(touched.sum()) == int(16 * 0.3)
    model.eval()
    assert torch.equal(model.image_tower(pixels), model.image_tower(pixels))
    assert [shape[1] for shape in seen] == [5, 5, 17, 17]


def test_dropout_draws_in_training_alone_and_each_text_its_own() -> None:
    model = _model(replace(VIT, dropout=0.3), replace(TEXT, dropout=0.3))
    same_texts = IDS[:1].expand(2, -1), LENGTHS[:1].expand(2)
    images, (one, other) = model.image_tower(_pixels(model)), model.text_tower(*same_texts)
    assert not torch.equal(images, model.image_tower(_pixels(model)))
    assert not torch.allclose(one, other)
    model.eval()
    assert torch.equal(model.image_tower(_pixels(model)), model.image_tower(_pixels(model)))
    one, other = model.text_tower(*same_texts)
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize(("image", "new_px"), [(VIT, 48), (VIT, (24, 64)), (RESNET, 96), (VIT, 32)])
def test_another_resolution_keeps_the_weights(image: ImageConfig, new_px: int | tuple[int, int]) -> None:
    model = _model(image).eval()
    resized = at_resolution(model, new_px)
    height, width = (new_px, new_px) if isinstance(new_px, int) else new_px
    pixels = torch.randn(2, 3, height, width)
    assert resized.encode_image(pixels).shape == (2, 24)
    ours, theirs = resized.state_dict(), model.state_dict()
    changed = {
        name for name in theirs if ours[name].shape != theirs[name].shape or not torch.equal(ours[name], theirs[name])
    }
    position = "image_tower.position_emb" if isinstance(image, ViTConfig) else "image_tower.pool.position_emb"
    assert changed == (set() if new_px == 32 else {position})
    assert resized.config.image.image_px == new_px
    if changed:
        assert torch.equal(ours[position][0], theirs[position][0])  # The class token's.


def test_another_resolution_keeps_the_share_that_is_cropped() -> None:
    config = CLIPConfig(embed_dim=24, image=VIT, text=TEXT, pixels=PixelConfig(resize_px=36))
    resized = at_resolution(CLIP(config), 64).config
    assert (resized.image.image_px, resized.pixels.resize_px) == (64, 72)
    assert at_resolution(CLIP(config), 16).config.pixels.resize_px == 18
    with pytest.raises(ConfigError, match="resize_px is 30; it must be at least 32"):
        replace(config, pixels=PixelConfig(resize_px=30))


def test_siglips_layout_ignores_the_pixels_that_no_patch_covers() -> None:
    image = replace(VIT, image_px=(35, 38), layout="siglip", pooling="attention")
    torch.manual_seed(0)
    model = CLIP(CLIPConfig(embed_dim=32, image=image, text=TEXT))
    pixels = torch.randn(2, 3, 35, 38)
    changed = pixels.clone()
    changed[:, :, 32:] = changed[:, :, :, 32:] = 9
    assert torch.equal(model.encode_image(pixels), model.encode_image(changed))
    assert image.covered_px == (32, 32)
    whole = at_resolution(model, 32)
    assert torch.equal(whole.encode_image(pixels[:, :, :32, :32]), model.eval().encode_image(pixels))


def test_another_resolution_that_does_not_go_with_the_patches() -> None:
    with pytest.raises(ConfigError, match="not a multiple of patch_px 8"):
        at_resolution(_model(), 30)


def test_pixels_of_another_size_are_refused() -> None:
    """Those of a single patch would fit every position."""
    with pytest.raises(ConfigError, match="the pixels are 8x8, the model reads 32 px"):
        _model().encode_image(torch.zeros(1, 3, 8, 8))
    assert replace(VIT, image_px=(32, 32)) == VIT


def test_a_smooth_grid_stays_itself() -> None:
    """A slope is a slope at any size (away from the border), a constant is a constant."""
    rows, columns = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    grid = torch.stack([rows.flatten(), columns.flatten(), torch.full((64,), 7.0)], dim=1)
    larger = resize_positions(grid, before=(8, 8), after=(16, 16), num_extra=0).unflatten(0, (16, 16))
    expected = (torch.arange(16.0) + 0.5) / 2 - 0.5
    torch.testing.assert_close(larger[3:13, 5, 0], expected[3:13], atol=1e-4, rtol=0)
    torch.testing.assert_close(larger[5, 3:13, 1], expected[3:13], atol=1e-4, rtol=0)
    torch.testing.assert_close(larger[..., 2], torch.full((16, 16), 7.0), atol=1e-5, rtol=0)


def test_a_bias_is_there_when_asked_for() -> None:
    model = _model()
    assert model(_pixels(model), IDS, LENGTHS).logit_bias.detach() == -10
    assert CLIP(replace(model.config, init_logit_bias=None)).logit_bias is None


def test_resnet_in_training_follows_its_batches() -> None:
    """By the formula of batch norm: a tenth of the batch's statistics."""
    model = _model(RESNET)
    tower, pixels = model.image_tower, _pixels(model, 4)
    assert isinstance(tower, ModifiedResNet)
    tower(pixels)
    by_channel = tower.conv_1(pixels).detach().transpose(0, 1).flatten(1)
    torch.testing.assert_close(tower.norm_1.running_mean, 0.1 * by_channel.mean(dim=1))
    torch.testing.assert_close(tower.norm_1.running_var, 0.9 + 0.1 * by_channel.var(dim=1))
