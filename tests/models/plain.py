"""The towers once more, slowly and plainly: padded, masked, every token through every block. What the fast ones must equal."""

import torch
from torch import Tensor, nn

from diptych.models.layers import Attention, Block
from diptych.models.text_transformer import TextTransformer
from diptych.models.vision_transformer import VisionTransformer


def plain_text(tower: nn.Module, ids: Tensor, lengths: Tensor) -> Tensor:
    """Embeddings of padded texts: softmax over a masked matrix, the pooled token picked at the very end."""
    assert isinstance(tower, TextTransformer)
    config = tower.config
    num = ids.shape[1]
    seen = torch.arange(num)[None, :] < lengths[:, None]
    mask = seen[:, None, None, :].expand(-1, 1, num, -1)
    if config.is_causal:
        mask = mask & torch.ones(num, num, dtype=torch.bool).tril()
    x = tower.token_emb(ids) + tower.position_emb[:num]
    for block in tower.transformer.blocks:
        assert isinstance(block, Block)
        x = plain_block(block, x, mask)
    if config.pooling == "mean":
        pooled = (x * seen[:, :, None]).sum(1) / lengths[:, None]
    else:
        pooled = x[torch.arange(len(ids)), lengths - 1 if config.pooling == "eot" else torch.zeros_like(lengths)]
    out: Tensor = tower.projection(tower.norm_post(pooled))
    return out


def plain_vision(tower: VisionTransformer, pixels: Tensor) -> Tensor:
    """Embeddings of pixels, the class token or the mean picked at the very end."""
    patches = tower.stem(pixels)
    assert tower.class_emb is not None
    x = tower.norm_pre(torch.cat([tower.class_emb.expand(len(pixels), 1, -1), patches], 1) + tower.position_emb)
    for block in tower.transformer.blocks:
        assert isinstance(block, Block)
        x = plain_block(block, x, None)
    out: Tensor = tower.projection(tower.norm_post(x[:, 0] if tower.config.pooling == "cls" else x[:, 1:].mean(1)))
    return out


def plain_block(block: Block, x: Tensor, mask: Tensor | None) -> Tensor:
    """The next layer's tokens, all of them."""
    x = x + plain_attention(block.attention, block.norm_1(x), mask)
    out: Tensor = x + block.mlp(block.norm_2(x))
    return out


def plain_attention(attention: Attention, x: Tensor, mask: Tensor | None) -> Tensor:
    """Softmax of the whole matrix of scores."""
    q, k, v = (
        linear(x).unflatten(-1, (attention.heads, -1)).transpose(1, 2)
        for linear in (attention.query, attention.key, attention.value)
    )
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    out: Tensor = attention.out((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
    return out
