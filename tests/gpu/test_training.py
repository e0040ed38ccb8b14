"""Group products, training steps and resumed training, on a GPU and on the CPU, and by two GPUs."""

from copy import deepcopy
from dataclasses import replace
from itertools import cycle, product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from model import group_gradients, training_state
from model.dro import OBJECTIVES
from model.encoders import load_encoder
from model.families import FAMILIES
from model.group_gradients import GroupGradients
from model.losses import LOSSES
from model.training_step import TrainingStep
from tests.cuda.simulated.steps import (
    CPU,
    OF_RANKS,
    READINGS,
    Setting,
    assert_alike,
    batches_of,
    flat,
    make_step,
    trained,
)
from tests.gpu.ranks import run_ranks
from tests.gpu.test_encoding import distance
from tests.tiny import tiny_bert_tokenizer
from utils.stores.checkpoint import TrainerState, read_trainer_state

pytestmark = pytest.mark.gpu

TYPES = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.03}
SETTINGS = [
    *(Setting(objective=objective, loss=loss) for objective, loss in zip(OBJECTIVES, cycle(LOSSES), strict=False)),
    *(Setting(family, reading) for family, reading in zip(FAMILIES, [*READINGS, *READINGS], strict=False)),
    *(Setting(reading="mean", loss=loss, dtype=dtype) for loss, dtype in product(LOSSES, (*TYPES,)[1:])),
    Setting(accumulation=3, batch_size=4, dtype=torch.float16),
    Setting(checkpointing=True, dtype=torch.bfloat16),
    Setting(sketch=64),
    Setting(optimizer="adamW"),
]


class Tokens(nn.Module):
    """A module of each kind that can be watched."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.wide = nn.Embedding(40, 64), nn.Linear(64, 128)
        self.norm, self.narrow = nn.LayerNorm(128), nn.Linear(128, 64, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.narrow(torch.tanh(self.norm(self.wide(self.embedding(tokens)))))


@pytest.mark.parametrize("blocks", ["one block", "many blocks"])
@pytest.mark.parametrize("way", ["padded, float32", "padded, bfloat16", "grouped, bfloat16"])
def test_products_are_those_of_a_backward_pass_a_group(way, blocks, device, monkeypatch):
    grouped, dtype = way.startswith("grouped"), torch.float32 if "float32" in way else torch.bfloat16
    if grouped and torch.cuda.get_device_capability(device)[0] not in (9, 10):
        pytest.skip("torch multiplies groups in one kernel on Hopper and Blackwell only")
    calls, grouped_mm = [], group_gradients.functional.grouped_mm
    monkeypatch.setattr(
        group_gradients.functional, "grouped_mm", lambda *a, **o: calls.append(1) or grouped_mm(*a, **o)
    )
    if not grouped:
        monkeypatch.setattr(group_gradients, "_can_be_grouped", lambda *_: False)
    if blocks == "many blocks":
        monkeypatch.setattr(group_gradients, "GPU_BLOCK_BYTES", 40_000)
    generator = torch.Generator().manual_seed(1)
    groups = torch.arange(6).repeat_interleave(torch.tensor([1, 3, 60, 90, 7, 0]))
    groups = groups[torch.randperm(len(groups), generator=generator)]
    tokens = torch.randint(0, 40, groups.shape, generator=generator)
    weights = torch.randn(len(groups), 64, generator=generator)

    model = Tokens()
    exact = deepcopy(model).double()
    losses = (exact(tokens) * weights).sum(1)
    gradients = [
        torch.autograd.grad(losses[groups == group].sum(), [*exact.parameters()], retain_graph=True)
        for group in range(6)
    ]
    rows = torch.stack([torch.cat([one.flatten() for one in of_group]) for of_group in gradients])

    model.to(device)
    watch = GroupGradients([model], 6)
    with watch.rows(groups), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        vectors = model(tokens.to(device))
    (vectors.float() * weights.to(device)).sum().backward()
    products = watch.collect([groups.unique()])
    tolerance = 1e-5 if dtype == torch.float32 else 0.02
    assert distance(products, rows @ rows.T) < tolerance
    own = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    assert distance(own, rows.sum(0)) < tolerance
    assert bool(calls) == grouped


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_steps_are_those_of_the_cpu(setting, device):
    expected = trained(replace(setting, dtype=torch.float32), CPU)
    got = trained(setting, device)
    assert not got["skipped"].any()
    assert_alike(got, expected, TYPES[setting.dtype])


class Run:
    """Steps with dropout in bfloat16, and the checkpoints that they are saved in."""

    setting = Setting(dropout=0.2, dtype=torch.bfloat16, optimizer="adamW", reading="mean", steps=4)

    def __init__(self, device: torch.device, folder: Path) -> None:
        self.step, self.folder = make_step(self.setting, device), folder
        self.batches = batches_of(self.setting, device)

    @property
    def encoder(self) -> nn.Module:
        return self.step.model.encoder

    def take(self, first: int, last: int) -> None:
        for taken in self.batches[first:last]:
            self.step(taken.batches, 1e-2, clusters_of=taken.clusters)

    def save(self, steps: int) -> Path:
        tokenizer = AutoTokenizer.from_pretrained(tiny_bert_tokenizer(self.folder / "tokenizer"))
        state = TrainerState(
            global_step=steps, episode_step=steps, optimizer="adamW", objective="idro", loss="pairwise"
        )
        return training_state.save(self.folder, self.encoder, tokenizer, 24, 24, self.step, state)

    def resume(self, checkpoint: Path) -> None:
        weights, _ = load_encoder(str(checkpoint), self.encoder.reading)
        self.encoder.load_state_dict(weights.state_dict())
        chosen = {"optimizer": "adamW", "objective": "idro", "loss": "pairwise"}
        training_state.resume(checkpoint, read_trainer_state(checkpoint), self.step, round=0, **chosen)


@pytest.fixture
def deterministic():
    """Kernels that add in one order, where torch has them."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


def state_of(step: TrainingStep) -> Tensor:
    return torch.cat([flat(step.parameters), step.objective.weights.cpu()])


def test_resumed_training_is_that_of_one_that_was_never_stopped_to_the_bit(device, deterministic, tmp_path):
    torch.manual_seed(1)
    whole = Run(device, tmp_path)
    whole.take(0, 2)
    checkpoint = whole.save(2)
    halfway = state_of(whole.step)
    whole.take(2, 4)
    assert not torch.equal(state_of(whole.step), halfway)

    torch.manual_seed(2)
    resumed = Run(device, tmp_path)
    resumed.take(0, 1)  # what it has done before is forgotten
    resumed.resume(checkpoint)
    assert torch.equal(state_of(resumed.step), halfway)
    resumed.take(2, 4)
    assert torch.equal(state_of(resumed.step), state_of(whole.step))


def all_trained(device: torch.device) -> list[dict[str, Tensor]]:
    return [trained(replace(one, batch_size=one.batch_size // 2), device) for one in OF_RANKS]


def test_two_gpus_by_nccl_give_what_one_process_gives_with_the_whole_batch(device):
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    by_rank = run_ranks(all_trained, 2)
    for number, setting in enumerate(OF_RANKS):
        expected = trained(replace(setting, dtype=torch.float32), CPU)
        for by_setting in by_rank:
            assert_alike(by_setting[number], expected, TYPES[setting.dtype])
