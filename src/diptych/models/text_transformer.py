"""The text tower: a causal or bidirectional transformer.

Shapes: B texts, T tokens of the longest text, N tokens of all texts, S sequences, C context length, W width, E embedding.
"""

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
        self.position_emb = normal(config.context_length, config.width, std=0.01)
        self.transformer = Transformer(config)
        self.norm_post = LayerNorm(config.width, eps=norm_eps(config))
        self.projection = nn.Linear(config.width, embed_dim, bias=is_siglip)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        nn.init.normal_(self.projection.weight, std=config.width**-0.5)
        if is_siglip:
            nn.init.zeros_(self.projection.bias)

    def forward(
        self, ids: Int64[Tensor, "B T"] | Int64[Tensor, " N"] | PackedTexts, lengths: Int64[Tensor, " B"] | None = None
    ) -> Float[Tensor, "B E"]:
        """Embeddings of texts, not normalized.

        Args:
            ids: token ids, one padded row per text; all texts concatenated without padding; or packed texts on the device of
                the tower, which SigLIP's layout does not accept.
            lengths: number of tokens of each text, including start and end token. They are read on the CPU and can stay there.
                Packed texts need none, and neither do padded rows in SigLIP's layout.
        """
        if isinstance(ids, PackedTexts):
            assert self.config.layout != "siglip"
            return self._encode(ids.ids, ids)
        if self.config.layout == "siglip":
            padded = self._pad_to_context(ids, lengths)
            return self._encode(padded.flatten(), pack_uniform(padded.shape[0], padded.shape[1], ids.device))
        assert lengths is not None
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

    def _pooled(self, x: Float[Tensor, "N W"], packing: Packing | PackedTexts) -> Float[Tensor, "S W"]:
        is_causal, layout = self.config.is_causal, layout_of(packing)
        if self.config.pooling == "mean":
            return mean_of_each(self.transformer(x, layout, is_causal=is_causal), layout)
        token_idx = packing.end_idx if self.config.pooling == "eot" else packing.start_idx
        return self.transformer.pooled(x, layout, token_idx, is_causal=is_causal)

    def _pad_to_context(
        self, ids: Int64[Tensor, "B T"] | Int64[Tensor, " N"], lengths: Int64[Tensor, " B"] | None
    ) -> Int64[Tensor, "B C"]:
        if ids.ndim == 1:
            assert lengths is not None
            ids = torch.nn.utils.rnn.pad_sequence(list(torch.split(ids, lengths.tolist())), batch_first=True)
        return functional.pad(ids, (0, self.config.context_length - ids.shape[1]))
