"""Which layers of an encoder iDRO compares the clusters' gradients over."""

from torch import nn

from model.encoders import Encoder
from model.hyperparameters import IDRO_LAYERS
from utils.runtime.errors import InputError


def watched_layers(encoder: Encoder, model_size: str, count: int = 0) -> nn.ModuleList:
    """The last layers of an encoder, over which iDRO compares gradients: `count`, or by default 3 (base), 2 (large).

    An encoder with fewer layers than BERT-base has by default the last min(3, half) watched.
    """
    if model_size not in IDRO_LAYERS:
        raise InputError(f"--model_size {model_size!r}: there are base and large")
    layers = encoder.family.layers(encoder.model)
    if not 0 <= count <= len(layers):
        raise InputError(f"--idro_layers is {count}, and the encoder has {len(layers)} layers")
    if not count:
        count = IDRO_LAYERS[model_size] if len(layers) >= 12 else min(3, max(1, len(layers) // 2))
    return layers[-count:]
