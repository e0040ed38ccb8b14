"""Dropout: the share that is dropped, and that torch's random state determines which."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from model.dropout import Dropout, dropout, replace_dropout
from tests.tiny_models import tiny_bert

COUNT = 1_000_003  # not a multiple of the numbers in a word


@pytest.mark.parametrize("p", [0.1, 0.5, 0.93])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_share_p_is_dropped_and_the_mean_stays(p, dtype):
    values = dropout(torch.ones(COUNT, dtype=dtype), p).double()
    deviation = (p * (1 - p) / COUNT) ** 0.5
    assert abs(float((values == 0).double().mean()) - p) < 5 * deviation
    rounding = torch.finfo(dtype).eps
    assert abs(float(values.mean()) - 1) < 5 * deviation / (1 - p) + rounding
    assert values.unique().numel() == 2


def test_neighbours_and_calls_are_independent():
    first, second = (dropout(torch.ones(COUNT), 0.5) > 0 for _ in range(2))
    for one, other in ((first, second), (first[1:], first[:-1]), (first[4:], first[:-4])):
        assert abs(float((one == other).double().mean()) - 0.5) < 5 * 0.5 / COUNT**0.5


def test_the_random_state_determines_what_is_dropped_and_moves_on():
    values = torch.randn(50, 7)
    torch.manual_seed(3)
    first, second = dropout(values, 0.3), dropout(values, 0.3)
    torch.manual_seed(3)
    assert torch.equal(dropout(values, 0.3), first)
    assert not torch.equal(first, second)


def test_gradients_flow_through_what_was_kept():
    values = torch.randn(100, requires_grad=True)
    dropped = dropout(values, 0.4)
    dropped.sum().backward()
    assert torch.allclose(values.grad, dropped.detach() / values.detach())


def test_a_recomputed_layer_drops_the_same():
    layer, values = Dropout(0.5), torch.randn(200, requires_grad=True)
    dropped = checkpoint(layer, values, use_reentrant=False)
    (dropped**2).sum().backward()
    assert torch.allclose(values.grad, 2 * dropped.detach() * (dropped.detach() != 0) * 2)


def test_nothing_is_dropped_in_evaluation_or_at_p_0_and_everything_at_1():
    values = torch.randn(30)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(dropout(values, 0.0), values)
    assert (dropout(values, 1.0) == 0).all()


def test_every_dropout_layer_is_replaced_and_can_be_put_back():
    encoder = tiny_bert()
    layers = [module for module in encoder.modules() if isinstance(module, nn.Dropout)]
    assert layers
    assert all(type(layer) is Dropout for layer in layers)
    replace_dropout(encoder, nn.Dropout)
    back = [module for module in encoder.modules() if isinstance(module, nn.Dropout)]
    assert [(type(layer), layer.p) for layer in back] == [(nn.Dropout, layer.p) for layer in layers]
