"""Attention within each sequence of a pack.

On a CPU, neighbouring sequences of equal length are one call, and no work goes into padding; who makes a pack sorts
it by length. A GPU would wait for that many launches: there, the sequences are padded into a few blocks of like
length, for this one operation alone.
"""

from functools import partial

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.dropout import dropout
from utils.batching import PackedTokens


def packed_attention(query: Tensor, key: Tensor, value: Tensor, tokens: PackedTokens, p: float = 0.0) -> Tensor:
    """softmax(q kᵀ / √d) v within each sequence; the result has the shape of `query`.

    `key` and `value` are (T, heads, d). `query` is the same, or (n, heads, d): one query a sequence. (Where all
    sequences have one token, that is the same thing.)
    """
    if tokens.blocks is not None:
        return _by_blocks(query, key, value, tokens, p)
    sizes = [count * length for count, length in tokens.runs]
    one_query = len(query) == len(tokens)
    outputs = []
    for (count, _), q, k, v in zip(
        tokens.runs,
        query.split([count for count, _ in tokens.runs] if one_query else sizes),
        key.split(sizes),
        value.split(sizes),
        strict=True,
    ):
        q, k, v = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in (q, k, v))  # count, heads, length, d
        attend = partial(_attend_with_dropout, p=p) if p else scaled_dot_product_attention
        outputs.append(attend(q, k, v).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _attend_with_dropout(query: Tensor, key: Tensor, value: Tensor, p: float) -> Tensor:
    """What torch does on a CPU where attention has dropout (none of its fused kernels does), with a faster one."""
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    return dropout(weights.softmax(-1), p) @ value


def _by_blocks(query: Tensor, key: Tensor, value: Tensor, tokens: PackedTokens, p: float) -> Tensor:
    blocks, one_query, outputs = tokens.blocks, len(query) == len(tokens), []
    for own, present, sequences in zip(blocks.tokens, blocks.present, blocks.sequences, strict=True):
        q = query[sequences[:, None] if one_query else own]
        q, k, v = (part.transpose(1, 2) for part in (q, key[own], value[own]))  # b, heads, L, d
        output = scaled_dot_product_attention(q, k, v, attn_mask=present, dropout_p=p)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[blocks.sequence_place if one_query else blocks.token_place]
