"""The simulated device itself: it gives the values of a CPU, and sees the mistakes that a GPU would not take."""

import copy
import io
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from model import group_gradients
from model.training_step import TrainingStep
from tests.cuda.device import SimulatedDevice, simulated_cuda
from tests.cuda.simulated.steps import Setting, trained
from utils.batching import AttentionBlocks, PackedTokens
from utils.samples import Batch

CUDA = torch.device("cuda", 0)
MIXED = "Expected all tensors to be on the same device"


@pytest.fixture
def device():
    with simulated_cuda(gpus=2) as device:
        yield device


def test_values_and_gradients_are_those_of_the_cpu(device):
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(5, 7), nn.LayerNorm(7), nn.GELU(), nn.Linear(7, 3))
    inputs, parameters = torch.randn(4, 5), list(layers.parameters())
    expected = layers(inputs).square().sum()
    expected.backward()
    gradients = [parameter.grad for parameter in parameters]
    layers.zero_grad()
    layers.to("cuda")
    assert [id(p) for p in layers.parameters()] == [id(p) for p in parameters], "as .to() on a GPU keeps them"
    got = layers(inputs.to("cuda")).square().sum()
    got.backward()
    assert got.device == CUDA
    assert float(got.detach()) == float(expected.detach())
    for parameter, gradient in zip(parameters, gradients, strict=True):
        assert parameter.grad.device == CUDA
        assert torch.equal(parameter.grad.cpu(), gradient)


def test_what_is_made_on_the_current_device_is_there_also_without_gradients_and_in_other_threads(device):
    assert torch.zeros(3, device="cuda").device == torch.randn(3, device=CUDA).device == CUDA
    with torch.inference_mode():
        vectors = torch.randn(4, 6).to("cuda")
        assert (vectors @ vectors.T).reshape(16)[3].device == CUDA
        assert functional.linear(vectors, torch.ones(2, 6, device="cuda")).cpu().shape == (4, 2)
    with torch.cuda.device(1):
        assert torch.arange(3, device="cuda").device == torch.device("cuda", 1)
    assert torch.arange(3, device="cuda").device == CUDA

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lambda: torch.arange(3, device="cuda").device).result() == CUDA


def test_autocast_has_the_types_of_a_gpu(device):
    layer = nn.Linear(4, 4).to("cuda")
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cuda", dtype):
            assert layer(torch.ones(2, 4, device="cuda")).dtype == dtype
        with torch.autocast("cpu", dtype):
            assert layer(torch.ones(2, 4, device="cuda")).dtype == torch.float32


MIXTURES = {
    "a sum": lambda here, there: here + there,
    "a product": lambda here, there: here @ there.T,
    "in place on the device": lambda here, there: here.add_(there),
    "in place on the CPU": lambda here, there: there.add_(here),
    "in place on a number of the CPU": lambda here, there: there.sum().add_(here.sum()),
    "into a tensor of the CPU": lambda here, there: torch.mm(here, here.T, out=torch.empty(3, 3)),
    "into a tensor of the device": lambda here, there: torch.mm(there, there.T, out=here.new_empty(3, 3)),
    "joined": lambda here, there: torch.cat([here, there]),
    "chosen": lambda here, there: torch.where(here > 0, here, there),
    "an index on the device": lambda here, there: there[here[0].long().clamp(0, 0)],
    "values by index": lambda here, there: here.index_put_((torch.zeros(3, dtype=torch.int64),), there),
    "gathered": lambda here, there: here.gather(1, there.long()),
    "looked up": lambda here, there: functional.embedding(here.long().clamp(0, 0), there),
    "a loss": lambda here, there: functional.mse_loss(here, there),
    "of another GPU": lambda here, there: here + there.to("cuda:1"),
    "several at once": lambda here, there: torch._foreach_add([here], [there]),
}


@pytest.mark.parametrize("mixture", MIXTURES.values(), ids=MIXTURES)
def test_tensors_of_two_devices_do_not_meet(device, mixture):
    with pytest.raises(RuntimeError, match=MIXED):
        mixture(torch.ones(3, 3, device="cuda"), torch.ones(3, 3))


ALLOWED = {
    "a number of the CPU": lambda here, there: here * there.sum(),
    "a number chosen": lambda here, there: torch.where(here > 0, here, there.sum()),
    "an index of the CPU": lambda here, there: here[torch.tensor([2, 0])],
    "set by an index of the CPU": lambda here, there: here.index_put_((torch.tensor([2, 0]),), here[:2] + 1),
    "copied to the device": lambda here, there: here.copy_(there),
    "copied to the CPU": lambda here, there: there.copy_(here),
    "copied to another GPU": lambda here, there: here.to("cuda:1").to("cuda:0"),
}


@pytest.mark.parametrize("mixture", ALLOWED.values(), ids=ALLOWED)
def test_what_cuda_takes_from_the_cpu_is_taken(device, mixture):
    here = torch.arange(9.0).view(3, 3)
    got = mixture(here.to("cuda"), torch.ones(3, 3)).cpu()
    assert torch.equal(got, mixture(here.clone(), torch.ones(3, 3)).cpu())


def whole(*shape: int) -> Tensor:
    return torch.ones(*shape, dtype=torch.int64, device="cuda")


WAITS = {
    "item": lambda: whole(1).item(),
    "a truth": lambda: bool(whole(1)),
    "a number": lambda: float(whole(1)),
    "tolist": lambda: whole(3).tolist(),
    "a copy to the host": lambda: whole(3).cpu(),
    "a copy into a tensor of the host": lambda: torch.ones(3).copy_(whole(3)),
    "a copy to the device": lambda: torch.ones(3).to("cuda"),
    "a tensor of a list": lambda: torch.tensor([1, 2], device="cuda"),
    "nonzero": lambda: whole(3).nonzero(),
    "a mask": lambda: whole(3)[whole(3) > 0],
    "set by a mask": lambda: whole(3).index_put_((whole(3) > 0,), whole(3)),
    "masked_select": lambda: whole(3).masked_select(whole(3) > 0),
    "unique": lambda: whole(3).unique(),
    "unique_consecutive": lambda: whole(3).unique_consecutive(),
    "repeat_interleave": lambda: whole(3).repeat_interleave(whole(3)),
    "equal": lambda: whole(3).equal(whole(3)),
    "bincount": lambda: whole(3).bincount(),
    "an index of the CPU": lambda: whole(3)[torch.tensor([0, 2])],
    "synchronize": lambda: torch.cuda.synchronize(),
}


@pytest.mark.parametrize("wait", WAITS.values(), ids=WAITS)
def test_waits_of_the_host_are_counted_with_their_place(device, wait):
    wait()
    (seen,) = device.synchronisations
    assert " at tests/cuda/simulated/test_device.py:" in seen


FREE = {
    "a copy from pinned memory": lambda: torch.ones(3).pin_memory().to("cuda", non_blocking=True),
    "a copy on its way": lambda: whole(3).to("cpu", non_blocking=True),
    "set to a number by a mask": lambda: whole(3).__setitem__(whole(3) > 0, 2),
    "of known size": lambda: whole(3).repeat_interleave(whole(3), output_size=3),
    "an index": lambda: whole(3)[whole(2)],
    "a number": lambda: whole(3) * torch.tensor(2),
    "sorted": lambda: whole(3).sort(stable=True),
}


@pytest.mark.parametrize("call", FREE.values(), ids=FREE)
def test_what_runs_on_its_own_is_not_counted_as_a_wait(device, call):
    call()
    assert not device.synchronisations


def test_launches_are_the_operations_that_are_no_views(device):
    rows = torch.empty(4, 6, device="cuda")
    rows.T[1:].unflatten(1, (2, 2)).detach()
    assert not device.launches
    (rows.add_(1) @ rows.T).sum()
    assert device.launches == {"add_": 1, "mm": 1, "sum": 1}
    device.clear()
    assert not device.launches


def test_a_copy_to_the_host_is_garbage_until_it_is_waited_for(device):
    values = torch.arange(3.0).to("cuda")
    first, event = values.to("cpu", non_blocking=True), torch.cuda.Event()
    event.record()
    second = values.to("cpu", non_blocking=True)
    assert first.isnan().all()
    event.synchronize()
    assert first.tolist() == [0, 1, 2]
    assert second.isnan().all()
    torch.cuda.synchronize()
    assert second.tolist() == [0, 1, 2]


def test_random_numbers_are_the_devices_own(device):
    torch.manual_seed(3)
    of_cpu, of_device = torch.get_rng_state(), torch.cuda.get_rng_state()
    drawn = torch.rand(4, device="cuda")
    assert torch.equal(torch.get_rng_state(), of_cpu)
    torch.cuda.set_rng_state(of_device)
    assert torch.equal(torch.rand(4, device="cuda"), drawn)
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(4, device="cuda", generator=torch.Generator())


def test_recomputed_layers_draw_the_same_dropout(device):
    inputs = torch.ones(50, device="cuda", requires_grad=True)
    torch.manual_seed(0)
    kept = checkpoint(functional.dropout, inputs, 0.5, use_reentrant=False)
    kept.sum().backward()
    assert 0 < float(kept.detach().sum()) < 100
    assert torch.equal(inputs.grad.cpu(), kept.detach().cpu())


def test_what_is_saved_says_that_it_was_on_a_gpu():
    with simulated_cuda():
        tensor = torch.arange(6.0).view(2, 3).to("cuda")[:, 1:]
        file = io.BytesIO()
        torch.save({"tensor": tensor}, file)
        assert torch.equal(copy.deepcopy(tensor).cpu(), tensor.cpu())
        with pytest.raises(TypeError, match="convert cuda:0 device type tensor to numpy"):
            tensor.numpy()
    file.seek(0)
    with pytest.raises(RuntimeError, match="deserialize object on a CUDA device"):
        torch.load(file, weights_only=True)
    file.seek(0)
    loaded = torch.load(file, map_location="cpu", weights_only=True)["tensor"]
    assert loaded.tolist() == [[1, 2], [4, 5]]


def test_outside_nothing_is_left_of_it():
    pin_memory, is_available = Tensor.pin_memory, torch.cuda.is_available
    with simulated_cuda() as device:
        assert torch.cuda.is_available()
        left = torch.ones(2, device="cuda")
    assert Tensor.pin_memory is pin_memory
    assert torch.cuda.is_available is is_available
    assert not torch.cuda.is_available()
    with pytest.raises(RuntimeError, match="outside of simulated_cuda"):
        left + left
    assert device.launches


# Mistakes that the project could make: each must be seen.


def left_behind(monkeypatch: pytest.MonkeyPatch, of: type, name: str) -> None:
    """What `of.to` gives has `name` on the CPU still."""
    move = of.to

    def forgetful(self, device):
        moved = move(self, device)
        setattr(moved, name, getattr(self, name))
        return moved

    monkeypatch.setattr(of, "to", forgetful)


def plant_objective(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = TrainingStep.__init__

    def forgetful(self, *args):
        begin(self, *args)
        self.objective.to("cpu")

    monkeypatch.setattr(TrainingStep, "__init__", forgetful)


def plant_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    of = AttentionBlocks.of
    monkeypatch.setattr(AttentionBlocks, "of", lambda lengths, device: of(lengths, torch.device("cpu")))


MISTAKES = {
    **{
        f"{name} left on the CPU": lambda patch, name=name: left_behind(patch, Batch, name)
        for name in ("weights", "clusters", "candidates", "query", "allowed")
    },
    **{
        f"{name} left on the CPU": lambda patch, name=name: left_behind(patch, PackedTokens, name)
        for name in ("input_ids", "positions", "first")
    },
    "the objective left on the CPU": plant_objective,
    "the blocks of attention left on the CPU": plant_blocks,
    "the places of groups left on the CPU": lambda patch: patch.setattr(
        group_gradients, "_to", lambda device, numbers: numbers
    ),
}
WAITED_FOR = {"query left on the CPU"}  # CUDA takes indices from the CPU, and waits for them


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_planted_mistake_is_seen(device, mistake, monkeypatch):
    setting = Setting(loss="contrastive", steps=1)
    waits = waits_of(device, setting)
    MISTAKES[mistake](monkeypatch)
    if mistake in WAITED_FOR:
        assert waits_of(device, setting) > waits
    else:
        with pytest.raises(RuntimeError, match=MIXED):
            waits_of(device, setting)


def waits_of(device: SimulatedDevice, setting: Setting) -> int:
    device.clear()
    trained(setting, CUDA)
    return len(device.synchronisations)
