"""Lines of a tensor to other places and back, without anything that adds up.

Indexing's backward pass adds up what comes from the same line, since lines may be taken twice: on a GPU that is slow,
and comes in another order every time. Here no place may stand twice, so that taking and putting are each other's
backward pass. That is not checked.
"""

import torch
from torch import Tensor


def take(values: Tensor, places: Tensor) -> Tensor:
    """The lines of `values` (m, …) at `places`, int64 (n,), all different: (n, …)."""
    return _Take.apply(values, places)


def put(values: Tensor, places: Tensor, lines: int) -> Tensor:
    """(lines, …) with the lines of `values` (n, …) at `places`, int64 (n,), all different, and zeros elsewhere."""
    return _Put.apply(values, places, lines)


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.lines = len(values)
        return values.index_select(0, places)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None]:
        return put(gradient, *ctx.saved_tensors, ctx.lines), None


class _Put(torch.autograd.Function):
    @staticmethod
    def forward(ctx, values: Tensor, places: Tensor, lines: int) -> Tensor:
        ctx.save_for_backward(places)
        return values.new_zeros(lines, *values.shape[1:]).index_copy_(0, places, values)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        return take(gradient, *ctx.saved_tensors), None, None
