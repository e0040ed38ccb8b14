"""The encoder families: a file and a line in the table for each. `model.forward` passes a batch through any of them.

Every family is held to transformers' own padded forward pass by tests/model/test_families.py, which runs over the
table.
"""

from transformers import PreTrainedConfig

from model.families.bert import Bert
from model.families.distilbert import DistilBert
from model.families.family import Family
from model.families.modernbert import ModernBert
from model.families.mpnet import MPNet
from model.families.roberta import Camembert, Roberta, XLMRoberta
from utils.runtime.errors import InputError

FAMILIES: dict[str, Family] = {  # by the `model_type` of transformers' configuration
    "bert": Bert(),
    "camembert": Camembert(),
    "distilbert": DistilBert(),
    "modernbert": ModernBert(),
    "mpnet": MPNet(),
    "roberta": Roberta(),
    "xlm-roberta": XLMRoberta(),
}


def find_family(config: PreTrainedConfig) -> Family:
    """The family of a configuration; `InputError` with the names that there are."""
    if config.model_type not in FAMILIES:
        raise InputError(
            f"is a {config.model_type} model, and the encoders that can be used are of {', '.join(FAMILIES)}; take "
            "one of these, or add a family to model/families/",
            config.name_or_path or None,
        )
    return FAMILIES[config.model_type]
