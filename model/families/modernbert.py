"""ModernBERT (arXiv:2412.13663): gte-modernbert, granite-embedding-r2 and others.

Positions are rotations of queries and keys. Most layers attend to a window around each token only, with rotations of
another base. Normalisation comes before attention and feed-forward layer, and once more after the last layer.
"""

from dataclasses import dataclass

from torch import Tensor, nn
from transformers import ModernBertModel
from transformers.models.modernbert.modeling_modernbert import ModernBertEncoderLayer, apply_rotary_pos_emb

from model.attention import Window, packed_attention
from model.families.family import Family
from model.placing import take
from utils.batching import PackedTokens


@dataclass
class Positions:
    """What layers of one kind share: cosines and sines of the rotations, (T, d) each, and the window."""

    cosines: Tensor
    sines: Tensor
    window: Window | None


class ModernBert(Family):
    model_class = ModernBertModel

    def layers(self, model: ModernBertModel) -> nn.ModuleList:
        return model.layers

    def embed(self, model: ModernBertModel, tokens: PackedTokens) -> Tensor:
        return model.embeddings(tokens.input_ids)

    def context(self, model: ModernBertModel, tokens: PackedTokens, hidden: Tensor) -> dict[str, Positions]:
        windows = {"full_attention": None, "sliding_attention": Window(tokens, model.config.sliding_window)}
        positions = {}
        for kind in set(model.config.layer_types):
            cosines, sines = model.rotary_emb(hidden, tokens.positions[None], kind)
            positions[kind] = Positions(cosines[0], sines[0], windows[kind])
        return positions

    def layer(
        self,
        layer: ModernBertEncoderLayer,
        rows: Tensor,
        hidden: Tensor,
        tokens: PackedTokens,
        context: dict[str, Positions],
    ) -> Tensor:
        own, positions = layer.attn, context[layer.attention_type]
        query, key, value = own.Wqkv(layer.attn_norm(hidden)).unflatten(-1, (3, -1, own.head_dim)).unbind(-3)
        query, key = apply_rotary_pos_emb(query, key, positions.cosines, positions.sines)
        if len(rows) < len(hidden):  # one matrix gives all three: the other queries were made in vain
            query = take(query, tokens.first)
        p = own.attention_dropout if own.training else 0.0
        mixed = packed_attention(query, key, value, tokens, p, positions.window)
        rows = rows + own.out_drop(own.Wo(mixed.flatten(1)))
        return rows + layer.mlp(layer.mlp_norm(rows))

    def set_attention_dropout(self, layer: ModernBertEncoderLayer, p: float) -> None:
        layer.attn.attention_dropout = p

    def finish(self, model: ModernBertModel, hidden: Tensor) -> Tensor:
        return model.final_norm(hidden)
