"""Attention within each sequence of a pack, in one of three ways, which `packed_attention` chooses.

- On a CPU, neighbouring sequences of equal length are one call, and no work goes into padding; who makes a pack sorts
  it by length. In 16-bit numbers, sequences are padded to multiples of `ROW` tokens, for this one operation alone,
  and those of one multiple are a call: torch's softmax takes 2.6 times as long for a row of another length. Texts of
  more than `LONG` tokens have torch's fused kernel, which holds no matrix of scores.
- A GPU would wait for that many launches. torch has one kernel for sequences of any lengths, which takes what
  `_fits_varlen` says. For all else it has the sequences padded into a few blocks of like length.

Families whose scores are more than products of queries and keys have masks, made once a pass and for all layers: one
a run or block, bool where a token may attend to another or float numbers to add. Any other pass has no masks, apart
from a block's padding.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from model.dropout import dropout
from model.placing import put, take
from utils.batching import AttentionBlocks, PackedTokens

HALVES = torch.bfloat16, torch.float16
ROW = 32
LONG = 2_048  # a text's scores are 0.1 GB then, and 1.6 GB at 8,192 tokens; nor is the fused kernel slower any more


@dataclass
class Window:
    """Token i attends to the tokens j with |i - j| ≤ `size` alone. The masks are made when they are asked for."""

    tokens: PackedTokens
    size: int

    @cached_property
    def masks(self) -> list[Tensor | None]:
        """One a run, a view (length, length), None for texts that short; or one a block, (b, 1, 1 or L, L)."""
        near = torch.ones(*[longest_row(self.tokens)] * 2, dtype=torch.bool, device=self.tokens.input_ids.device)
        near.triu_(-self.size).tril_(self.size)
        if self.tokens.blocks is None:
            return [near[:length, :length] if length > self.size + 1 else None for _, length in self.tokens.runs]
        masks = []
        for present in self.tokens.blocks.present:
            length = present.shape[-1]
            if length > self.size + 1:
                # Rows of padding see every token: kernels differ in what they make of a row that sees none, 0 or NaN.
                masks.append(present & (near[:length, :length] | ~present.transpose(-2, -1)))
            else:
                masks.append(present)
        return masks


Masks = list[Tensor | None] | Window | None


def packed_attention(
    query: Tensor, key: Tensor, value: Tensor, tokens: PackedTokens, p: float = 0.0, masks: Masks = None
) -> Tensor:
    """softmax(q kᵀ / √d) v within each sequence; the result has the shape of `query`.

    `key` and `value` are (T, heads, d). `query` is the same, or (n, heads, d): the first token's query of each
    sequence. (Where all sequences have one token, that is the same thing.) A share `p` of the weights is dropped.
    `masks` are those of `biased_scores`, or a window.
    """
    if _fits_varlen(query, key, value, tokens, p, masks):
        return _by_varlen(query, key, value, tokens, masks)
    masks = masks.masks if isinstance(masks, Window) else masks
    attend = _attend_on_cpu if query.device.type == "cpu" else scaled_dot_product_attention
    if tokens.blocks is not None:
        return _by_blocks(query, key, value, tokens, p, masks, attend)
    return _by_runs(query, key, value, tokens.runs, masks or [None] * len(tokens.runs), p, attend)


def ready_for_attention(tokens: PackedTokens, hidden: Tensor) -> PackedTokens:
    """The tokens, with the blocks that a CPU has for hidden states of this type; masks are made after it."""
    if hidden.device.type != "cpu" or hidden.dtype not in HALVES:
        return tokens
    return replace(tokens, blocks=AttentionBlocks.by_length(tokens.lengths, ROW))


def _by_runs(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    runs: list[tuple[int, int]],
    masks: list[Tensor | None],
    p: float,
    attend: Callable[..., Tensor],
) -> Tensor:
    """Attention of runs, (count, length) each: neighbouring sequences of equal length, `count` of them."""
    counts, sizes = [count for count, _ in runs], [count * length for count, length in runs]
    queries = query.split(counts if len(query) == sum(counts) else sizes)
    outputs = []
    for count, q, k, v, mask in zip(counts, queries, key.split(sizes), value.split(sizes), masks, strict=True):
        q, k, v = (part.unflatten(0, (count, -1)).transpose(1, 2) for part in (q, k, v))  # count, heads, length, d
        mask = mask[..., : q.shape[2], :] if mask is not None else None
        outputs.append(attend(q, k, v, mask, p).transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _attend_on_cpu(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, p: float) -> Tensor:
    """Attention in three steps where that is faster than torch's fused kernel, or torch has none (with dropout).

    In 16-bit numbers it is faster: products are, exponentials are not.
    """
    if not p and (query.dtype not in HALVES or key.shape[-2] > LONG):
        return scaled_dot_product_attention(query, key, value, mask)
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:  # in place: what is not needed later does not take the memory twice
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores.add_(mask)
    return dropout(scores.softmax(-1), p) @ value


def _by_blocks(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    tokens: PackedTokens,
    p: float,
    masks: list[Tensor] | None,
    attend: Callable[..., Tensor],
) -> Tensor:
    """Padded with zeros, blocks are runs. Padding is masked as a key, and not read where it was a query."""
    blocks = tokens.blocks
    runs = [(len(present), present.shape[-1]) for present in blocks.present]
    places, lines = blocks.token_place, sum(count * length for count, length in runs)
    query_places, query_lines = places, lines
    if len(query) == len(tokens):
        query_places, query_lines = blocks.sequence_place, len(tokens)
    padded = put(query, query_places, query_lines), put(key, places, lines), put(value, places, lines)
    output = _by_runs(*padded, runs, masks or blocks.scores(query.dtype), p, attend)
    return take(output, query_places)


def _fits_varlen(query: Tensor, key: Tensor, value: Tensor, tokens: PackedTokens, p: float, masks: Masks) -> bool:
    """Whether torch's kernel for sequences of any lengths computes this.

    It takes 16-bit numbers, no dropout, and a window but no other mask. With a window it takes a sequence's only
    query for that of the last token, and here it is the first one's.
    """
    takes_masks = masks is None or (isinstance(masks, Window) and len(query) == len(key))
    takes_numbers = query.dtype == key.dtype == value.dtype and query.dtype in HALVES
    takes_width = query.shape[-1] % 8 == 0 and query.shape[-1] <= 256
    fits = p == 0 and takes_masks and takes_numbers and takes_width
    return fits and tokens.bounds is not None and has_varlen(query.device)


def has_varlen(device: torch.device) -> bool:
    """Whether this GPU has the kernel: FlashAttention 2, from compute capability 8.0 (Ampere) on."""
    return torch.backends.cuda.is_flash_attention_available() and torch.cuda.get_device_capability(device) >= (8, 0)


def _by_varlen(query: Tensor, key: Tensor, value: Tensor, tokens: PackedTokens, window: Window | None) -> Tensor:
    """Without padding. What comes out for a sequence does not depend on the others of its pack.

    (The kernel splits a sequence's keys only where they are paged or several heads share them. So num_splits=1, which
    not every version of torch takes for it, would change nothing.)
    """
    bounds, longest = tokens.bounds, max(tokens.lengths)
    query_bounds, longest_query = bounds, longest
    if len(query) == len(tokens):
        query_bounds, longest_query = torch.arange(len(bounds), dtype=torch.int32, device=bounds.device), 1
    size = window.size if window else -1  # -1: none
    return varlen_attn(query, key, value, query_bounds, bounds, longest_query, longest, window_size=(size, size))


def longest_row(tokens: PackedTokens) -> int:
    """The most tokens, padding included, that a row of attention's matrices has."""
    if tokens.blocks is not None:
        return max(present.shape[-1] for present in tokens.blocks.present)
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
