"""Attention within each sequence of a pack.

On a CPU, neighbouring sequences of equal length are one call, and no work goes into padding; who makes a pack sorts
it by length. A GPU would wait for that many launches: there, the sequences are padded into a few blocks of like
length, for this one operation alone.

Families whose scores are more than products of queries and keys prepare masks, once a pass and for all layers: one a
run or block, bool where a token may attend to another or float numbers to add. Any other pass has no masks, apart
from a block's padding.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from model.dropout import dropout
from utils.batching import PackedTokens


def packed_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tokens: PackedTokens,
    p: float = 0.0,
    masks: list[Tensor | None] | None = None,
) -> Tensor:
    """softmax(q kᵀ / √d) v within each sequence; the result has the shape of `query`.

    `key` and `value` are (T, heads, d). `query` is the same, or (n, heads, d): the first token's query of each
    sequence. (Where all sequences have one token, that is the same thing.) A share `p` of the weights is dropped.
    `masks` are those of `biased_scores` or `windowed_scores`.
    """
    if tokens.blocks is not None:
        return _by_blocks(query, key, value, tokens, p, masks)
    sizes = [count * length for count, length in tokens.runs]
    one_query = len(query) == len(tokens)
    outputs = []
    for (count, _), q, k, v, mask in zip(
        tokens.runs,
        query.split([count for count, _ in tokens.runs] if one_query else sizes),
        key.split(sizes),
        value.split(sizes),
        masks or [None] * len(sizes),
        strict=True,
    ):
        q, k, v = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in (q, k, v))  # count, heads, length, d
        mask = mask[..., : q.shape[2], :] if mask is not None else None
        if p:
            output = _attend_with_dropout(q, k, v, mask, p)
        else:
            output = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _attend_with_dropout(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """What torch does on a CPU where attention has dropout (none of its fused kernels does), with a faster one."""
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return dropout(scores.softmax(-1), p) @ value


def _by_blocks(
    query: Tensor, key: Tensor, value: Tensor, tokens: PackedTokens, p: float, masks: list[Tensor | None] | None
) -> Tensor:
    blocks, one_query, outputs = tokens.blocks, len(query) == len(tokens), []
    for own, mask, sequences in zip(blocks.tokens, masks or blocks.present, blocks.sequences, strict=True):
        q = query[sequences[:, None] if one_query else own]
        q, k, v = (part.transpose(1, 2) for part in (q, key[own], value[own]))  # b, heads, L, d
        mask = mask[:, :, : q.shape[2]]
        output = scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=p)
        outputs.append(output.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)[blocks.sequence_place if one_query else blocks.token_place]


def longest_row(tokens: PackedTokens) -> int:
    """The most tokens, padding included, that a row of attention's matrices has."""
    if tokens.blocks is not None:
        return max(own.shape[1] for own in tokens.blocks.tokens)
    return max(tokens.lengths)


def biased_scores(tokens: PackedTokens, bias: Tensor) -> list[Tensor]:
    """Masks that add `bias` (heads, L, L), L = `longest_row`, to the scores; from it, sequences take their corner.

    A run's mask is a view, (1, heads, length, length); a block's takes memory for each of its sequences,
    (b, heads, length, length).
    """
    if tokens.blocks is None:
        corner = {length: bias[None, :, :length, :length] for length in tokens.lengths}
        return [corner[length] for _, length in tokens.runs]
    corners = (bias[:, : present.shape[-1], : present.shape[-1]] for present in tokens.blocks.present)
    return [own.where(present, -torch.inf) for own, present in zip(corners, tokens.blocks.present, strict=True)]


def windowed_scores(tokens: PackedTokens, window: int) -> list[Tensor | None]:
    """Masks that let token i attend to the tokens j with |i - j| ≤ `window`; None for a run of texts that short.

    A run's mask is a view, (length, length); a block's is (b, 1, 1 or length, length).
    """
    near = torch.ones(*[longest_row(tokens)] * 2, dtype=torch.bool, device=tokens.input_ids.device)
    near.triu_(-window).tril_(window)
    if tokens.blocks is None:
        return [near[:length, :length] if length > window + 1 else None for _, length in tokens.runs]
    masks = []
    for present in tokens.blocks.present:
        length = present.shape[-1]
        if length > window + 1:
            # Rows of padding see every token: kernels differ in what they make of a row that sees none (0 or NaN).
            masks.append(present & (near[:length, :length] | ~present.transpose(-2, -1)))
        else:
            masks.append(present)
    return masks
