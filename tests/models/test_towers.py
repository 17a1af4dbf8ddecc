"""Shapes: B batch, T tokens, E embedding."""

import math
from dataclasses import astuple
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch.nn import functional

from diptych.core.errors import ConfigError
from diptych.images.transforms import height_width
from diptych.models.attention import LengthBucket, SequenceLayout
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, ConvNetConfig, ResNetConfig, TextConfig, ViTConfig
from diptych.models.convnet import ConvNet
from diptych.models.layers import Attention, QuickGELU
from diptych.models.size import model_size
from diptych.models.vision_transformer import ConvStem, PatchStem
from diptych.presets import PRESETS, preset
from tests.conftest import TINY_MODEL
from tests.makers import own_text_tower
from tests.models.plain import plain_text

PARAMETERS = {
    "rn50": 102_007_137,
    "rn101": 119_688_033,
    "rn50x4": 178_300_601,
    "rn50x16": 290_979_217,
    "rn50x64": 623_258_305,
    "vit-b-32": 151_277_313,
    "vit-b-16": 149_620_737,
    "vit-l-14": 427_616_513,
    "vit-l-14-336": 427_944_193,
    "vit-h-14": 986_109_441,
    "vit-b-16-siglip": 216_525_314,  # open_clip's ViT-B-16-SigLIP and 17,408 more tokens of 768.
    "small": 29_418_625,
    "photos-vit": 22_484_225,
    "flickr-vit-b-16": 137_011_201,
    "bert-vit-b-16": 149_620_737,
    "cifar10-rn": 51_688_753,
    "shapes-tiny": 9_708_545,
    "shapes-small": 28_836_865,
    "shapes-base": 76_382_209,
    "shapes-large": 341_698_561,
    "shapes-demo": 274_673,
    "shapes-character": 248_049,
    "photos-small": 5_055_193,
    "photos-convnet": 3_990_561,
    "icons-convnet": 3_972_929,
    "siglip-b-16-224": 203_155_970,
    "siglip-b-16-256": 203_202_050,
    "siglip-b-16-384": 203_447_810,
    "siglip-b-16-512": 203_791_874,
    "siglip-l-16-256": 652_150_786,
    "siglip-l-16-384": 652_478_466,
    "siglip-so400m-14-224": 877_360_306,
    "siglip-so400m-14-384": 877_960_498,
    "siglip-b-16-256-multilingual": 370_626_050,
    "siglip-so400m-16-256-multilingual": 1_127_430_706,
    "siglip2-b-16-224": 375_187_970,
    "siglip2-b-16-256": 375_234_050,
    "siglip2-b-16-384": 375_479_810,
    "siglip2-b-16-512": 375_823_874,
    "siglip2-l-16-256": 881_526_786,
    "siglip2-l-16-384": 881_854_466,
    "siglip2-b-32-256": 376_856_066,
    "siglip2-l-16-512": 882_313_218,
    "siglip2-so400m-16-256": 1_135_670_962,
    "siglip2-so400m-16-384": 1_136_039_602,
    "siglip2-so400m-16-512": 1_136_555_698,
    "siglip2-so400m-14-224": 1_135_463_602,
    "siglip2-so400m-14-384": 1_136_008_498,
    "siglip2-giant-16-256": 1_871_393_906,
    "siglip2-giant-16-384": 1_871_885_426,
}
"""Exact to the last parameter; the QuickGELU variants have those of their namesakes."""

GOLDEN: dict[str, tuple[list[float], list[float], float]] = {
    "small": ([-0.05828, 0.09731, -0.04266, -0.05464], [-0.00558, 0.04398, -0.08126, 0.04758], 1 / 0.07),
    "cifar10-rn": ([0.0181, -0.00378, 0.02589, -0.04815], [0.02186, -0.01094, -0.03685, 0.0024], 1 / 0.07),
    "shapes-tiny": ([-0.03991, -0.04869, 0.11737, 0.07376], [0.06842, 0.05871, 0.04149, -0.07449], 1 / 0.07),
    "shapes-small": ([0.02685, -0.02894, -0.01992, 0.06261], [-0.06791, -0.04453, -0.05023, -0.03627], 1 / 0.07),
    "shapes-demo": ([0.11874, -0.00532, 0.0615, 0.09393], [0.11805, -0.08534, 0.23628, -0.04803], 20.0),
    "shapes-character": ([0.11874, -0.00532, 0.0615, 0.09393], [-0.01335, -0.10958, 0.19032, -0.03116], 20.0),
    "photos-small": ([-0.01996, -0.03515, 0.04685, -0.0486], [0.13044, -0.08901, 0.07523, -0.00609], 1 / 0.07),
}
"""Name: first numbers of an image's and a text's embedding, logit scale. A preset that changes is a new model."""


def _texts(config: TextConfig, num: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, config.context_length - 4, (num,), generator=generator)
    ids = torch.randint(4, config.vocab_size, (num, int(lengths.max())), generator=generator)
    for row, length in enumerate(lengths):
        ids[row, length:] = 0
    return ids, lengths


def test_attention_equals_torchs_own() -> None:
    torch.manual_seed(0)
    ours, theirs = Attention(16, 4), torch.nn.MultiheadAttention(16, 4, batch_first=True)
    theirs.out_proj.load_state_dict(ours.out.state_dict())
    linears = (ours.query, ours.key, ours.value)
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in linears]))
        theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in linears]))
    x, layout = torch.randn(2, 5, 16), SequenceLayout((LengthBucket(2, 5),))
    mask = torch.nn.Transformer.generate_square_subsequent_mask(5)
    whole = theirs(x, x, x, need_weights=False)[0]
    causal = theirs(x, x, x, attn_mask=mask, need_weights=False)[0]
    flat = x.flatten(0, 1)
    torch.testing.assert_close(ours(flat, layout, is_causal=False), whole.flatten(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours(flat, layout, is_causal=True), causal.flatten(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(ours.pooled(x[:, 4], flat, layout), whole[:, 4], atol=1e-5, rtol=0)


IMAGE_TOWERS: dict[str, ViTConfig | ResNetConfig | ConvNetConfig] = {
    **{
        f"{stem}, {pooling}": ViTConfig(
            image_px=(32, 64), patch_px=8, width=16, layers=2, heads=2, pooling=pooling, stem=stem
        )
        for stem in ("patch", "conv")
        for pooling in ("cls", "mean", "attention")
    },
    "patches that are not square": ViTConfig(image_px=(32, 64), patch_px=(8, 16), width=16, layers=2, heads=2),
    "siglip, attention": ViTConfig(
        image_px=(32, 64), patch_px=8, width=16, layers=2, heads=2, pooling="attention", layout="siglip"
    ),
    "siglip, mean": ViTConfig(
        image_px=(32, 64), patch_px=8, width=16, layers=2, heads=2, pooling="mean", layout="siglip"
    ),
    "convnet": ConvNetConfig(image_px=(32, 64), stem_stride=2, widths=(8, 16), layers=(2, 1)),
    "resnet": ResNetConfig(image_px=(32, 64), layers=(1, 2, 1, 1), width=8, heads=4),
}


@pytest.mark.parametrize("name", list(IMAGE_TOWERS))
def test_every_image_tower_gives_unit_embeddings_that_depend_on_every_patch(name: str) -> None:
    torch.manual_seed(0)
    model = CLIP(CLIPConfig(embed_dim=16, image=IMAGE_TOWERS[name], text=TINY_MODEL.own_text)).eval()
    pixels = torch.randn(3, 3, 32, 64, requires_grad=True)
    emb = model.encode_image(pixels)
    assert emb.shape == (3, 16)
    torch.testing.assert_close(emb.norm(dim=1), torch.ones(3), atol=1e-5, rtol=0)
    (emb[0] * torch.arange(16.0)).sum().backward()
    assert pixels.grad is not None
    by_patch = pixels.grad[0].abs().sum(0).unflatten(0, (4, 8)).unflatten(2, (8, 8)).sum(dim=(1, 3))
    assert (by_patch > 0).all()
    assert (pixels.grad[1:] == 0).all()  # No image sees another.


@pytest.mark.parametrize(
    ("stem_stride", "layers", "grid"), [(1, (1, 1), (16, 24)), (2, (1, 2, 1), (4, 6)), (4, (1,), (8, 12))]
)
def test_a_convolutional_network_has_the_map_that_its_config_says(
    stem_stride: Literal[1, 2, 4], layers: tuple[int, ...], grid: tuple[int, int]
) -> None:
    widths = (8, 16, 24)[: len(layers)]
    config = ConvNetConfig(image_px=(32, 48), stem_stride=stem_stride, widths=widths, layers=layers)
    tower = ConvNet(config, 16)
    maps: list[torch.Tensor] = []
    tower.stages[-1].register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    assert tower(torch.randn(2, 3, 32, 48)).shape == (2, 16)
    assert config.grid == grid == tuple(maps[0].shape[2:])


def test_a_convolutional_network_reads_any_size_that_its_strides_divide() -> None:
    config = ConvNetConfig(image_px=64, widths=(8, 16), layers=(1, 1))
    model = CLIP(CLIPConfig(embed_dim=16, image=config, text=TINY_MODEL.own_text)).eval()
    assert model.encode_image(torch.randn(2, 3, 24, 40)).shape == (2, 16)
    for height, width in ((24, 42), (4, 24), (0, 0)):
        with pytest.raises(ConfigError, match="the model reads 64 px"):
            model.encode_image(torch.randn(2, 3, height, width))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"image_px": 100}, "needs a multiple of its stride 16"),
        ({"widths": (64,)}, "the same number of stages"),
        ({"widths": (), "layers": ()}, "the same number of stages"),
        ({"layers": (1, 0, 1)}, "at least 1"),
        ({"widths": (63, 64, 64)}, "first width even"),
    ],
)
def test_impossible_convolutional_networks_are_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ConvNetConfig(**wrong)


def test_text_embedding_does_not_change_with_padding() -> None:
    torch.manual_seed(0)
    model = CLIP(TINY_MODEL).eval()
    ids, lengths = _texts(TINY_MODEL.own_text)
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
    others = [ids[:, [0, 3, 2, 1, 4]], *(ids.clone() for _ in range(5))]
    for place, changed in enumerate(others[1:]):
        changed[0, place] = 20
    for changed in others:
        found = model.encode_text(changed, length)
        expected = functional.normalize(plain_text(own_text_tower(model), changed, length), dim=1)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert not torch.allclose(found, before, atol=1e-4)


def test_patch_stem_equals_a_strided_convolution() -> None:
    torch.manual_seed(0)
    stem, pixels = PatchStem(8, 24), torch.randn(2, 3, 32, 16)
    expected = functional.conv2d(pixels, stem.embed.weight.view(24, 3, 8, 8), stride=8).flatten(2).transpose(1, 2)
    torch.testing.assert_close(stem(pixels), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("patch_px", [2, 4, 8])
def test_conv_stem_gives_one_token_a_patch_in_the_same_order(patch_px: int) -> None:
    """Of many stems: one alone may weigh a patch's neighbour more, which sees most of it, too."""
    torch.manual_seed(0)
    pixels = torch.zeros(1, 3, 4 * patch_px, 2 * patch_px)
    lit = pixels.clone()
    lit[:, :, 2 * patch_px : 3 * patch_px, patch_px:] = 9.0  # Row 2, column 1.
    response = torch.zeros(8)
    for _ in range(40):
        stem = ConvStem(patch_px, 32)
        blank = stem(pixels)
        assert blank.shape == (1, 8, 32)
        response += (stem(lit) - blank).detach().abs().sum(2)[0]
    assert int(response.argmax()) == 5


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


def test_every_preset_has_its_exact_number_of_parameters() -> None:
    variants = {f"{name}-quickgelu": PARAMETERS[name] for name in list(PARAMETERS)[:10]}
    counted = {}
    for name, config in PRESETS.items():
        with torch.device("meta"):
            counted[name] = sum(parameter.numel() for parameter in CLIP(config).parameters())
    assert counted == {**PARAMETERS, **variants}


@pytest.mark.parametrize("name", list(GOLDEN))
def test_golden(name: str) -> None:
    config = preset(name)
    image_golden, text_golden, scale = GOLDEN[name]
    torch.manual_seed(0)
    model = CLIP(config).eval()
    side = height_width(config.image.image_px)[0]
    pixels = torch.linspace(-1, 1, 2 * 3 * side**2).view(2, 3, side, side).sin()
    with torch.no_grad():
        image_emb, text_emb, logit_scale, _ = model(
            pixels, torch.tensor([[2, 7, 8, 3, 0], [2, 5, 9, 11, 3]]), torch.tensor([4, 5])
        )
    torch.testing.assert_close(image_emb[0, :4], torch.tensor(image_golden), atol=1e-4, rtol=0)
    torch.testing.assert_close(text_emb[1, :4], torch.tensor(text_golden), atol=1e-4, rtol=0)
    assert logit_scale.item() == pytest.approx(scale, rel=1e-5)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


def test_model_size_of_a_case_counted_by_hand() -> None:
    config = CLIPConfig(
        embed_dim=4,
        image=ViTConfig(image_px=4, patch_px=2, width=8, layers=2, heads=2),
        text=TextConfig(vocab_size=10, context_length=6, width=8, layers=2, heads=2),
    )
    counted = model_size(config)

    def by_hand(tokens: int) -> int:
        first = tokens * 8 * 24 + 2 * tokens * tokens * 8 + tokens * 8 * 8 + 2 * tokens * 8 * 32
        one_query = 4 * 8 * 8 + 2 * 2 * tokens * 8  # Its maps once a sequence; then two heads' scores and means.
        last = one_query + 2 * 8 * 32
        return first + last + 8 * 4

    assert counted.image_multiply_adds == 4 * 12 * 8 + by_hand(5)
    assert counted.text_multiply_adds == by_hand(6)
    block = (8 * 24 + 24) + (8 * 8 + 8) + (8 * 32 + 32) + (32 * 8 + 8) + 2 * 16
    assert counted.text_parameters == 10 * 8 + 6 * 8 + 2 * block + 16 + 8 * 4
    assert counted.image_parameters == 12 * 8 + 8 + 5 * 8 + 16 + 2 * block + 16 + 8 * 4
    assert counted.parameters == counted.image_parameters + counted.text_parameters + 1


@pytest.mark.parametrize("layout", ["clip", "siglip"])
def test_layers_that_are_not_counted_cost_what_the_others_do(layout: Literal["clip", "siglip"]) -> None:
    """Towers of few layers are counted, those of more are extrapolated: each layer adds the same."""
    pooling: Literal["cls", "attention"] = "attention" if layout == "siglip" else "cls"

    def config(layers: int) -> CLIPConfig:
        return CLIPConfig(
            embed_dim=8,
            image=ViTConfig(image_px=8, patch_px=2, width=8, layers=layers, heads=2, layout=layout, pooling=pooling),
            text=TextConfig(vocab_size=10, context_length=6, width=8, layers=layers, heads=2, layout=layout),
        )

    sizes = np.array([astuple(model_size(config(layers))) for layers in range(1, 8)])
    assert (np.diff(sizes, axis=0) == sizes[1] - sizes[0]).all()
    for layers in (1, 2, 7):
        assert sizes[layers - 1][0] == sum(parameter.numel() for parameter in CLIP(config(layers)).parameters())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ViTConfig(image_px=65, patch_px=16), "not a multiple of patch_px 16"),
        (lambda: ViTConfig(image_px=36, patch_px=12, stem="conv"), "power of 2"),
        (lambda: ViTConfig(image_px=(64, 40), patch_px=16), "not a multiple of patch_px 16"),
        (lambda: ViTConfig(image_px=0), "not a multiple of patch_px 32"),
        (lambda: ViTConfig(patch_dropout=1.0), "within \\[0, 1\\)"),
        (lambda: ViTConfig(layout="siglip"), "SigLIP's layout has no class token"),
        (lambda: ResNetConfig(image_px=100), "a multiple of 32"),
        (lambda: ResNetConfig(width=7), "width 7 even"),
        (lambda: ResNetConfig(heads=3), "not a multiple of heads 3"),
        (lambda: TextConfig(pooling="cls"), "a causal start token attends only to itself"),
        (lambda: CLIPConfig(image=ViTConfig(layout="siglip", pooling="mean")), "must equal its width 768"),
        (lambda: ViTConfig(width=10, heads=4), "width 10 is not a multiple of heads 4"),
        (lambda: TextConfig(heads=0), "must be at least 1"),
        (lambda: TextConfig(context_length=2), "a start token, an end token and one more need 3"),
        (lambda: CLIPConfig(init_temperature=0.001), "init_temperature"),
        (lambda: preset("shapes-dmo"), "did you mean 'shapes-demo'"),
    ],
)
def test_impossible_models_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(ConfigError, match=message):
        make()
