"""Shapes: B batch, T tokens, E embedding."""

import math

import pytest
import torch
from torch.nn import functional

from diptych.core.errors import ConfigError
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.models.layers import Attention, QuickGELU, Transformer
from diptych.models.size import model_size
from diptych.models.vision_transformer import ConvStem, PatchStem
from diptych.presets import PRESETS, preset
from tests.conftest import TINY_MODEL

GOLDEN = {
    "shapes-demo": ([0.11874, -0.00532, 0.0615, 0.09393], [0.11805, -0.08534, 0.23628, -0.04803], 20.0, 274_673),
    "shapes-character": ([0.11874, -0.00532, 0.0615, 0.09393], [-0.01335, -0.10958, 0.19032, -0.03116], 20.0, 248_049),
    "photos-small": (
        [-0.01996, -0.03515, 0.04685, -0.0486],
        [0.13044, -0.08901, 0.07523, -0.00609],
        1 / 0.07,
        5_055_193,
    ),
}
"""Name: first numbers of an image's and a text's embedding, logit scale, parameters. A preset that changes is a new model."""


def _transformer(layers: int = 3) -> Transformer:
    torch.manual_seed(0)
    return Transformer(32, layers, 4, mlp_ratio=4.0, activation="gelu")


def _texts(config: TextConfig, num: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, config.context_length - 4, (num,), generator=generator)
    ids = torch.randint(4, config.vocab_size, (num, int(lengths.max())), generator=generator)
    for row, length in enumerate(lengths):
        ids[row, length:] = 0
    return ids, lengths


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("layers", [1, 3])
def test_pooled_equals_the_plain_forward(is_causal: bool, layers: int) -> None:
    """The short cut through the last block: the same token, the same gradients."""
    model, generator = _transformer(layers), torch.Generator().manual_seed(1)
    x = torch.randn(4, 7, 32, generator=generator)
    position = torch.tensor([0, 3, 6, 2])
    goal = torch.randn(4, 32, generator=generator)
    grads, outs = [], []
    for short in (False, True):
        leaf = x.clone().requires_grad_()
        full = (
            model.pooled(leaf, position, is_causal=is_causal)
            if short
            else model(leaf, is_causal=is_causal)[torch.arange(4), position]
        )
        model.zero_grad()
        (full * goal).sum().backward()
        assert leaf.grad is not None
        outs.append(full)
        grads.append([leaf.grad, *(p.grad for p in model.parameters() if p.grad is not None)])
    torch.testing.assert_close(outs[0], outs[1], atol=1e-5, rtol=0)
    largest = max(float(grad.abs().max()) for grad in grads[0])
    assert len(grads[0]) == len(grads[1]) == 1 + len(list(model.parameters()))
    for plain, short_cut in zip(*grads, strict=True):
        assert float((plain - short_cut).abs().max()) <= 1e-5 * largest


def test_attention_equals_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    with torch.no_grad():
        theirs.in_proj_weight.copy_(ours.qkv.weight)
        theirs.in_proj_bias.copy_(ours.qkv.bias)
    x = torch.randn(2, 5, 16)
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    torch.testing.assert_close(ours(x, is_causal=False), theirs(x, x, x, need_weights=False)[0], atol=1e-5, rtol=0)
    causal = theirs(x, x, x, attn_mask=mask, need_weights=False)[0]
    torch.testing.assert_close(ours(x, is_causal=True), causal, atol=1e-5, rtol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
def test_every_image_tower_gives_unit_embeddings_that_depend_on_every_patch(pooling: str, stem: str) -> None:
    torch.manual_seed(0)
    image = ViTConfig(image_px=32, patch_px=8, width=16, layers=2, heads=2, pooling=pooling, stem=stem)  # type: ignore[arg-type]
    model = CLIP(CLIPConfig(embed_dim=12, image=image, text=TINY_MODEL.text)).eval()
    pixels = torch.randn(3, 3, 32, 32, requires_grad=True)
    emb = model.encode_image(pixels)
    assert emb.shape == (3, 12)
    torch.testing.assert_close(emb.norm(dim=1), torch.ones(3), atol=1e-5, rtol=0)
    emb[0].sum().backward()
    assert pixels.grad is not None
    by_patch = pixels.grad[0].abs().sum(0).unflatten(0, (4, 8)).unflatten(2, (4, 8)).sum(dim=(1, 3))
    assert (by_patch > 0).all()
    assert (pixels.grad[1:] == 0).all()  # No image sees another.


def test_text_embedding_does_not_change_with_padding() -> None:
    torch.manual_seed(0)
    model = CLIP(TINY_MODEL).eval()
    ids, lengths = _texts(TINY_MODEL.text)
    plain = model.encode_text(ids, lengths)
    padded = model.encode_text(functional.pad(ids, (0, 4)), lengths)
    junk = model.encode_text(functional.pad(ids, (0, 4), value=9), lengths)
    torch.testing.assert_close(plain, padded, atol=1e-6, rtol=0)
    torch.testing.assert_close(plain, junk, atol=1e-6, rtol=0)
    torch.testing.assert_close(plain.norm(dim=1), torch.ones(5), atol=1e-5, rtol=0)


def test_text_embedding_reads_every_token_before_its_end() -> None:
    torch.manual_seed(0)
    model = CLIP(TINY_MODEL).eval()
    ids = torch.tensor([[2, 10, 11, 12, 3]])
    length = torch.tensor([5])
    before = model.encode_text(ids, length)
    for place in range(5):
        changed = ids.clone()
        changed[0, place] = 20
        assert not torch.allclose(model.encode_text(changed, length), before, atol=1e-4)
    assert not torch.allclose(model.encode_text(ids[:, [0, 3, 2, 1, 4]], length), before, atol=1e-4)


def test_patch_stem_equals_a_strided_convolution() -> None:
    torch.manual_seed(0)
    stem, pixels = PatchStem(8, 24), torch.randn(2, 3, 32, 16)
    expected = functional.conv2d(pixels, stem.embed.weight.view(24, 3, 8, 8), stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("patch_px", [2, 4, 8])
def test_conv_stem_gives_one_token_a_patch_in_the_same_order(patch_px: int) -> None:
    stem = ConvStem(patch_px, 32)
    pixels = torch.zeros(1, 3, 4 * patch_px, 2 * patch_px)
    blank = stem(pixels)
    assert blank.shape == (1, 8, 32)
    pixels[:, :, 2 * patch_px : 3 * patch_px, patch_px:] = 9.0  # Row 2, column 1.
    assert int((stem(pixels) - blank).abs().sum(2)[0].argmax()) == 5


def test_quick_gelu_is_openais() -> None:
    torch.testing.assert_close(QuickGELU()(torch.tensor([1.0])), torch.tensor([1 / (1 + math.exp(-1.702))]))


@pytest.mark.parametrize(("start", "clamped"), [(9.0, 100.0), (-3.0, 1.0), (math.log(20), 20.0)])
def test_temperature_is_clamped(start: float, clamped: float) -> None:
    model = CLIP(TINY_MODEL)
    assert model.logit_scale.item() == pytest.approx(1 / 0.07)
    with torch.no_grad():
        model.log_logit_scale.fill_(start)
    model.clamp_temperature()
    assert model.logit_scale.item() == pytest.approx(clamped, rel=1e-5)


def test_every_preset_has_its_golden_numbers() -> None:
    assert set(PRESETS) == set(GOLDEN)


@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden(name: str) -> None:
    config = preset(name)
    image_golden, text_golden, scale, parameters = GOLDEN[name]
    torch.manual_seed(0)
    model = CLIP(config).eval()
    side = config.image.image_px
    pixels = torch.linspace(-1, 1, 2 * 3 * side**2).view(2, 3, side, side).sin()
    with torch.no_grad():
        image_emb, text_emb, logit_scale = model(
            pixels, torch.tensor([[2, 7, 8, 3, 0], [2, 5, 9, 11, 3]]), torch.tensor([4, 5])
        )
    torch.testing.assert_close(image_emb[0, :4], torch.tensor(image_golden), atol=1e-4, rtol=0)
    torch.testing.assert_close(text_emb[1, :4], torch.tensor(text_golden), atol=1e-4, rtol=0)
    assert logit_scale.item() == pytest.approx(scale, rel=1e-5)
    assert sum(p.numel() for p in model.parameters()) == model_size(config).parameters == parameters


def test_model_size_of_a_case_counted_by_hand() -> None:
    config = CLIPConfig(
        embed_dim=4,
        image=ViTConfig(image_px=4, patch_px=2, width=8, layers=2, heads=2),
        text=TextConfig(vocab_size=10, context_length=6, width=8, layers=2, heads=2),
    )
    size = model_size(config)

    def by_hand(tokens: int) -> int:
        first = tokens * 8 * 24 + 2 * tokens * tokens * 8 + tokens * 8 * 8 + 2 * tokens * 8 * 32
        last = 8 * 8 + tokens * 8 * 16 + 2 * tokens * 8 + 8 * 8 + 2 * 8 * 32  # One query alone.
        return first + last + 8 * 4

    assert size.image_multiply_adds == 4 * 12 * 8 + by_hand(5)
    assert size.text_multiply_adds == by_hand(6)
    block = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 2 * 16
    assert size.text_parameters == 10 * 8 + 6 * 8 + 2 * block + 16 + 8 * 4
    assert size.image_parameters == 12 * 8 + 8 + 5 * 8 + 16 + 2 * block + 16 + 8 * 4
    assert size.parameters == size.image_parameters + size.text_parameters + 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(image_px=65, patch_px=16), "no multiple of patch_px 16"),
        (lambda: ViTConfig(image_px=36, patch_px=12, stem="conv"), "power of 2"),
        (lambda: ViTConfig(width=10, heads=4), "width 10 is no multiple of heads 4"),
        (lambda: TextConfig(heads=0), "must be at least 1"),
        (lambda: TextConfig(context_length=2), "two marks and a token need 3"),
        (lambda: CLIPConfig(init_temperature=0.001), "init_temperature"),
        (lambda: preset("shapes-dmo"), "did you mean 'shapes-demo'"),
    ],
)
def test_impossible_models_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()
