"""What a person sees of a run: one clear line a stage and a progress bar on anything long, from the main process."""

import sys
import time
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Protocol

from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils import distributed
from utils.errors import disk_errors, write
from utils.metrics import MEASURES


class StepResult(Protocol):
    """What a log asks of a training step: its loss and norm, and of each cluster the loss and the triplets, (K,)."""

    loss: Tensor
    gradient_norm: Tensor
    cluster_losses: Tensor
    counts: Tensor


_started = time.monotonic()


def say(message: str) -> None:
    """Prints one line with the minutes since the start, from the main process only.

    Where nobody reads them any more the work goes on without them.
    """
    if distributed.is_main():
        minutes, seconds = divmod(int(time.monotonic() - _started), 60)
        with tqdm.external_write_mode(sys.stdout):
            write(sys.stdout, f"[{minutes:3d}:{seconds:02d}] {message}\n")


@cache
def say_once(message: str) -> None:
    """As `say`, for what would be said again and again: each message once a process."""
    say(message)


def progress(
    items: Iterable | None = None,
    *,
    total: int | None = None,
    unit: str,
    label: str,
    initial: int = 0,
    delay: float = 0,
) -> tqdm:
    """A progress bar with rate and time left, on stderr of the main process.

    Where stderr is no terminal (a log file), it writes a line every 15 seconds rather than ten a second.
    What is done within `delay` seconds shows none.
    """
    terminal = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        unit=f" {unit}",
        desc=label,
        initial=initial,
        delay=delay,
        disable=not distributed.is_main(),
        mininterval=0.2 if terminal else 15,
        maxinterval=10 if terminal else 60,
        unit_scale=True,
        dynamic_ncols=True,
        leave=not terminal,
    )


class TrainingLog:
    """TensorBoard curves, written by the main process. Values may be tensors on any device."""

    def __init__(self, folder: str | Path, first_step: int = 0) -> None:
        """`first_step`: points beyond it that an interrupted run left are taken back."""
        self._folder, self._writer = folder, None
        if distributed.is_main():
            with disk_errors(folder):
                self._writer = SummaryWriter(str(folder), purge_step=first_step + 1)
        self._last: tuple[int, float] | None = None

    def metrics(self, step: int, result: Mapping[str, object]) -> None:
        """Where an episode's training begins: its number and the metrics that it was mined with, by cluster too."""
        self.scalars(step, {"episode": result["episode"]} if "episode" in result else {})
        self.scalars(step, {f"dev/{name}": result[name] for name in ("ndcg", *MEASURES) if name in result})
        for collection, means in result.get("zero_shot", {}).items():
            self.scalars(step, {f"zero_shot/{collection}/{name}": value for name, value in means.items()})
        for cluster, value in enumerate(result.get("cluster_mrr", ())):
            if value is not None:
                self.scalars(step, {f"dev_cluster_mrr/{cluster:02d}": value})

    def scalars(self, step: int, values: Mapping[str, float | Tensor]) -> None:
        """One point of several curves at an optimizer step; `InputError` where the disk takes no more."""
        if self._writer:
            with disk_errors(self._folder):
                for name, value in values.items():
                    self._writer.add_scalar(name, float(value), step)

    def clusters(self, step: int, name: str, values: Tensor, present: Tensor) -> None:
        """One point of a curve a cluster, `name`/00 …: `values` (K,) where `present` (K,) holds."""
        if self._writer:
            shown = present.tolist()
            points = {f"{name}/{g:02d}": value for g, value in enumerate(values.tolist()) if shown[g]}
            self.scalars(step, points)

    def step(self, step: int, result: StepResult, weights: Tensor, learning_rate: float) -> None:
        """What a training step saw, the cluster weights (K,) that it was taken with, and the pace since last time."""
        values = {"loss": result.loss, "learning_rate": learning_rate, "gradient_norm": result.gradient_norm}
        last, self._last = self._last, (step, time.monotonic())
        if last:
            values["steps_per_second"] = (step - last[0]) / (self._last[1] - last[1])
        self.scalars(step, values)
        if len(weights) > 1:
            self.clusters(step, "cluster_loss", result.cluster_losses, result.counts > 0)
            self.clusters(step, "cluster_weight", weights, weights >= 0)

    def close(self) -> None:
        if self._writer:
            with disk_errors(self._folder):
                self._writer.close()
