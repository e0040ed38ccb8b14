"""What stands in for torch's kernel for attention over sequences of any lengths, which no CPU has."""

import torch
from torch import Tensor

from model import attention


def plain_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    window_size: tuple[int, int] = (-1, -1),
) -> Tensor:
    """The same by its definition, sequence by sequence; as the kernel, it aligns a window at the sequences' ends."""
    assert cu_seq_q.dtype == cu_seq_k.dtype == torch.int32
    assert (max_q, max_k) == tuple(int(bounds.diff().max()) for bounds in (cu_seq_q, cu_seq_k))
    outputs = []
    sizes = cu_seq_q.diff().tolist(), *[cu_seq_k.diff().tolist()] * 2
    for q, k, v in zip(*map(Tensor.split, (query, key, value), sizes), strict=True):
        scores = torch.einsum("ihd,jhd->hij", q, k) / q.shape[-1] ** 0.5
        left, right = (size if size >= 0 else len(k) for size in window_size)
        places = torch.arange(len(k), device=k.device)
        distance = places - places[len(k) - len(q) :, None]  # i, j
        scores = scores.masked_fill((distance < -left) | (distance > right), -torch.inf)
        outputs.append(torch.einsum("hij,jhd->ihd", scores.softmax(-1), v))
    return torch.cat(outputs)


def stand_in(monkeypatch, *dtypes: torch.dtype) -> list[int]:
    """Has attention use it on every device, of numbers of these types (none: the kernel's own).

    Returns a list to which each call adds its number of queries.
    """
    calls = []

    def called(query: Tensor, *rest, **options) -> Tensor:
        calls.append(len(query))
        return plain_varlen(query, *rest, **options)

    monkeypatch.setattr(attention, "varlen_attn", called)
    monkeypatch.setattr(attention, "has_varlen", lambda device: True)
    if dtypes:
        monkeypatch.setattr(attention, "HALVES", dtypes)
    return calls
