"""DistilBERT (arXiv:1910.01108): BERT without token types, with learnt or sinusoidal positions."""

from torch import Tensor, nn
from transformers import DistilBertModel
from transformers.models.distilbert.modeling_distilbert import TransformerBlock

from model.attention import packed_attention
from model.families.family import Family, split_heads
from utils.batching import PackedTokens


class DistilBert(Family):
    model_class = DistilBertModel

    def layers(self, model: DistilBertModel) -> nn.ModuleList:
        return model.transformer.layer

    def embed(self, model: DistilBertModel, tokens: PackedTokens) -> Tensor:
        return model.embeddings(input_ids=tokens.input_ids[None], position_ids=tokens.positions[None])[0]

    def layer(
        self, layer: TransformerBlock, rows: Tensor, hidden: Tensor, tokens: PackedTokens, context: None
    ) -> Tensor:
        own = layer.attention
        query = split_heads(own.q_lin(rows), own.n_heads)
        key, value = (split_heads(project(hidden), own.n_heads) for project in (own.k_lin, own.v_lin))
        mixed = packed_attention(query, key, value, tokens, own.dropout.p if own.training else 0.0)
        attended = layer.sa_layer_norm(own.out_lin(mixed.flatten(1)) + rows)
        return layer.output_layer_norm(layer.ffn.ff_chunk(attended) + attended)

    def set_attention_dropout(self, layer: TransformerBlock, p: float) -> None:
        layer.attention.dropout.p = p
