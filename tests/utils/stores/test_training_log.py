"""Losses that are means over an interval, and the last checkpoint's metrics beside its training's."""

from types import SimpleNamespace

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from utils.runtime.errors import InputError
from utils.stores.training_log import MeanLosses, TrainingLog, log_evaluation


def seen(loss: float, cluster_losses: list[float], counts: list[int]) -> SimpleNamespace:
    losses = torch.tensor(loss), torch.tensor(cluster_losses), torch.tensor(counts), torch.tensor(1.0)
    return SimpleNamespace(**dict(zip(("loss", "cluster_losses", "counts", "gradient_norm"), losses, strict=True)))


def test_means_weigh_each_triplet_alike_and_leave_out_what_is_not_finite():
    losses = MeanLosses()
    losses.add(seen(1.0, [2.0, 0.0, 0.5], [1, 0, 2]))
    losses.add(seen(float("nan"), [float("nan"), 7.0, 0.0], [3, 1, 0]))
    losses.add(seen(3.0, [4.0, 0.0, 0.0], [3, 0, 0]))
    loss, of_clusters, counts = losses.means()
    assert float(loss) == 2.0
    assert counts.tolist() == [4, 0, 2]
    assert of_clusters[[0, 2]].tolist() == [3.5, 0.5]


@pytest.mark.parametrize("sums", [[1.0] * 7, [1.0] * 9, "sums", None, ["1"] * 8, [float("inf")] * 8])
def test_a_state_of_other_clusters_or_of_no_numbers_is_refused(sums):
    losses = MeanLosses()
    losses.add(seen(1.0, [2.0, 0.0, 0.5], [1, 0, 2]))
    again = MeanLosses()
    again.load(losses.state(), 3)
    assert again.state() == losses.state()
    with pytest.raises(InputError, match="not 8 numbers as they were saved"):
        MeanLosses().load({"sums": sums}, 3)


def points(folder) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(folder)).Reload()
    return {name: [(e.step, round(e.value, 4)) for e in events.Scalars(name)] for name in events.Tags()["scalars"]}


@pytest.mark.parametrize("names", [None, ["a/b", "07", "law & order"]])
def test_curves_of_clusters_have_their_numbers_and_of_groups_their_names(tmp_path, names):
    log = TrainingLog(tmp_path)
    named = {"cluster_names": names} if names else {}
    log.metrics(0, {"ndcg": 0.1, "mrr": 0.1, "clusters": 3, "cluster_mrr": [0.5, None, 0.25], **named})
    log.step(1, seen(1.0, [2.0, 0.0, 0.5], [1, 0, 2]), torch.tensor([0.5, 0.25, 0.25]), 0.1)
    log.close()
    labels = names or ["00", "01", "02"]
    found = points(tmp_path)
    assert {tag: values for tag, values in found.items() if tag.startswith("cluster_weight")} == {
        f"cluster_weight/{label}": [(1, weight)] for label, weight in zip(labels, (0.5, 0.25, 0.25), strict=True)
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
