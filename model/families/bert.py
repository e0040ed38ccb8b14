"""BERT (arXiv:1810.04805): MiniLM, E5, BGE, GTE, Arctic-Embed, mxbai, COCO-DR and many others."""

from typing import ClassVar

from torch import Tensor, nn
from transformers import BertModel
from transformers.models.bert.modeling_bert import BertLayer

from model.attention import packed_attention
from model.families.family import Family, split_heads
from utils.batching import PackedTokens


class Bert(Family):
    model_class = BertModel
    options: ClassVar = {"add_pooling_layer": False}

    def layers(self, model: BertModel) -> nn.ModuleList:
        return model.encoder.layer

    def embed(self, model: BertModel, tokens: PackedTokens) -> Tensor:
        return model.embeddings(input_ids=tokens.input_ids[None], position_ids=tokens.positions[None])[0]

    def layer(self, layer: BertLayer, rows: Tensor, hidden: Tensor, tokens: PackedTokens, context: None) -> Tensor:
        own = layer.attention.self
        query = split_heads(own.query(rows), own.num_attention_heads)
        key, value = (split_heads(project(hidden), own.num_attention_heads) for project in (own.key, own.value))
        mixed = packed_attention(query, key, value, tokens, own.dropout.p if own.training else 0.0)
        return layer.feed_forward_chunk(layer.attention.output(mixed.flatten(1), rows))

    def set_attention_dropout(self, layer: BertLayer, p: float) -> None:
        layer.attention.self.dropout.p = p
