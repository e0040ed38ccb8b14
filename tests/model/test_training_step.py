"""The step: many processes or accumulated batches give what one process gives with the whole batch."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.dro import OBJECTIVES, make_objective
from model.encoders import Encoder
from model.group_gradients import GroupGradients
from model.losses import LOSSES, PAIRWISE, Loss
from model.reading import HeadLayer, Reading
from model.retriever import Retriever
from model.training_step import TrainingStep
from tests.processes import run_processes
from tests.tiny_models import random_episode, random_store, samples_of, tiny_bert, tiny_roberta
from utils.batching import Sequences
from utils.runtime import distributed
from utils.runtime.precision import Precision
from utils.samples import Triplets, make_step_batches

K = 5
LINES = {"pairwise": 14, "contrastive": 18}  # so that the last step over the mined file is an uneven one
TOGETHER = {"pairwise": 0, "contrastive": 2}  # queries in a block, at most
FLOAT32 = Precision("cpu", torch.float32)


def make_step(
    name: str, precision: Precision = FLOAT32, reading: Reading | None = None, loss: Loss = PAIRWISE
) -> TrainingStep:
    encoder = tiny_bert(layers=3)
    if reading:
        encoder = Encoder(encoder.model, reading)
    objective = make_objective(name, K, alpha=0.25, ema=0.1, rho=0.5, eps=0.01)
    watch = GroupGradients(encoder.model.encoder.layer[-2:], K) if objective.needs_gradient_products else None
    model = Retriever(encoder, watch, loss)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)  # Adam would blow the rounding of zeros up
    return TrainingStep(model, objective, optimizer, precision, 1.0, torch.device("cpu"), watch)


def train(
    folder: str,
    name: str,
    batch_size: int,
    accumulation: int,
    steps: int,
    reading: Reading | None = None,
    loss: str = "pairwise",
) -> dict[str, torch.Tensor]:
    """Losses, cluster weights and parameters after several steps, over the end of the mined file."""
    queries, passages = (
        random_store(Path(folder, f"q{distributed.rank()}"), 12, seed=1),
        random_store(Path(folder, f"p{distributed.rank()}"), 30, seed=2),
    )
    episode = random_episode(12, 30, n_groups=K, lines=LINES[loss], seed=3, together=TOGETHER[loss])
    samples = samples_of(LOSSES[loss], episode, queries, passages)
    step = make_step(name, reading=reading, loss=LOSSES[loss])
    position, losses, weights = 0, [], []
    for _ in range(steps):
        parts, position = samples.take(position, batch_size, accumulation)
        before = step.objective.weights.clone()
        batches = make_step_batches(samples, parts[distributed.rank()], Sequences(queries), Sequences(passages))
        clusters = [torch.from_numpy(samples.clusters(np.concatenate(of_process))) for of_process in parts]
        result = step(batches, 1e-2, clusters_of=clusters)
        assert torch.equal(result.weights, before), "those that it was taken with"
        assert result.at_eps.tolist() == [weight <= float(torch.tensor(0.01)) for weight in before.tolist()]
        losses.append(result.loss)
        weights.append(step.objective.weights.clone())
    return {
        "losses": torch.stack(losses),
        "weights": torch.stack(weights),
        "parameters": torch.cat([p.detach().flatten() for p in step.parameters]),
    }


READINGS = {
    "mean": Reading("mean"),
    "mean, head, length 1": Reading("mean", True, head=(HeadLayer("Dense", 16, 8, activation="Tanh"),), scale=5.0),
    "first token, head": Reading(head=(HeadLayer("Dense", 16, 8), HeadLayer("LayerNorm", 8, 8))),
}


@pytest.mark.parametrize("reading", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_steps_are_those_of_plain_autograd_with_one_backward_pass_a_cluster_in_float64(tmp_path, name, loss, reading):
    queries, passages = random_store(tmp_path / "q", 12, seed=1), random_store(tmp_path / "p", 30, seed=2)
    episode = random_episode(12, 30, n_groups=K, lines=LINES[loss], seed=3, together=TOGETHER[loss])
    samples = samples_of(LOSSES[loss], episode, queries, passages)
    step = make_step(name, reading=reading, loss=LOSSES[loss])
    step.model.double()
    step.objective.double()
    plain = Retriever(Encoder(tiny_bert(layers=3).model, reading), loss=LOSSES[loss]).double()
    plain.encoder.load_state_dict(step.model.encoder.state_dict())
    watched = list(plain.encoder.model.encoder.layer[-2:].parameters())
    objective = make_objective(name, K, alpha=0.25, ema=0.1, rho=0.5, eps=0.01).double()
    optimizer = torch.optim.SGD(plain.parameters(), lr=1e-2, momentum=0.9)
    position = 0
    for _ in range(4):
        (part,), position = samples.take(position, 9, 1)
        (batch,) = make_step_batches(samples, part, Sequences(queries), Sequences(passages))
        step([batch], 1e-2)

        losses, counts = plain(batch), torch.bincount(batch.clusters, minlength=K)
        means = torch.stack([losses[batch.clusters == g].mean() if counts[g] else losses.sum() * 0 for g in range(K)])
        rows = [torch.autograd.grad(mean, watched, retain_graph=True) for mean in means]
        rows = torch.stack([torch.cat([gradient.flatten() for gradient in row]) for row in rows])
        (objective.coefficients(batch.clusters, counts) * losses).sum().backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        objective.update(means.detach(), counts, rows @ rows.T)
        for state, expected in objective.state_dict().items():
            torch.testing.assert_close(step.objective.state_dict()[state], expected, rtol=1e-9, atol=1e-12)
    for parameter, expected in zip(step.parameters, plain.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-8, atol=1e-10)


def train_with_every_objective(
    folder: str, batch_size: int, steps: int, loss: str
) -> dict[str, dict[str, torch.Tensor]]:
    return {name: train(folder, name, batch_size, 1, steps, loss=loss) for name in OBJECTIVES}


@pytest.mark.parametrize(("loss", "processes"), [("pairwise", 2), ("pairwise", 3), ("contrastive", 3)])
def test_several_ranks_equal_one_process_with_the_whole_batch_also_in_uneven_last_batches(tmp_path, loss, processes):
    episode, batch = random_episode(12, 30, n_groups=K, lines=LINES[loss], seed=3, together=TOGETHER[loss]), 12
    # Of triplets the last step has fewer; of blocks, 6 or fewer a step, the last one has fewer than processes.
    count = episode.triplets if loss == "pairwise" else len(episode.block_starts) - 1
    batch_of = batch if loss == "pairwise" else batch // TOGETHER[loss]
    assert 0 < count % batch_of < (batch if loss == "pairwise" else processes)
    steps = -(-count // batch_of) + 1
    one = train_with_every_objective(str(tmp_path), batch, steps, loss)
    arguments = str(tmp_path), batch // processes, steps, loss
    for many in run_processes(train_with_every_objective, processes, *arguments):
        for name in OBJECTIVES:
            for key, value in one[name].items():
                torch.testing.assert_close(many[name][key], value, rtol=2e-4, atol=2e-5)
    for name in OBJECTIVES:
        changes = not torch.equal(one[name]["weights"][-1], one[name]["weights"][0])
        assert changes == (name not in ("erm", "balanced"))
    assert len({tuple(of_name["losses"].tolist()) for of_name in one.values()}) == len(OBJECTIVES)


def train_with_every_reading(folder: str, batch_size: int, steps: int) -> dict[str, dict[str, torch.Tensor]]:
    return {
        f"{name}, {loss}": train(folder, "idro", batch_size, 1, steps, reading, loss)
        for name, reading in READINGS.items()
        for loss in LOSSES
    }


def test_two_ranks_equal_one_process_with_every_reading_and_loss(tmp_path):
    one = train_with_every_reading(str(tmp_path), 12, 3)
    for two in run_processes(train_with_every_reading, 2, str(tmp_path), 6, 3):
        for name in one:
            for key, value in one[name].items():
                torch.testing.assert_close(two[name][key], value, rtol=2e-4, atol=2e-5)
    assert len({tuple(of_reading["losses"].tolist()) for of_reading in one.values()}) == len(READINGS) * len(LOSSES)


def test_a_rank_without_a_triplet_changes_nothing(tmp_path):
    triplets = random_episode(12, 30, n_groups=K, lines=14, seed=3).triplets
    batch = triplets - 1  # the second step has one triplet for two ranks
    batch -= batch % 2
    one = train(str(tmp_path), "idro", batch, 1, 2)
    two = run_processes(train, 2, str(tmp_path), "idro", batch // 2, 1, 2)
    for key in one:
        torch.testing.assert_close(two[0][key], one[key], rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_accumulated_batches_equal_one_batch(tmp_path, name, loss):
    one = train(str(tmp_path), name, 12, 1, 5, loss=loss)
    three = train(str(tmp_path), name, 4, 3, 5, loss=loss)
    for key in one:
        torch.testing.assert_close(three[key], one[key], rtol=2e-4, atol=2e-5)


def test_a_step_with_a_gradient_that_is_not_finite_changes_nothing(tmp_path):
    queries, passages = random_store(tmp_path / "q", 12, seed=1), random_store(tmp_path / "p", 30, seed=2)
    episode = random_episode(12, 30, n_groups=K, lines=14, seed=3)
    step = make_step("idro")
    batches = make_step_batches(Triplets(episode), [np.arange(12)], Sequences(queries), Sequences(passages))
    before = [p.detach().clone() for p in step.parameters]
    weights = step.objective.weights.clone()
    batches[0].weights[3] = float("nan")
    assert step(batches, 1e-3).skipped
    assert all(torch.equal(p, q) for p, q in zip(step.parameters, before, strict=True))
    assert torch.equal(step.objective.weights, weights)

    batches[0].weights[3] = 1
    assert not step(batches, 1e-3).skipped
    assert not torch.equal(step.objective.weights, weights)


def test_every_triplet_of_the_mined_order_is_taken_once_in_order():
    episode, taken, position = random_episode(12, 30, lines=8, seed=3), [], 0
    assert 20 < episode.triplets <= 30
    for _ in range(3):
        (parts,), position = Triplets(episode).take(position, 5, 2)
        taken += [int(t) for part in parts for t in part]
    assert taken == list(range(episode.triplets))
    assert position == 0


def test_float16_with_a_scale_that_overflows_skips_and_then_learns(tmp_path):
    queries, passages = random_store(tmp_path / "q", 12, seed=1), random_store(tmp_path / "p", 30, seed=2)
    episode = random_episode(12, 30, n_groups=K, lines=14, seed=3)
    step = make_step("idro", Precision("cpu", torch.float16))
    step.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30, growth_interval=3)
    before, skipped = [p.detach().clone() for p in step.parameters], []
    for number in range(40):
        batches = make_step_batches(
            Triplets(episode), [np.arange(8) + number % 20], Sequences(queries), Sequences(passages)
        )
        result = step(batches, 1e-3)
        skipped.append(result.skipped)
        if all(skipped):
            assert all(torch.equal(p, q) for p, q in zip(step.parameters, before, strict=True))
            assert torch.equal(step.objective.weights, torch.full((K,), 1 / K))
    assert skipped[0]
    assert not all(skipped[20:])
    assert step.objective.weights.isfinite().all()
    assert step.scaler.get_scale() < 2.0**30


def test_bfloat16_scores_are_formed_in_float32(tmp_path):
    queries, passages = (
        random_store(tmp_path / "q", 12, seed=1, pad_token_id=1),
        random_store(tmp_path / "p", 30, seed=2, pad_token_id=1),
    )
    episode = random_episode(12, 30, n_groups=K, lines=14, seed=3)
    (batch,) = make_step_batches(Triplets(episode), [np.arange(12)], Sequences(queries), Sequences(passages))
    model = Retriever(tiny_roberta())
    with torch.autocast("cpu", torch.bfloat16):
        vectors = model.encoder(batch.tokens)
        losses = model(batch)
    assert vectors.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(losses, model(batch), rtol=0.3, atol=8)  # RoBERTa's own bfloat16, not the scores'


def broadcasts_of_a_step(folder: str) -> int:
    queries = random_store(Path(folder, f"q{distributed.rank()}"), 12, seed=1)
    passages = random_store(Path(folder, f"p{distributed.rank()}"), 30, seed=2)
    episode = random_episode(12, 30, n_groups=K, lines=14, seed=3)
    step = make_step("idro")
    assert dict(step.model.module.encoder.named_buffers()), "there is something that could be sent"
    batches = make_step_batches(Triplets(episode), [np.arange(9)], Sequences(queries), Sequences(passages))
    for _ in range(2):  # after the first step, DistributedDataParallel agrees on its buckets
        step(batches, 1e-2)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(batches, 1e-2)
    names = [event.name for event in profile.events()]
    assert any("allreduce" in name or "all_reduce" in name for name in names), "gradients are"
    return sum("broadcast" in name for name in names)


def test_a_step_sends_no_constant_buffers(tmp_path):
    assert run_processes(broadcasts_of_a_step, 2, str(tmp_path)) == [0, 0]
