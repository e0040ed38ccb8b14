"""One optimizer step: coefficients, forward, one backward pass, clip, step, and what the objective learns from it.

Every sum runs over the step's global batch: all processes and all accumulated batches. The counts of the clusters
are known before any forward pass, since the mined file carries them, so each triplet's coefficient is too, and the
gradient is that of one process with the whole batch.
"""

import warnings
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from model.dro import ERM
from model.group_gradients import GroupGradients
from utils.runtime.distributed import all_reduce_sum, world_size
from utils.runtime.precision import Precision
from utils.samples import Batch


@dataclass
class StepResult:
    """What a step saw. `loss`: mean l_i; `cluster_losses` f_g and `counts` n_g, (K,); `skipped`: not finite.

    `weights`: those of the clusters that it was taken with, and `at_eps` where they are at the least, (K,). `stop`: a
    process was asked to stop, the same in all of them.
    """

    loss: Tensor
    cluster_losses: Tensor
    counts: Tensor
    weights: Tensor
    at_eps: Tensor
    gradient_norm: Tensor
    skipped: bool
    stop: bool


class TrainingStep:
    """Takes optimizer steps on a model that gives the losses of a batch, as `Retriever` does, on `device`.

    All processes must make one; the model is wrapped in DistributedDataParallel where there are several. `watch` is
    the model's, for an objective that compares the clusters' gradients. A step whose gradient holds inf or nan is
    skipped, and leaves the parameters and the objective as they were.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: ERM,
        optimizer: torch.optim.Optimizer,
        precision: Precision,
        max_grad_norm: float,
        device: torch.device,
        watch: GroupGradients | None = None,
    ) -> None:
        self.model, self.objective, self.optimizer = model, objective.to(device), optimizer
        if world_size() > 1:
            self.model = _distributed(model, device)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision.needs_scaler)
        self.precision, self.max_grad_norm = precision, max_grad_norm
        self.parameters = list(model.parameters())
        self.watch = watch

    def __call__(
        self,
        batches: list[Batch],
        learning_rate: float,
        stop: bool = False,
        clusters_of: list[Tensor] | None = None,
    ) -> StepResult:
        """Steps on this process's batches of the global batch (more than one: gradient accumulation).

        `stop` says that this process was asked to stop: all learn of it without a message of its own. `clusters_of`
        are the clusters in each process's batches, int64 on the CPU; where it is not given and they are needed,
        processes ask each other.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        n_groups = len(self.objective.weights)
        clusters = torch.cat([batch.clusters for batch in batches])
        own = _sums_by_cluster(clusters, torch.ones_like(clusters), n_groups)
        counts, asked = all_reduce_sum(torch.cat([own, torch.full_like(own[:1], stop)])).split([n_groups, 1])
        losses = [
            self._accumulate(batch, counts, last=number == len(batches)).detach()
            for number, batch in enumerate(batches, start=1)
        ]
        loss_sums = all_reduce_sum(_sums_by_cluster(clusters, torch.cat(losses), n_groups))

        products = self.watch.collect(clusters_of) if self.watch else None
        self.scaler.unscale_(self.optimizer)
        limit = self.max_grad_norm if self.max_grad_norm > 0 else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, limit, foreach=True)
        cluster_losses = loss_sums / counts.clamp(min=1)
        # The one place where the host waits for a GPU: an optimizer cannot be told afterwards not to have stepped.
        compared = norm if products is None else products.diagonal().sum() + norm
        finite, comparable, stop = torch.stack([norm.isfinite(), compared.isfinite(), asked[0] > 0]).tolist()
        if finite:  # the scaler's own step would ask the GPU once more; its update learns of what is not finite
            self.optimizer.step()
        weights = self.objective.weights.clone()
        if comparable:
            self.objective.update(cluster_losses, counts, products)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        seen = loss_sums.sum() / counts.sum(), cluster_losses, counts
        return StepResult(*seen, weights, weights <= self.objective.eps, norm, not finite, stop)

    def _accumulate(self, batch: Batch, counts: Tensor, last: bool) -> Tensor:
        """Forward and backward of one batch; gradients are exchanged with the other processes on the last one."""
        wrapped = isinstance(self.model, DistributedDataParallel)
        with self.model.no_sync() if wrapped and not last else nullcontext():
            with self.precision.autocast():
                losses = self.model(batch)
            coefficients = self.objective.coefficients(batch.clusters, counts)
            # DistributedDataParallel averages over processes; the sum is what is meant.
            loss = (coefficients * losses).sum() * (world_size() if wrapped else 1)
            self.scaler.scale(loss).backward()
        return losses


def _distributed(model: nn.Module, device: torch.device) -> DistributedDataParallel:
    """The model, which exchanges gradients. Its buffers are constants, such as positions, and never sent."""
    with warnings.catch_warnings():
        # torch 2.13 has another name for it, which 2.11 lacks.
        warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
        on = [device] if device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=on, broadcast_buffers=False)


def _sums_by_cluster(clusters: Tensor, values: Tensor, n_groups: int) -> Tensor:
    """Σ of the values (B,) of each cluster, (K,); those of cluster -1 count for nothing."""
    return values.new_zeros(n_groups + 1).index_add_(0, clusters + 1, values)[1:]
