"""Dropout that costs little on a CPU.

torch draws dropout's random numbers there one at a time, on one core: as much as a sixth of a training step. Here a
fast generator (SFC64, numpy's) fills 16 bits a number. It is seeded by torch's own generator at every call, so that
torch's random state still determines everything, resumed runs and recomputed layers included. On a GPU it is torch's.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

STEPS = 2**16  # probabilities are rounded to multiples of 1 / STEPS


def dropout(values: Tensor, p: float) -> Tensor:
    """`values` with a share p of them 0, drawn at random, and the others divided by 1 - p; p in [0, 1]."""
    dropped = round(p * STEPS)
    if values.device.type != "cpu" or dropped in (0, STEPS):
        return functional.dropout(values, p)
    generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))
    words = generator.integers(0, 2**64, size=-(-values.numel() // 4), dtype=np.uint64)
    draws = torch.from_numpy(words.view(np.int16)[: values.numel()]).view(values.shape)  # -STEPS / 2 … STEPS / 2 - 1
    kept = (draws >= dropped - STEPS // 2).to(values.dtype)
    return values * kept.mul_(STEPS / (STEPS - dropped))


class Dropout(nn.Dropout):
    """As torch.nn.Dropout; see `dropout`."""

    def forward(self, values: Tensor) -> Tensor:
        return dropout(values, self.p) if self.training else values


def replace_dropout(model: nn.Module, kind: type[nn.Dropout] = Dropout) -> None:
    """Puts a layer of this kind in the place of every dropout layer of a model."""
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.Dropout):
                setattr(module, name, kind(child.p).train(child.training))
