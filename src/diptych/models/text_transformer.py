"""The text tower: a causal or bidirectional transformer.

Shapes: B texts, T tokens of the longest text, N tokens of all texts, S sequences, C context length, W width, E embedding,
T1 = T + 1.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional

from diptych.models.attention import mean_of_each
from diptych.models.config import TextConfig
from diptych.models.layers import Block, LayerNorm, Transformer, norm_eps, normal
from diptych.models.packing import PackedTexts, Packing, layout_of, pack, pack_padded, pack_uniform
from diptych.models.prefix_tree import PrefixTree, shared_tree


class TextTransformer(nn.Module):
    """Token and position embeddings, blocks, pooling, layer norm, projection (Radford et al. 2021, sec. 2.4).

    Padding is removed before the first block. SigLIP's layout is the exception: it attends to padding, so texts are padded to
    the context length. On a CPU, common prefixes are encoded once when that saves more than 25 % of the tokens
    (`prefix_tree.py`).
    """

    def __init__(self, config: TextConfig, embed_dim: int) -> None:
        super().__init__()
        is_siglip = config.layout == "siglip"
        self.config = config
        self.token_emb = nn.Embedding(config.vocab_size, config.width)
        self.position_emb = normal(config.num_positions, config.width, std=0.01)
        self.appended_emb = normal(config.width, std=0.01) if config.pooling == "appended" else None
        self.transformer = Transformer(config)
        self.norm_post = LayerNorm(config.width, eps=norm_eps(config))
        has_bias = is_siglip if config.has_projection_bias is None else config.has_projection_bias
        self.projection = nn.Linear(config.width, embed_dim, bias=has_bias) if config.has_projection else nn.Identity()
        nn.init.normal_(self.token_emb.weight, std=0.02)
        if isinstance(self.projection, nn.Linear):
            nn.init.normal_(self.projection.weight, std=config.width**-0.5)
            if has_bias:
                nn.init.zeros_(self.projection.bias)

    def forward(
        self, ids: Int64[Tensor, "B T"] | Int64[Tensor, " N"] | PackedTexts, lengths: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B E"]:
        """Embeddings of texts, not normalized.

        Args:
            ids: token ids, one padded row per text; all texts concatenated without padding; or packed texts on the device of
                the tower. SigLIP's layout and towers with an appended token do not accept packed texts.
            lengths: number of tokens of each text, including start and end token. They are read on the CPU and can stay there.
                Not needed for packed texts or for padded rows in SigLIP's layout.
        """
        if isinstance(ids, PackedTexts):
            assert self.config.layout != "siglip"
            assert self.appended_emb is None
            return self._encode(ids.ids, ids)
        if self.config.layout == "siglip":
            padded = self._pad_to_context(ids, lengths)
            return self._encode(padded.flatten(), self._uniform(padded))
        assert lengths is not None
        if self.appended_emb is not None:
            rows = self._pad_to_context(ids, lengths)
            return self._encode_appended(rows, torch.arange(rows.shape[1]) < lengths.cpu()[:, None], is_packed=True)
        if ids.ndim == 2 and ids.device.type == "cpu" and self.supports_prefix_sharing and len(ids) > 1:
            tree = shared_tree(ids.numpy(), lengths.numpy(), ids.device)
            if tree is not None:
                return self.along_tree(tree)
        padded_to = ids.shape[1] if ids.ndim == 2 else None
        packing = pack(lengths, padded_to=padded_to, device=ids.device, limit=self.config.context_length)
        return self._encode(ids.flatten()[packing.gather_idx], packing)

    def encode_padded(self, ids: Int64[Tensor, "B T"], is_token: Bool[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """Return the embeddings of padded texts, not normalized. They equal those of `forward`, which skips the padding.

        No length is read on the host, so an exported graph works for any number and length of texts.

        Args:
            ids: token ids, one row per text.
            is_token: False at the padding, which follows the tokens of each text.
        """
        if self.config.layout == "siglip":
            return self.forward(ids)
        if self.appended_emb is not None:
            return self._encode_appended(ids, is_token, is_packed=False)
        return self._encode(ids.flatten(), pack_padded(is_token))

    @property
    def supports_prefix_sharing(self) -> bool:
        """Whether equal prefixes of two texts have equal activations in this tower."""
        config = self.config
        is_causal = config.is_causal and config.pooling == "eot" and config.layout != "siglip"
        has_dropout = self.training and config.dropout > 0  # Each text has its own dropout mask.
        return is_causal and not has_dropout and not self.transformer.gradient_checkpointing

    def along_tree(self, tree: PrefixTree) -> Float[Tensor, "B E"]:
        """Embeddings of the texts of a prefix tree, not normalized. `supports_prefix_sharing` must be True."""
        x = self.token_emb(tree.token) + functional.embedding(tree.depth, self.position_emb)  # nodes W
        *body, last = self.transformer.blocks
        for block in body:
            assert isinstance(block, Block)
            x = block.along_paths(x, tree.all_nodes.nodes, tree.all_nodes.paths)
        assert isinstance(last, Block)
        pooled = last.along_paths(x, tree.ends.nodes, tree.ends.paths)
        out: Tensor = self.projection(self.norm_post(pooled))
        return out[tree.end_of_text]

    def _encode(self, ids: Int64[Tensor, " N"], packing: Packing | PackedTexts) -> Float[Tensor, "B E"]:
        x = self.token_emb(ids) + functional.embedding(packing.position, self.position_emb)  # N W
        out: Tensor = self.projection(self.norm_post(self._pooled(x, packing)))
        return out[packing.inverse_perm]

    def _uniform(self, padded: Int64[Tensor, "B C"]) -> Packing:
        packing = pack_uniform(padded.shape[0], padded.shape[1], padded.device)
        if self.config.pooling == "end":
            packing = replace(packing, end_idx=packing.start_idx + padded.argmax(dim=1))
        return packing

    def _encode_appended(
        self, ids: Int64[Tensor, "B T"], is_token: Bool[Tensor, "B T"], *, is_packed: bool
    ) -> Float[Tensor, "B E"]:
        """Embeddings of padded texts, pooled by a learned token after the context (CoCa; Yu et al. 2022).

        open_clip masks the keys one position too late, and the weights were trained this way: the token attends to each
        position whose predecessor is not padding. These positions are the text and the first padding, or the token itself if
        the text fills the context. A position after an id 0 within a text is masked for all queries, so it is left out.
        """
        assert self.appended_emb is not None
        extended, position, kept = (side.to(self.position_emb.device) for side in _after_tokens(ids, is_token))
        packing = (
            pack(kept.sum(dim=1), padded_to=kept.shape[1], device=extended.device) if is_packed else pack_padded(kept)
        )
        positions = position.flatten()[packing.gather_idx]
        x = self.token_emb(extended.flatten()[packing.gather_idx])
        is_itself = (positions == self.config.context_length)[:, None]
        x = torch.where(is_itself, self.appended_emb.to(x.dtype), x) + functional.embedding(
            positions, self.position_emb
        )
        token = (self.appended_emb + self.position_emb[-1]).expand(packing.end_idx.shape[0], -1)  # S W
        pooled = self.transformer.appended(token, x, packing.layout, is_causal=True)
        out: Tensor = self.projection(self.norm_post(pooled))
        return out[packing.inverse_perm]

    def _pooled(self, x: Float[Tensor, "N W"], packing: Packing | PackedTexts) -> Float[Tensor, "S W"]:
        is_causal, layout = self.config.is_causal, layout_of(packing)
        if self.config.pooling == "mean":
            return mean_of_each(self.transformer(x, layout, is_causal=is_causal), layout)
        token_idx = packing.start_idx if self.config.pooling == "cls" else packing.end_idx
        return self.transformer.pooled(x, layout, token_idx, is_causal=is_causal)

    def _pad_to_context(
        self, ids: Int64[Tensor, "B T"] | Int64[Tensor, " N"], lengths: Int64[Tensor, " B"] | None
    ) -> Int64[Tensor, "B C"]:
        pad_id = self.config.pad_id
        if ids.ndim == 1:
            assert lengths is not None
            rows = torch.split(ids, lengths.tolist())
            ids = torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True, padding_value=pad_id)
        return functional.pad(ids, (0, self.config.context_length - ids.shape[1]), value=pad_id)


def _after_tokens(
    ids: Int64[Tensor, "B T"], is_token: Bool[Tensor, "B T"]
) -> tuple[Int64[Tensor, "B T1"], Int64[Tensor, "B T1"], Bool[Tensor, "B T1"]]:
    """Return the positions that follow a token, in order: token ids (0 for padding), positions, and a mask of used positions.

    The first position is always used. No value is read on the host, so the function can be exported to a graph.

    >>> ids = torch.tensor([[5, 0, 7, 9, 0]])
    >>> after, position, kept = _after_tokens(ids, torch.tensor([[True, True, True, True, False]]))
    >>> after[kept].tolist(), position[kept].tolist()
    ([5, 0, 9, 0], [0, 1, 3, 4])
    """
    num, length = ids.shape
    ids = torch.where(is_token.to(ids.device), ids, 0)
    extended = functional.pad(ids, (0, 1))
    follows = functional.pad(ids != 0, (1, 0), value=True)
    position = torch.arange(length + 1, device=ids.device).expand(num, -1)
    slot = torch.where(follows, follows.long().cumsum(dim=1) - 1, length + 1)  # The last column collects the others.
    empty = functional.pad(torch.zeros_like(extended), (0, 1))
    kept = position < follows.sum(dim=1, keepdim=True)
    return empty.scatter(1, slot, extended)[:, :-1], empty.scatter(1, slot, position)[:, :-1], kept
