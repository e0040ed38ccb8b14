"""MPNet (arXiv:2004.09297): all-mpnet-base and its kin.

Scores of attention get a learnt bias by head and relative position, which is the same in every layer. It depends on
distances alone, so that a short text's bias is the corner of a long one's.
"""

from typing import ClassVar

from torch import Tensor, nn
from transformers import MPNetModel
from transformers.models.mpnet.modeling_mpnet import MPNetLayer

from model.attention import biased_scores, longest_row, packed_attention
from model.families.family import Family, split_heads
from utils.batching import PackedTokens

PADDING = 1  # transformers' MPNet counts positions from here, whatever the configuration's pad_token_id


class MPNet(Family):
    model_class = MPNetModel
    options: ClassVar = {"add_pooling_layer": False}

    def layers(self, model: MPNetModel) -> nn.ModuleList:
        return model.encoder.layer

    def embed(self, model: MPNetModel, tokens: PackedTokens) -> Tensor:
        positions = tokens.positions + PADDING + 1
        return model.embeddings(input_ids=tokens.input_ids[None], position_ids=positions[None])[0]

    def context(self, model: MPNetModel, tokens: PackedTokens, hidden: Tensor) -> list[Tensor]:
        """The bias of each run or block."""
        padded = hidden.new_empty(1, longest_row(tokens), 0)  # of which shape and device are read
        return biased_scores(tokens, model.encoder.compute_position_bias(padded)[0])

    def layer(
        self, layer: MPNetLayer, rows: Tensor, hidden: Tensor, tokens: PackedTokens, context: list[Tensor]
    ) -> Tensor:
        own = layer.attention.attn
        query = split_heads(own.q(rows), own.num_attention_heads)
        key, value = (split_heads(project(hidden), own.num_attention_heads) for project in (own.k, own.v))
        mixed = packed_attention(query, key, value, tokens, own.dropout.p if own.training else 0.0, context)
        attended = layer.attention.LayerNorm(layer.attention.dropout(own.o(mixed.flatten(1))) + rows)
        return layer.output(layer.intermediate(attended), attended)

    def set_attention_dropout(self, layer: MPNetLayer, p: float) -> None:
        layer.attention.attn.dropout.p = p
