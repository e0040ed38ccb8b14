"""The curves of a run for TensorBoard: losses and weights over training, and the metrics of its checkpoints."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from utils.runtime import distributed
from utils.runtime.errors import InputError, disk_errors
from utils.stores.episode import METRICS

EVALUATION = ".evaluation"  # the end of the name of the file that `log_evaluation` writes


class StepResult(Protocol):
    """What a log asks of a training step: its loss and norm, and of each cluster, (K,), the loss and the samples.

    And the weight that the step was taken with, and whether that is the least.
    """

    loss: Tensor
    gradient_norm: Tensor
    cluster_losses: Tensor
    counts: Tensor
    weights: Tensor
    at_eps: Tensor


@dataclass(frozen=True)
class StepClusters:
    """What the steps since the last log entry held, means over these `steps`.

    Clusters `present`; the `effective` number of clusters, exp of the entropy of the weights normalised over those
    present; the share of samples, `at_eps`, whose cluster has the least weight; and the sum of the `weight` of the
    clusters present.
    """

    steps: int
    present: float
    effective: float
    at_eps: float
    weight: float

    def curves(self) -> dict[str, float]:
        """The points of its curves by their names."""
        return {curve: getattr(self, name) for name, curve in STEP_CURVES.items()}


STEP_CURVES = {
    "present": "step_clusters/present",
    "effective": "step_clusters/effective",
    "at_eps": "step_clusters/samples_at_eps",
    "weight": "step_clusters/weight_present",
}


class UnloggedSteps:
    """The losses and the clusters of the training steps since the last log entry: sums, on the steps' own device.

    A loss that is not finite, of a step that is skipped, counts for nothing.
    """

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # steps, Σ loss, and of each cluster Σ loss of its samples and samples
        self._clusters: Tensor | None = None  # steps, skipped ones too, and the sums of `StepClusters`

    def add(self, result: StepResult) -> None:
        counts = result.counts.double()
        one = torch.ones_like(counts[:1])
        own = torch.cat([one, result.loss.double()[None], result.cluster_losses.double() * counts, counts])
        own = torch.where(own.isfinite().all(), own, 0.0)
        self._sums = self._sums.to(own.device) + own if self._sums is not None else own
        clusters = _clusters_of(result)
        self._clusters = self._clusters.to(own.device) + clusters if self._clusters is not None else clusters

    def __bool__(self) -> bool:
        return self._sums is not None

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """The mean loss, of each cluster the mean loss of its samples, (K,), and their number, (K,).

        nan where there was none.
        """
        steps, loss = self._sums[:2]
        sums, counts = self._sums[2:].chunk(2)
        return loss / steps, sums / counts, counts

    def clusters(self) -> StepClusters:
        """What the steps held."""
        steps, *sums = self._clusters.tolist()
        return StepClusters(int(steps), *(total / steps for total in sums))

    def state(self) -> dict[str, list[float]]:
        """What a checkpoint keeps of it; nothing where no step was taken."""
        sums = {"sums": self._sums, "step_clusters": self._clusters}
        return {name: of_steps.tolist() for name, of_steps in sums.items() if of_steps is not None}

    def load(self, state: Mapping[str, object], clusters: int) -> None:
        """Goes on from a state; `InputError` where it is not one of so many clusters.

        That of a version which counted no clusters a step lacks "step_clusters".
        """
        self._sums = self._clusters = None
        if state:
            self._sums = _read_sums(state.get("sums"), 2 + 2 * clusters)
        if "step_clusters" in state:
            self._clusters = _read_sums(state["step_clusters"], 1 + len(STEP_CURVES))


class TrainingLog:
    """TensorBoard curves, written by the main process. Values may be tensors on any device.

    A loss is the mean over the steps since the entry before; `unlogged`, which a checkpoint keeps, are the steps that
    no entry has yet.
    """

    def __init__(self, folder: str | Path, first_step: int = 0) -> None:
        """`first_step`: points beyond it that an interrupted run left are taken back."""
        self._folder, self._writer = folder, None
        self.unlogged, self._loss = UnloggedSteps(), math.nan
        self._names: list[str] | None = None  # of the clusters of the episode, where they are groups by name
        if distributed.is_main():
            with disk_errors(folder):
                for path in Path(folder).glob(f"*{EVALUATION}"):  # its checkpoint is not the last any more
                    path.unlink()
                self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        self._last: tuple[int, float] | None = None

    def metrics(self, step: int, result: Mapping[str, object]) -> None:
        """Where an episode's training begins: its number and the metrics that it was mined with, by cluster too."""
        self.scalars(step, {"episode": result["episode"]} if "episode" in result else {})
        self.scalars(step, _curves_of(result, result.get("zero_shot", {})))
        self.scalars(step, _filter_curves(result.get("filters")))
        self._names, means = result.get("cluster_names"), result.get("cluster_mrr", [])
        curves = cluster_curves("dev_cluster_mrr", len(means), self._names)
        self.scalars(step, {curves[cluster]: mean for cluster, mean in enumerate(means) if mean is not None})

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """One point of several curves at an optimizer step; `InputError` where the disk takes no more."""
        if self._writer:
            with disk_errors(self._folder):
                for name, value in values.items():
                    self._writer.add_scalar(name, float(value), step)

    def clusters(self, step: int, name: str, values: Tensor, present: Tensor) -> None:
        """One point of each of the `cluster_curves`: `values` (K,) where `present` (K,) holds."""
        if self._writer:
            shown, curves = present.tolist(), cluster_curves(name, len(values), self._names)
            self.scalars(step, {curves[g]: value for g, value in enumerate(values.tolist()) if shown[g]})

    def step(self, step: int, result: StepResult, learning_rate: float, entry: bool = True) -> StepClusters | None:
        """What a training step saw, and the pace since last time. Returns what the steps since the last entry held.

        Without `entry` nothing is written, the step's losses count for the next entry, and None is returned.
        """
        self.unlogged.add(result)
        if not entry:
            return None
        (loss, cluster_losses, counts), clusters = self.unlogged.means(), self.unlogged.clusters()
        self._loss, self.unlogged = float(loss), UnloggedSteps()
        values = {"loss": loss, "learning_rate": learning_rate, "gradient_norm": result.gradient_norm}
        last, self._last = self._last, (step, time.monotonic())
        if last:
            values["steps_per_second"] = (step - last[0]) / (self._last[1] - last[1])
        self.scalars(step, values)
        if len(result.weights) > 1:
            self.scalars(step, clusters.curves())
            self.clusters(step, "cluster_loss", cluster_losses, counts > 0)
            self.clusters(step, "cluster_weight", result.weights, result.weights >= 0)
        return clusters

    @property
    def loss(self) -> float:
        """The mean loss of the steps since the last entry; where there are none, that of the entry."""
        return float(self.unlogged.means()[0]) if self.unlogged else self._loss

    def flush(self) -> None:
        """Writes to the disk what was logged so far."""
        if self._writer:
            with disk_errors(self._folder):
                self._writer.flush()

    def close(self) -> None:
        if self._writer:
            with disk_errors(self._folder):
                self._writer.close()


def cluster_curves(name: str, count: int, names: Sequence[str] | None) -> list[str]:
    """The curves of `count` clusters: `name`/00 …, or `name`/NAME where they are groups by name."""
    return [f"{name}/{label}" for label in (names or (f"{cluster:02d}" for cluster in range(count)))]


def log_evaluation(
    folder: str | Path, step: int, dev: Mapping[str, float], zero_shot: Mapping[str, Mapping[str, float]]
) -> None:
    """Adds the metrics of the last checkpoint, which no mining measures, to the curves of its training.

    They are in a file of their own, which takes the place of an earlier evaluation's.
    """
    with disk_errors(folder):
        for path in Path(folder).glob(f"*{EVALUATION}"):
            path.unlink()
        with SummaryWriter(str(folder), filename_suffix=EVALUATION) as writer:
            as_mined = {"ndcg": dev["ndcg@10"], **dev} if "ndcg@10" in dev else dev
            for name, value in _curves_of(as_mined, zero_shot).items():
                writer.add_scalar(name, value, step)


def _curves_of(dev: Mapping[str, object], zero_shot: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The points of a checkpoint's metrics by the names of their curves."""
    curves = {f"dev/{name}": dev[name] for name in ("ndcg", *METRICS) if name in dev}
    for collection, means in zero_shot.items():
        curves |= {f"zero_shot/{collection}/{name}": value for name, value in means.items()}
    return curves


def _filter_curves(filters: Mapping[str, object] | None) -> dict[str, float]:
    """What filters took of an episode's candidates: the share by each, and the queries that have none left."""
    if not filters:
        return {}
    candidates = max(filters["candidates"], 1)
    shares = {f"filters/{name.partition(' ')[0]}": n / candidates for name, n in filters["dropped"].items()}
    return shares | {"filters/queries_with_none_left": filters["queries_with_none_left"]}


def _clusters_of(result: StepResult) -> Tensor:
    """Of a step 1 and the figures of `StepClusters`, float64 (5,)."""
    counts, present = result.counts.double(), result.counts > 0
    weights = torch.where(present, result.weights.double(), 0)
    weight = weights.sum().clamp(min=torch.finfo(weights.dtype).tiny)
    effective = torch.special.entr(weights / weight).sum().exp()
    at_eps = torch.where(result.at_eps, counts, 0).sum() / counts.sum()
    return torch.stack([torch.ones_like(weight), present.sum().double(), effective, at_eps, weight])


def _read_sums(sums: object, length: int) -> Tensor:
    if not (isinstance(sums, list) and len(sums) == length and all(map(_is_finite, sums))):
        raise InputError(f"the log's sums are {sums!r:.80}, not {length} numbers as they were saved")
    return torch.tensor(sums, dtype=torch.float64)


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
