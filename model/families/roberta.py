"""RoBERTa (arXiv:1907.11692) and what has its architecture: ANCE, XLM-R (multilingual E5, BGE-M3), CamemBERT.

The layers are BERT's. Positions are counted from the padding token's number on.
"""

from torch import Tensor
from transformers import CamembertModel, RobertaModel, XLMRobertaModel

from model.families.bert import Bert
from utils.batching import PackedTokens


class Roberta(Bert):
    model_class = RobertaModel

    def embed(self, model: RobertaModel, tokens: PackedTokens) -> Tensor:
        positions = tokens.positions + model.embeddings.padding_idx + 1
        return model.embeddings(input_ids=tokens.input_ids[None], position_ids=positions[None])[0]


class XLMRoberta(Roberta):
    model_class = XLMRobertaModel


class Camembert(Roberta):
    model_class = CamembertModel
