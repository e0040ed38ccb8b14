"""Losses and what steps hold as means over an interval, and the last checkpoint's metrics beside its training's."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.runtime.errors import InputError
from utils.stores.training_log import TrainingLog, UnloggedSteps, log_evaluation


def seen(
    loss: float, cluster_losses: list[float], counts: list[int], weights: Sequence[float] = (0.5, 0.25, 0.01)
) -> SimpleNamespace:
    """What a step saw whose clusters weigh 0.01 at least."""
    return SimpleNamespace(
        loss=torch.tensor(loss),
        gradient_norm=torch.tensor(1.0),
        cluster_losses=torch.tensor(cluster_losses),
        counts=torch.tensor(counts),
        weights=torch.tensor(weights),
        at_eps=torch.tensor(weights) <= 0.01,
    )


def three_steps() -> UnloggedSteps:
    steps = UnloggedSteps()
    steps.add(seen(1.0, [2.0, 0.0, 0.5], [1, 0, 2]))
    steps.add(seen(float("nan"), [float("nan"), 7.0, 0.0], [3, 1, 0]))
    steps.add(seen(3.0, [4.0, 0.0, 0.0], [3, 0, 0]))
    return steps


def test_means_weigh_each_sample_alike_and_leave_out_what_is_not_finite():
    loss, of_clusters, counts = three_steps().means()
    assert float(loss) == 2.0
    assert counts.tolist() == [4, 0, 2]
    assert of_clusters[[0, 2]].tolist() == [3.5, 0.5]


def test_what_steps_hold_is_a_mean_over_all_of_them_also_those_that_were_skipped():
    effective = 1.0  # of the last step
    for weights in ((0.5, 0.01), (0.5, 0.25)):
        shares = [weight / sum(weights) for weight in weights]
        effective += math.exp(-sum(share * math.log(share) for share in shares))
    assert asdict(three_steps().clusters()) == pytest.approx(
        {"steps": 3, "present": 5 / 3, "effective": effective / 3, "at_eps": 2 / 3 / 3, "weight": 1.76 / 3}, rel=1e-6
    )


def test_clusters_that_weigh_alike_are_effectively_as_many_as_are_present_and_without_weight_none_is_at_nan():
    for weights, effective in (((0.1, 0.1, 0.1), 2), ((0.0, 0.0, 0.0), 1)):
        steps = UnloggedSteps()
        steps.add(seen(1.0, [2.0, 0.0, 0.5], [1, 0, 2], weights))
        assert steps.clusters().effective == pytest.approx(effective)


@pytest.mark.parametrize("sums", [[1.0] * 7, [1.0] * 9, "sums", None, ["1"] * 8, [float("inf")] * 8])
@pytest.mark.parametrize("name", ["sums", "step_clusters"])
def test_a_state_of_other_clusters_or_of_no_numbers_is_refused(name, sums):
    steps = three_steps()
    again = UnloggedSteps()
    again.load(steps.state(), 3)
    assert again.state() == steps.state()
    with pytest.raises(InputError, match=r"not [58] numbers as they were saved"):
        UnloggedSteps().load(steps.state() | {name: sums}, 3)


def test_a_state_of_a_version_that_counted_no_clusters_goes_on():
    steps, state = UnloggedSteps(), three_steps().state()
    steps.load({"sums": state["sums"]}, 3)
    assert steps.state() == {"sums": state["sums"]}
    steps.add(seen(5.0, [5.0, 0.0, 0.0], [1, 0, 0]))
    assert float(steps.means()[0]) == 3.0
    assert (steps.clusters().steps, steps.clusters().present) == (1, 1.0)


def points(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, round(e.value, 4)) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("names", [None, ["a/b", "07", "law & order"]])
def test_curves_of_clusters_have_their_numbers_and_of_groups_their_names(tmp_path, names):
    log = TrainingLog(tmp_path)
    named = {"cluster_names": names} if names else {}
    log.metrics(0, {"ndcg": 0.1, "mrr": 0.1, "clusters": 3, "cluster_mrr": [0.5, None, 0.25], **named})
    assert log.step(1, seen(1.0, [2.0, 0.0, 0.5], [1, 0, 2], [0.5, 0.25, 0.25]), 0.1).steps == 1
    log.close()
    labels = names or ["00", "01", "02"]
    found = points(tmp_path)
    assert {tag: values for tag, values in found.items() if tag.startswith("cluster_weight")} == {
        f"cluster_weight/{label}": [(1, weight)] for label, weight in zip(labels, (0.5, 0.25, 0.25), strict=True)
    }
    assert {tag: values for tag, values in found.items() if tag.startswith("step_clusters/")} == {
        "step_clusters/present": [(1, 2.0)],
        "step_clusters/effective": [(1, 1.8899)],  # of 2/3 and 1/3
        "step_clusters/samples_at_eps": [(1, 0.0)],
        "step_clusters/weight_present": [(1, 0.75)],
    }
    assert [found.get(f"cluster_loss/{label}") for label in labels] == [[(1, 2.0)], None, [(1, 0.5)]]
    assert [found.get(f"dev_cluster_mrr/{label}") for label in labels] == [[(0, 0.5)], None, [(0, 0.25)]]


def test_the_last_checkpoints_metrics_are_there_once_and_training_goes_on_from_them(tmp_path):
    log = TrainingLog(tmp_path)
    log.metrics(0, {"ndcg": 0.1, "mrr@10": 0.2, "zero_shot": {"a": {"ndcg@10": 0.3}}})
    log.close()
    for value in (0.5, 0.6):
        log_evaluation(tmp_path, 100, {"ndcg@10": value, "mrr@10": 0.7}, {"a": {"ndcg@10": 0.8}})
    found = points(tmp_path)
    assert found["dev/ndcg"] == [(0, 0.1), (100, 0.6)]
    assert found["dev/mrr@10"] == [(0, 0.2), (100, 0.7)]
    assert found["zero_shot/a/ndcg@10"] == [(0, 0.3), (100, 0.8)]

    log = TrainingLog(tmp_path, first_step=100)  # another episode, which that checkpoint has mined
    log.metrics(100, {"ndcg": 0.6, "mrr@10": 0.7, "zero_shot": {"a": {"ndcg@10": 0.8}}})
    log.close()
    log_evaluation(tmp_path, 200, {"ndcg@10": 0.9, "mrr@10": 0.9}, {"a": {"ndcg@10": 0.9}})
    assert points(tmp_path)["dev/ndcg"] == [(0, 0.1), (100, 0.6), (200, 0.9)]
