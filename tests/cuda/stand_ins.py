"""What stands in for operations that have kernels on GPUs alone: functions of CPU tensors that give the same."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor


def varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool = False,
    scale: float | None = None,
    window_size: list[int] | None = None,
    *_,
) -> tuple[Tensor, Tensor, Tensor]:
    """The forward pass of torch.nn.attention.varlen.varlen_attn: output, log of the sums, state of dropout (none)."""
    output, log_sums = torch.empty_like(query), query.new_empty(query.shape[1], len(query), dtype=torch.float32)
    for own, _, q, k, v, hidden in _sequences(query, key, value, cu_seq_q, cu_seq_k, window_size):
        scores = (q @ k.mT * (scale or q.shape[-1] ** -0.5)).masked_fill(hidden, -torch.inf)
        log_sums[:, own] = scores.logsumexp(-1)
        output[own] = (scores.softmax(-1) @ v).transpose(0, 1).to(output.dtype)
    return output, log_sums, torch.zeros(2, dtype=torch.uint64)


def varlen_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    log_sums: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    is_causal: bool,
    rng_state: Tensor,
    scale: float | None = None,
    window_size: list[int] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Its backward pass: the gradients of query, key and value."""
    gradients = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    for own, keys, q, k, v, hidden in _sequences(query, key, value, cu_seq_q, cu_seq_k, window_size):
        factor = scale or q.shape[-1] ** -0.5
        weights = (q @ k.mT * factor).masked_fill(hidden, -torch.inf).softmax(-1)
        of_output = gradient[own].transpose(0, 1).float()
        of_weights = of_output @ v.mT
        of_scores = weights * (of_weights - (of_weights * weights).sum(-1, keepdim=True)) * factor
        made = of_scores @ k, of_scores.mT @ q, weights.mT @ of_output
        for whole, place, part in zip(gradients, (own, keys, keys), made, strict=True):
            whole[place] = part.transpose(0, 1).to(whole.dtype)
    return gradients


def _sequences(
    query: Tensor, key: Tensor, value: Tensor, cu_seq_q: Tensor, cu_seq_k: Tensor, window_size: list[int] | None
) -> Iterator[tuple]:
    """Of each sequence: places of queries and keys, what they and the values are (heads, length, d), masked pairs."""
    assert query.dtype in (torch.bfloat16, torch.float16), "the kernel has 16-bit numbers only"
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    before, after = window_size or (-1, -1)
    ends = zip(cu_seq_q.tolist(), cu_seq_q.tolist()[1:], cu_seq_k.tolist(), cu_seq_k.tolist()[1:], strict=False)
    for first, last, first_key, last_key in ends:
        own, keys = slice(first, last), slice(first_key, last_key)
        numbers = (part.transpose(0, 1).float() for part in (query[own], key[keys], value[keys]))
        places = torch.arange(last_key - first_key)
        distance = places - places[len(places) - (last - first) :, None]  # a window is aligned at the ends
        hidden = (distance < -before if before >= 0 else False) | (distance > after if after >= 0 else False)
        yield own, keys, *numbers, torch.as_tensor(hidden)


# By the name of the operation.
STAND_INS: dict[str, Callable] = {
    "torch_attn::_varlen_attn": varlen,
    "torch_attn::_varlen_attn_backward": varlen_backward,
}
