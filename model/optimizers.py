"""The optimizers and the learning rate of a step."""

from dataclasses import dataclass

import torch
from torch import nn

from utils.runtime.errors import InputError

OPTIMIZERS = ("lamb", "adamW")


def make_optimizer(
    name: str, model: nn.Module, learning_rate: float, weight_decay: float, epsilon: float
) -> torch.optim.Optimizer:
    """LAMB (arXiv:1904.00962, version 3, as ANCE uses it: no bias correction, decay inside the trust ratio) or AdamW.

    Biases and LayerNorm's parameters are not decayed.
    """
    decayed, plain = [], []
    for parameter in model.parameters():
        (decayed if parameter.ndim > 1 else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    if name == "lamb":
        from pytorch_optimizer import Lamb  # which AdamW can do without

        # The library divides the step by 1 - beta1^t, which LAMB does not, unless told adam_debias.
        return Lamb(groups, lr=learning_rate, eps=epsilon, weight_decouple=False, foreach=True, adam_debias=True)
    if name == "adamW":
        return torch.optim.AdamW(groups, lr=learning_rate, eps=epsilon, fused=True)
    raise InputError(f"--optimizer {name!r} is unknown; there are {', '.join(OPTIMIZERS)}")


@dataclass(frozen=True)
class LearningRate:
    """The learning rate of every step of an episode; a function of the step, so that it needs no state of its own.

    An episode that begins at optimizer step `episode_start` (of the whole run) peaks at
    peak · max(0.2, 1 - episode_start / total_training_steps). It warms up linearly over `warmup_steps`, then decays
    linearly to 0 at `num_training_steps`, both counted from the episode's first step.
    """

    peak: float
    episode_start: int
    warmup_steps: int
    num_training_steps: int
    total_training_steps: int

    def at(self, step: int) -> float:
        """The rate of optimizer step `step`, counted from 0 over the whole run."""
        peak = self.peak * max(0.2, 1 - self.episode_start / self.total_training_steps)
        done = step - self.episode_start
        if done < self.warmup_steps:
            return peak * done / self.warmup_steps
        return peak * max(0.0, (self.num_training_steps - done) / max(1, self.num_training_steps - self.warmup_steps))
