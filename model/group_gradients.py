"""Inner products of the clusters' gradients, by one backward pass a cluster: the method as it is published."""

import torch
from torch import Tensor

from utils.distributed import all_reduce_sum


class GroupGradients:
    """Collects ∇f_g of each cluster g over the accumulated batches of a step, for some of the parameters."""

    def __init__(self, parameters: list[Tensor], n_groups: int) -> None:
        self.parameters = parameters
        self.n_groups = n_groups
        self._sums: list[Tensor] = []

    def collect(self, losses: Tensor, clusters: Tensor, counts: Tensor) -> None:
        """Adds the gradients of Σ_{i in g} l_i / n_g for each cluster g of this batch; keeps the graph.

        `losses` (B,) with their graph, `clusters` int64 (B,), `counts` int64 (K,): the n_g of the whole step.
        """
        if not self._sums:
            self._sums = [p.new_zeros(self.n_groups, p.numel()) for p in self.parameters]
        for group in clusters[clusters >= 0].unique().tolist():
            mean = losses[clusters == group].sum() / counts[group]
            gradients = torch.autograd.grad(mean, self.parameters, retain_graph=True)
            for total, gradient in zip(self._sums, gradients, strict=True):
                total[group] += gradient.flatten()

    def inner_products(self) -> Tensor:
        """<∇f_g, ∇f_h> over all processes, (K, K), and forgets the step."""
        products = sum(total @ total.T for total in map(all_reduce_sum, self._sums))
        self._sums = []
        return products
