"""A few training steps with any setting, on any device: what the tests of steps compare."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from model.dro import make_objective
from model.encoders import Encoder
from model.group_gradients import GroupGradients
from model.losses import LOSSES
from model.optimizers import make_optimizer
from model.reading import HeadLayer, Reading
from model.retriever import Retriever
from model.training_step import StepResult, TrainingStep
from model.watched_layers import watched_layers
from tests.tiny_models import random_episode, random_store, samples_of, tiny_config, tiny_model
from utils.batching import Sequences
from utils.runtime import distributed
from utils.runtime.precision import Precision
from utils.samples import Step, make_step_batches

CPU = torch.device("cpu")
K = 5
READINGS = {
    "first token": Reading(),
    "first token, head": Reading(head=(HeadLayer("Dense", 16, 8), HeadLayer("LayerNorm", 8, 8))),
    "mean": Reading("mean"),
    "mean, head, length 1": Reading("mean", True, head=(HeadLayer("Dense", 16, 8, False, "Tanh"),), scale=5.0),
}


@dataclass(frozen=True)
class Setting:
    family: str = "bert"
    reading: str = "first token"
    objective: str = "idro"
    loss: str = "pairwise"
    dtype: torch.dtype = torch.float32
    batch_size: int = 12
    accumulation: int = 1
    checkpointing: bool = False
    dropout: float = 0.0
    sketch: int | None = None
    chunk_length: int | None = None
    optimizer: str = "sgd"  # with Adam's kin a gradient that is zero but for rounding is a step like any other
    init_scale: float = 2.0**8  # of float16's scaler: nothing overflows
    layers: int = 3
    steps: int = 2

    def __str__(self) -> str:
        own = (f"{value}" for name, value in vars(self).items() if value != getattr(Setting(), name))
        return " ".join(own).replace("torch.", "") or "as by default"


OF_RANKS = [  # that several processes take, too
    Setting(objective="erm"),
    Setting(),
    # In the second step, one of two processes has nothing.
    Setting(reading="mean, head, length 1", loss="contrastive", objective="idro+keep+normalized", accumulation=2),
    Setting("modernbert", dtype=torch.bfloat16),
    Setting(sketch=64),
    Setting(accumulation=2),
]


def make_step(setting: Setting, device: torch.device) -> TrainingStep:
    model = tiny_model(tiny_config(setting.family, layers=setting.layers, dropout=setting.dropout))
    for parameter in model.parameters():
        parameter.data.mul_(0.5)  # scores so small that rounding to 16 bits changes little
    encoder = Encoder(model, READINGS[setting.reading])
    for parameter in encoder.head.parameters():
        torch.nn.init.normal_(parameter)
    encoder.to(device).train()
    encoder.model.gradient_checkpointing = setting.checkpointing
    objective = make_objective(setting.objective, K, alpha=0.25, ema=0.1, rho=0.5, eps=0.01)
    watch = None
    if objective.needs_gradient_products:
        watch = GroupGradients(watched_layers(encoder, "base", 2), K, sketch_dim=setting.sketch, seed=1)
    retriever = Retriever(encoder, watch, LOSSES[setting.loss])
    if setting.optimizer == "sgd":
        optimizer = torch.optim.SGD(retriever.parameters(), momentum=0.9)
    else:
        optimizer = make_optimizer(setting.optimizer, retriever, 1e-2, 0.01, 1e-3)
    precision = Precision(device.type, setting.dtype)
    step = TrainingStep(retriever, objective, optimizer, precision, 1.0, device, watch)
    step.scaler = torch.amp.GradScaler(device.type, init_scale=setting.init_scale, enabled=precision.needs_scaler)
    return step


def batches_of(setting: Setting, device: torch.device) -> list[Step]:
    """This process's batches of each step, on the device, and the clusters in all processes'."""
    with tempfile.TemporaryDirectory() as folder:
        queries, passages = random_store(Path(folder, "q"), 12, seed=1), random_store(Path(folder, "p"), 30, seed=2)
        together = 0 if setting.loss == "pairwise" else 2
        episode = random_episode(12, 30, n_groups=K, lines=18, seed=3, together=together)
        samples = samples_of(LOSSES[setting.loss], episode, queries, passages)
        sequences, position, made = (Sequences(queries), Sequences(passages, setting.chunk_length)), 0, []
        for _ in range(setting.steps):
            parts, position = samples.take(position, setting.batch_size, setting.accumulation)
            batches = make_step_batches(samples, parts[distributed.rank()], *sequences)
            clusters = [torch.from_numpy(samples.clusters(np.concatenate(of_process))) for of_process in parts]
            made.append(Step([batch.to(device) for batch in batches], clusters))
    return made


def trained(setting: Setting, device: torch.device, without: list[bool] | None = None) -> dict[str, Tensor]:
    """What the steps saw, a row a step, and the parameters before and after, on the CPU.

    Steps that are true in `without` are left out.
    """
    torch.manual_seed(7 + distributed.rank())
    step = make_step(setting, device)
    before = flat(step.parameters)
    seen: list[StepResult] = []
    for taken, left_out in zip(batches_of(setting, device), without or [False] * setting.steps, strict=True):
        if not left_out:
            seen.append(step(taken.batches, 1e-2, clusters_of=taken.clusters))
    return {
        "losses": torch.stack([one.loss for one in seen]).cpu(),
        "cluster_losses": torch.stack([one.cluster_losses for one in seen]).cpu(),
        "norms": torch.stack([one.gradient_norm for one in seen]).cpu(),
        "weights": torch.stack([*(one.weights for one in seen[1:]), step.objective.weights]).cpu(),
        "skipped": torch.tensor([one.skipped for one in seen]),
        "before": before,
        "after": flat(step.parameters),
    }


def flat(parameters: list[Tensor]) -> Tensor:
    return torch.cat([parameter.detach().cpu().flatten() for parameter in parameters])


def assert_alike(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Of what the steps saw, and of how far they moved the parameters, the relative difference as a whole."""
    assert torch.equal(got["before"], expected["before"])
    moved = [one["after"] - one["before"] for one in (got, expected)]
    pairs = {name: (got[name], expected[name]) for name in ("losses", "cluster_losses", "norms", "weights")}
    assert moved[1].norm() > 1e-3, "the steps must move something"
    for name, (one, other) in {**pairs, "parameters": moved}.items():
        difference = float((one.double() - other.double()).norm() / other.double().norm())
        assert difference < tolerance, f"{name} differ by {difference:.2g}: {one}, {other}"
