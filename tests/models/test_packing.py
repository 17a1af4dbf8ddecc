"""Packed, padded and plain are one model. Shapes: B texts, T tokens of the longest."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from diptych.core.errors import DataError
from diptych.losses.contrastive import clip_loss
from diptych.models import attention
from diptych.models.attention import LengthBucket
from diptych.models.clip import CLIP
from diptych.models.config import CLIPConfig, TextConfig, ViTConfig
from diptych.models.layers import Block
from diptych.models.packing import PackingSpec, pack, pack_texts, packing_spec
from diptych.models.vision_transformer import VisionTransformer
from tests.makers import own_text_tower
from tests.models.plain import plain_block, plain_text, plain_vision

CPU = torch.device("cpu")
TEXT = TextConfig(vocab_size=50, context_length=12, width=32, layers=3, heads=4)
KINDS = {
    "causal, end mark": TEXT,
    "causal, mean": replace(TEXT, pooling="mean"),
    "bidirectional, end mark": replace(TEXT, is_causal=False),
    "bidirectional, start mark": replace(TEXT, is_causal=False, pooling="cls"),
    "bidirectional, mean": replace(TEXT, is_causal=False, pooling="mean"),
    "one layer": replace(TEXT, layers=1),
}


def _model(text: TextConfig, **image: object) -> CLIP:
    torch.manual_seed(0)
    vit = ViTConfig(image_px=16, patch_px=8, width=16, layers=2, heads=2, **image)  # type: ignore[arg-type]
    return CLIP(CLIPConfig(embed_dim=24, image=vit, text=text))


def _texts(lengths: list[int], junk: int = 0) -> tuple[Tensor, Tensor]:
    """Random tokens, `junk` where the padding is."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 50, (len(lengths), max(lengths)), generator=generator)
    counts = torch.tensor(lengths)
    ids[torch.arange(ids.shape[1])[None, :] >= counts[:, None]] = junk
    return ids, counts


def _gradients(model: CLIP, text_emb: Tensor) -> tuple[float, dict[str, Tensor]]:
    """Loss against fixed pictures, and what it makes of every weight of the text tower."""
    pictures = torch.randn(text_emb.shape, generator=torch.Generator().manual_seed(1), dtype=text_emb.dtype)
    pictures = torch.nn.functional.normalize(pictures)
    model.zero_grad()
    loss = clip_loss(pictures, torch.nn.functional.normalize(text_emb, dim=-1), model.logit_scale.detach())
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.text_tower.named_parameters() if p.grad is not None}


def _assert_same(ours: tuple[float, dict[str, Tensor]], plain: tuple[float, dict[str, Tensor]]) -> None:
    """Equal losses and gradients, up to the rounding of float64. Gradients are relative to the largest of their tensor."""
    assert ours[0] == pytest.approx(plain[0], rel=1e-12)
    assert ours[1].keys() == plain[1].keys()
    for name, theirs in plain[1].items():
        # A key's bias adds the same to every score of a query, so softmax gives it no gradient but rounding.
        largest = plain[1][name.replace("key", "query")] if name.endswith("key.bias") else theirs
        assert float((ours[1][name] - theirs).abs().max()) <= 1e-11 * float(largest.abs().max()), name


@pytest.fixture(params=["buckets", "padded"])
def path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """How attention is computed: as on a CPU, or as on a GPU in float32."""
    if request.param == "padded":
        monkeypatch.setattr(attention, "BUCKETED_DEVICES", frozenset())


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("lengths", [[5, 2, 12, 5, 3], [4, 4, 4], [7], [3, 2]])
def test_packed_and_padded_equal_the_plain_tower(kind: str, lengths: list[int]) -> None:
    model = _model(KINDS[kind]).double()  # The order of sums depends on the CPU, which shows in float32.
    ids, counts = _texts(lengths, junk=9)
    plain = _gradients(model, plain_text(own_text_tower(model), ids, counts))
    assert len(plain[1]) == len(list(model.text_tower.parameters()))
    packed = torch.cat([row[:length] for row, length in zip(ids, lengths, strict=True)])
    _assert_same(_gradients(model, model.text_tower(ids, counts)), plain)
    _assert_same(_gradients(model, model.text_tower(packed, counts)), plain)
    _assert_same(_gradients(model, model.text_tower(pack_texts(ids, counts, context_length=12))), plain)
    torch.testing.assert_close(model.encode_text(ids, counts), model.encode_text(packed, counts), rtol=0, atol=0)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_image_tower_equals_the_plain_one(pooling: str) -> None:
    model = _model(TEXT, pooling=pooling)
    pixels = torch.randn(3, 3, 16, 16)
    torch.testing.assert_close(model.image_tower(pixels), plain_vision(model.image_tower, pixels), atol=1e-5, rtol=0)  # type: ignore[arg-type]


def test_dropped_patches_are_left_out_of_attention() -> None:
    model = _model(TEXT, patch_dropout=0.5)
    tower = model.image_tower.train()
    assert isinstance(tower, VisionTransformer)
    assert tower.class_emb is not None
    pixels = torch.randn(3, 3, 16, 16)
    torch.manual_seed(7)
    ours = tower(pixels)
    torch.manual_seed(7)
    kept = torch.rand(3, 4).topk(2, dim=1).indices
    patches = (tower.stem(pixels) + tower.position_emb[1:])[torch.arange(3)[:, None], kept]
    start = tower.class_emb + tower.position_emb[0]
    x = tower.norm_pre(torch.cat([start.expand(3, 1, -1), patches], dim=1))
    for block in tower.transformer.blocks:
        assert isinstance(block, Block)
        x = plain_block(block, x, None)
    expected = tower.projection(tower.norm_post(x[:, 0]))
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


def test_no_product_is_computed_for_padding() -> None:
    """The count of a padded batch is that of its texts one by one, and grows with their length alone."""
    from torch.utils.flop_counter import FlopCounterMode

    tower = _model(TEXT).text_tower

    def flops(ids: Tensor, lengths: Tensor) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            tower(ids, lengths)
        return counter.get_total_flops()

    ids, lengths = _texts([5, 2, 12, 5, 3])
    singly = [flops(ids[i : i + 1], lengths[i : i + 1]) for i in range(5)]
    assert flops(ids, lengths) == sum(singly)
    assert singly[1] < singly[4] < singly[0] == singly[3] < singly[2]


@given(st.lists(st.integers(1, 9), min_size=1, max_size=20), st.booleans())
def test_packing_is_a_permutation_that_comes_back(lengths: list[int], is_padded: bool) -> None:
    width = max(lengths) + 1
    packing = pack(torch.tensor(lengths), padded_to=width if is_padded else None, device=CPU)
    rows = [[(row, i) for i in range(length)] for row, length in enumerate(lengths)]
    every = [token for row in rows for token in row]
    given_order = [(row, i) for row in range(len(lengths)) for i in range(width)] if is_padded else every
    tokens = [given_order[place] for place in packing.gather_idx.tolist()]
    assert sorted(tokens) == sorted(every)
    assert [i for _, i in tokens] == packing.position.tolist()
    assert [bucket.length for bucket in packing.layout.buckets] == sorted(set(lengths))
    assert sum(bucket.num * bucket.length for bucket in packing.layout.buckets) == len(tokens)
    for row, length in enumerate(lengths):
        rank = int(packing.inverse_perm[row])
        assert tokens[int(packing.start_idx[rank])] == (row, 0)
        assert tokens[int(packing.end_idx[rank])] == (row, length - 1)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_packed_texts_are_those_of_the_tower_and_a_filling(lengths: list[int]) -> None:
    ids, counts = _texts(lengths)
    packed, packing = pack_texts(ids, counts, context_length=12), pack(counts, padded_to=ids.shape[1], device=CPU)
    num, texts = sum(lengths), len(lengths)
    assert packed.ids[:num].tolist() == ids.flatten()[packing.gather_idx].tolist()
    assert packed.position[:num].tolist() == packing.position.tolist()
    assert packed.start_idx[:texts].tolist() == packing.start_idx.tolist()
    assert packed.end_idx[:texts].tolist() == packing.end_idx.tolist()
    assert packed.inverse_perm.tolist() == packing.inverse_perm.tolist()
    # The filling is always there, in sequences no longer than the texts.
    total, sizes = len(packed.ids), packed.cu_seq.diff()
    assert (total % 64, packed.ids[num:].any().item()) == (0, False)
    assert 1 <= total - num <= 64
    assert (int(packed.cu_seq[texts]), int(packed.cu_seq[-1]), packed.cu_seq.dtype) == (num, total, torch.int32)
    assert 1 <= int(sizes.min()) <= int(sizes.max()) == max(lengths)
    assert packed.position.tolist() == [i for size in sizes.tolist() for i in range(size)]
    assert packed.end_idx.tolist() == (packed.cu_seq[1:] - 1).tolist()
    # The padded grid holds every token once, at its position.
    grid = torch.full(packed.is_token.shape, -1).flatten().index_copy(0, packed.slots, packed.position)
    width = packed.is_token.shape[1]
    assert grid.tolist() == [i if i < size else -1 for size in sizes.tolist() for i in range(width)]
    assert torch.equal(packed.is_token.flatten(), grid >= 0)


def test_a_batch_is_packed_in_the_parts_in_which_it_is_encoded() -> None:
    ids, lengths = _texts([5, 2, 12, 5, 3])
    parts = PackingSpec(context_length=12, micro_batch=4).pack(ids, lengths, num_pairs=8)
    assert [len(part.inverse_perm) for part in parts] == [3, 2]
    model = _model(TEXT)
    emb = torch.cat([model.encode_text(part) for part in parts])
    torch.testing.assert_close(emb, model.encode_text(ids, lengths), atol=1e-6, rtol=0)
    assert model.encode_text(pack_texts(ids[:0], lengths[:0], context_length=12)).shape == (0, 24)


def test_texts_are_packed_ahead_where_one_call_per_length_is_slow() -> None:
    siglip = replace(TEXT, is_causal=False, layout="siglip", activation="gelu_tanh")
    assert packing_spec(TEXT, torch.device("cuda"), micro_batch=4) == PackingSpec(context_length=12, micro_batch=4)
    assert packing_spec(TEXT, CPU, micro_batch=4) is None
    assert packing_spec(siglip, torch.device("cuda"), micro_batch=4) is None


@pytest.mark.parametrize(("width", "limit"), [(5, 12), (12, 5)])
def test_packed_texts_beyond_their_row_or_the_context_are_refused(width: int, limit: int) -> None:
    with pytest.raises(DataError, match="texts of 3 to 9 tokens do not fit in rows of 5"):
        pack_texts(torch.full((2, width), 7), torch.tensor([3, 9]), context_length=limit)


def test_texts_of_one_length_are_one_bucket() -> None:
    assert pack(torch.tensor([4, 4, 4]), padded_to=None, device=CPU).layout.buckets == (LengthBucket(3, 4),)


@pytest.mark.parametrize("lengths", [[3, 9], [0, 2]])
def test_lengths_beyond_their_row_are_refused(lengths: list[int]) -> None:
    with pytest.raises(DataError, match="do not fit in rows of 5"):
        _model(TEXT).encode_text(torch.full((2, 5), 7), torch.tensor(lengths))


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_texts_and_no_pictures_give_no_embeddings(kind: str) -> None:
    model = _model(KINDS[kind])
    assert model.encode_text(torch.zeros(0, 5, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)).shape == (0, 24)
    assert model.encode_image(torch.zeros(0, 3, 16, 16)).shape == (0, 24)


def test_siglip_attends_to_its_filling() -> None:
    """Any padding width gives the same, a longer context does not: the filling is read."""
    text = replace(TEXT, is_causal=False, layout="siglip", activation="gelu_tanh")
    model = _model(text)
    ids, lengths = _texts([5, 2, 8])
    filled = torch.nn.functional.pad(ids, (0, 4))
    whole = torch.full_like(lengths, 12)
    packed = torch.cat([ids[0, :5], ids[1, :2], ids[2, :8]])
    expected = plain_text(own_text_tower(model), filled, whole)
    torch.testing.assert_close(model.text_tower(ids, lengths), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(model.text_tower(packed, lengths), expected, atol=1e-5, rtol=0)
    filled[0, 11] = 7
    assert not torch.allclose(model.text_tower(filled, whole), expected, atol=1e-3)
