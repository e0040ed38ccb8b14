"""Taking lines and putting them elsewhere are indexing, forward and backward, and add nothing up."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from model.placing import put, take

PLACES = torch.tensor([4, 0, 5, 2])


class Called(TorchDispatchMode):
    """Keeps the names of the operations inside; views, for which a GPU launches nothing, are left out."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        aliases = [returned.alias_info for returned in function._schema.returns]
        if not any(alias and not alias.is_write for alias in aliases):
            self.names.append(function.name().removeprefix("aten::"))
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_values_and_gradients_are_those_of_indexing(dtype):
    values, lines = torch.randn(7, 3, 2, dtype=dtype, requires_grad=True), torch.randn(4, 3, 2, dtype=dtype)
    lines.requires_grad_()
    assert torch.equal(take(values, PLACES), values[PLACES])
    expected = torch.zeros(7, 3, 2, dtype=dtype).index_put((PLACES,), lines)
    assert torch.equal(put(lines, PLACES, 7), expected)
    for ours, theirs, source in (
        (take(values, PLACES), values[PLACES], values),
        (put(lines, PLACES, 7), expected, lines),
    ):
        weights = torch.randn_like(ours)
        got, wanted = (torch.autograd.grad(out, source, weights, retain_graph=True)[0] for out in (ours, theirs))
        assert torch.equal(got, wanted)


def test_gradients_of_gradients_are_right():
    values, lines = (torch.randn(n, 2, dtype=torch.float64, requires_grad=True) for n in (7, 4))
    torch.autograd.gradgradcheck(lambda values: take(values, PLACES).sin(), values)
    torch.autograd.gradgradcheck(lambda lines: put(lines, PLACES, 7).sin(), lines)


def test_nothing_is_added_up():
    values = torch.randn(7, 2, requires_grad=True)
    with Called() as called:
        put(take(values, PLACES), PLACES, 9).sum().backward()
    assert {"index_select", "index_copy_"} < set(called.names)
    assert not [name for name in called.names if "add" in name or "put" in name], called.names
