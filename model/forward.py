"""The forward pass of packed sequences through an encoder of any family, up to one vector a sequence."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from model.attention import ready_for_attention
from model.families import Family
from model.placing import take
from utils.batching import PackedTokens, move


def last_hidden(model: PreTrainedModel, family: Family, tokens: PackedTokens, first_only: bool = False) -> Tensor:
    """The last hidden states, (T, H), as transformers' bare encoder `model` gives for padded sequences.

    With `first_only`, those of the first tokens, (n, H). The last layer is then computed for these alone; in BERT, 10
    of its 12 H² products a token fall away. Layers but the last are computed again in the backward pass where
    `model.gradient_checkpointing` is set and it trains.
    """
    hidden = _handed_on(family.embed(model, tokens))
    tokens = ready_for_attention(tokens, hidden)
    context = family.context(model, tokens, hidden)
    *layers, last = family.layers(model)
    checkpointed = model.training and getattr(model, "gradient_checkpointing", False)
    for layer in layers:
        if checkpointed:
            hidden = checkpoint(family.layer, layer, hidden, hidden, tokens, context, use_reentrant=False)
        else:
            hidden = family.layer(layer, hidden, hidden, tokens, context)
    rows = take(hidden, tokens.first) if first_only else hidden
    return family.finish(model, family.layer(last, rows, hidden, tokens, context))


def _handed_on(hidden: Tensor) -> Tensor:
    """On a CPU the layers hand on the type of autocast's products, as they would if all weights were of it.

    Else LayerNorm and residuals are float32 and twice as slow, and each product casts for itself what it gets. A
    GPU's autocast has LayerNorm in float32 in any case.
    """
    casts = hidden.device.type == "cpu" and torch.is_autocast_enabled("cpu") and hidden.dtype == torch.float32
    return hidden.to(torch.get_autocast_dtype("cpu")) if casts else hidden


def pooled_vectors(model: PreTrainedModel, family: Family, tokens: PackedTokens, pooling: str) -> Tensor:
    """One vector a sequence, (n, H): by `pooling`, cls or mean, the first token's last hidden state or their mean."""
    hidden = last_hidden(model, family, tokens, first_only=pooling == "cls")
    return hidden if pooling == "cls" else means(hidden, tokens.lengths)


def means(hidden: Tensor, lengths: list[int]) -> Tensor:
    """The mean of each sequence's rows of `hidden` (T, H), (n, H), summed in float32 or, where they are, float64.

    It is a product with a matrix (n, T) of shares: on a GPU, sums by index come in another order every time, and a
    run that goes on would not be the one that was stopped.
    """
    counts = move(torch.tensor(lengths), hidden.device)
    sequence = torch.arange(len(lengths), device=hidden.device).repeat_interleave(counts, output_size=len(hidden))
    dtype = torch.promote_types(hidden.dtype, torch.float32)
    shares = hidden.new_zeros(len(lengths), len(hidden), dtype=dtype)
    shares[sequence, torch.arange(len(hidden), device=hidden.device)] = 1 / counts.to(dtype)[sequence]
    with torch.autocast(hidden.device.type, enabled=False):
        return shares @ hidden.to(dtype)
