"""What a piece of work took: its seconds, and the texts that an encoder of ours or of the library encoded meanwhile.

Training is told from outside, too: between the encoder's calls lie the seconds of a step.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from sentence_transformers import SentenceTransformer
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

from model.encoders import Encoder


@dataclass(frozen=True)
class Work:
    """Seconds, texts encoded (one counts as often as it is encoded), and when each call of the encoder was done."""

    seconds: float
    texts: int
    calls: tuple[float, ...]

    def seconds_a_step(self, steps: int) -> float:
        """Of a training of so many steps, at least 2, the median of all but the first, which sets much up."""
        ends = self.calls[:: len(self.calls) // steps]  # of a step's first call
        return statistics.median(after - before for before, after in pairwise(ends))


def watch(work: Callable[[], object]) -> Work:
    """Does the work; what it imports should be imported before."""
    texts, calls = 0, []

    def note(module: nn.Module, inputs: tuple, output: object) -> None:
        nonlocal texts
        if isinstance(module, Encoder | SentenceTransformer):
            texts += len(output if isinstance(module, Encoder) else output["sentence_embedding"])
            calls.append(time.perf_counter() - start)

    hook = register_module_forward_hook(note)
    start = time.perf_counter()
    try:
        work()
    finally:
        hook.remove()
    return Work(time.perf_counter() - start, texts, tuple(calls))
