"""What the benchmarks share: encoders by shape, training steps by name, turns, the clock, a process's memory.

A contender is a way to do a piece of work, such as a training step. Contenders are measured in turn, in one process
or in one each, so that whatever else the machine does meets them all alike, and their memory in a process of their
own each.
"""

import multiprocessing
import platform
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from model.dro import make_objective
from model.encoders import Encoder
from model.group_gradients import GroupGradients
from model.optimizers import make_optimizer
from model.reading import Reading, published_reading
from model.retriever import Retriever
from model.training_step import TrainingStep
from model.watched_layers import watched_layers
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.runtime.precision import choose_precision
from utils.stores.files import write_json

READING = published_reading("rdot_nll_condenser")  # unless told otherwise
SHAPES = {  # layers, width, heads
    "base": (12, 768, 12),
    "mid": (12, 384, 12),
    "minilm": (6, 384, 12),
    "tiny": (2, 32, 2),
}
VOCABULARY = 30_522
DRO_SETTINGS = {"alpha": 0.25, "ema": 0.1, "rho": 0.05, "eps": 0.01}
SKETCH_DIM = 1024
BUSY = 0.8  # a product rate under this part of the median one says that the machine was not left alone
PRODUCTS = 5  # timed each time that the machine's peak is measured
LEARNING_RATE, ADAM_EPSILON, MAX_GRAD_NORM = 1e-5, 1e-8, 1.0


def set_up_one_process(no_cuda: bool) -> torch.device:
    """The device of a benchmark of one process; `InputError` where there are several, or several GPUs."""
    device = distributed.set_up(no_cuda)
    if distributed.world_size() > 1 or (device.type == "cuda" and torch.cuda.device_count() > 1):
        raise InputError("this benchmark is of one process and at most one GPU; name it: CUDA_VISIBLE_DEVICES=0")
    return device


def describe(args: Any, libraries: Sequence[str], not_settings: Sequence[str], device: torch.device | None) -> dict:
    """What was measured where, for a result's head: the device, threads, versions, and the script's arguments.

    `args` is the script's dataclass, of which the fields `not_settings` say where things lie. Libraries that are not
    installed have no version.
    """
    return {
        **({"device": name_of(device)} if device else {}),
        "threads": torch.get_num_threads(),
        "versions": versions_of(libraries),
        "settings": {name: value for name, value in asdict(args).items() if name not in not_settings},
    }


def versions_of(libraries: Sequence[str]) -> dict[str, str]:
    """The versions of those that are installed, and Python's."""
    found = {"python": platform.python_version()}
    for name in libraries:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def draw_lengths(generator: np.random.Generator, count: int, mean: float, most: int) -> np.ndarray:
    """Lengths of texts like MS MARCO's, special tokens included: int64 (count,), from 4 to `most`."""
    return np.clip(generator.gamma(4, mean / 4, size=count), 4, most).astype(np.int64)


def write_result(path: Path, result: dict, script: str | None = None, args: Any = None) -> None:
    """Writes a result, and says so; of a `script`, each contender's peak memory is measured first, by that script."""
    for name, of_contender in result["contenders"].items() if script else ():
        of_contender["peak_gib"] = peak_of_fresh_process(script, args, name)
    write_json(path, result)
    say(f"wrote {path}")


def check_shape(name: str) -> None:
    if name not in SHAPES:
        raise InputError(f"--shape {name!r}: there are {', '.join(SHAPES)}")


def make_encoder(
    shape: str, vocabulary: int = VOCABULARY, dropout: float = 0.1, reading: Reading = READING
) -> Encoder:
    """An encoder of that shape, with the same random weights at every call: they do not matter for time."""
    layers, width, heads = SHAPES[shape]
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return Encoder(BertModel(config, add_pooling_layer=False), reading)


@dataclass(frozen=True)
class Taken:
    """A step that was taken: its seconds, how long making a batch took meanwhile or before, and its mean loss.

    `tokens`: the real tokens that went through the encoder, a text counting as often as it did so; `positions`: the
    same with padding.
    """

    seconds: float
    input_seconds: float
    loss: float
    tokens: int
    positions: int


class PublishedStep(TrainingStep):
    """iDRO as published: a backward pass for every cluster in the batch, gradients summed over processes in full."""

    def __init__(self, *parts, watched: nn.ModuleList) -> None:
        super().__init__(*parts)
        self.watched = list(watched.parameters())

    def _accumulate(self, batch: Any, counts: Tensor, last: bool) -> Tensor:
        with self.precision.autocast():
            losses = self.model(batch)
        sums = [p.new_zeros(len(counts), p.numel()) for p in self.watched]
        for cluster in batch.clusters.unique().tolist():
            mean = self.scaler.scale(losses[batch.clusters == cluster].sum() / counts[cluster])
            for total, gradient in zip(sums, torch.autograd.grad(mean, self.watched, retain_graph=True), strict=True):
                total[cluster] = gradient.flatten()
        self.products = sum(total @ total.T for total in map(distributed.all_reduce_sum, sums))
        del sums
        self.scaler.scale((self.objective.coefficients(batch.clusters, counts) * losses).sum()).backward()
        return losses


def make_step(
    name: str,
    encoder: Encoder,
    n_groups: int,
    fp16: bool,
    device: torch.device,
    optimizer: str = "lamb",
    make_model: Callable[[Encoder, GroupGradients | None], nn.Module] = Retriever,
) -> TrainingStep:
    """A training step by its contender's name: an objective's, sketch (iDRO's with sketch_dim) or published.

    `make_model` makes what computes a batch's losses from the encoder, and from the watch where there is one.
    """
    encoder = encoder.to(device).train()
    objective = make_objective({"sketch": "idro", "published": "erm"}.get(name, name), n_groups, **DRO_SETTINGS)
    layers = watched_layers(encoder, "base")
    watch = None
    if objective.needs_gradient_products:
        watch = GroupGradients(layers, n_groups, sketch_dim=SKETCH_DIM if name == "sketch" else None)
    model = make_model(encoder, watch)
    parts = (
        model,
        objective,
        make_optimizer(optimizer, model, LEARNING_RATE, 0.0, ADAM_EPSILON),
        choose_precision(fp16, device),
        MAX_GRAD_NORM,
        device,
    )
    return PublishedStep(*parts, watched=layers) if name == "published" else TrainingStep(*parts, watch)


def now(device: torch.device) -> float:
    """The clock in seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def product_rate(size: int, dtype: torch.dtype, device: torch.device) -> float:
    """Floating point operations a second of a product of square matrices, the median of several."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    product = torch.mm(left, right)
    rates = []
    for _ in range(PRODUCTS):
        start = now(device)
        torch.mm(left, right, out=product)
        rates.append(2 * size**3 / (now(device) - start))
    return statistics.median(rates)


def warn_if_busy(rates: Sequence[float]) -> None:
    """Says so where one of a run's product rates is far below the median one."""
    if min(rates) < BUSY * statistics.median(rates):
        say("warning: the machine's own peak moved from round to round: something else ran on it; measure again")


def take_turns(
    work: Mapping[str, Callable[[], Any]],
    rounds: int,
    device: torch.device,
    between: Callable[[int, dict[str, Any]], None],
    most_seconds: float = 0,
) -> dict[str, list[float]]:
    """The seconds that each contender's work took, in turn, over `rounds` rounds after one that does not count.

    `between` is called with the number of each round that is over, from 0, and what each contender gave in it. With
    `most_seconds` there are fewer rounds, but one that counts, where another one would last longer than that.
    """
    seconds: dict[str, list[float]] = {name: [] for name in work}
    begun = time.perf_counter()
    for number in range(rounds + 1):
        first, given = number % len(work), {}
        for name in [*work][first:] + [*work][:first]:
            start = now(device)
            given[name] = work[name]()
            seconds[name].append(now(device) - start)
        between(number, given)
        spent = time.perf_counter() - begun
        if most_seconds and number and spent + spent / (number + 1) > most_seconds:
            break
    return {name: of_one[1:] for name, of_one in seconds.items()}


class TurnPeaks:
    """The GPU memory that each contender's turns took at most, `gib`: its own weights, and what it allocated.

    Contenders share a process here; what others hold does not count.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.gib: dict[str, float] = {}

    def watch(self, name: str, work: Callable[[], Any], own_bytes: int = 0) -> Callable[[], Any]:
        """The same work, whose memory is noted; `own_bytes` are held already."""

        def turn() -> Any:
            held = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            given = work()
            self.note(name, torch.cuda.max_memory_allocated() - held + own_bytes)
            return given

        return turn if self._on_gpu else work

    def note(self, name: str, taken_bytes: int) -> None:
        """Notes what torch has not allocated."""
        self.gib[name] = max(self.gib.get(name, 0.0), taken_bytes / 2**30)


class Processes:
    """Contenders that are a process each, of which one works at a time.

    `work` is, by name, a function of a module and its first arguments; it is also given two functions. The first
    waits until it is the contender's turn; the second hands over what it has done, and the turn with it.
    """

    def __init__(self, work: Mapping[str, tuple[Callable[..., None], *tuple[Any, ...]]]) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipes, self._processes = {}, {}
        for name, (function, *arguments) in work.items():
            self._pipes[name], end = context.Pipe()
            self._processes[name] = context.Process(target=_contend, args=(function, arguments, end), daemon=True)
            self._processes[name].start()
            end.close()

    def take_turns(self, first: int = 0) -> dict[str, Any]:
        """What each contender hands over in its turn; they take it in their order, begun with number `first`."""
        names, given = [*self._pipes], {}
        first %= len(names)
        for name in names[first:] + names[:first]:
            try:
                self._pipes[name].send(None)
                given[name] = self._pipes[name].recv()
            except (EOFError, ConnectionError):
                raise InputError(f"the contender {name} has failed; its own message is above") from None
        return given

    def __enter__(self) -> "Processes":
        return self

    def __exit__(self, *exception: object) -> None:
        for name, process in self._processes.items():
            self._pipes[name].close()
            process.terminate()
            process.join()


def _contend(function: Callable[..., None], arguments: Sequence[Any], end: Connection) -> None:
    function(*arguments, end.recv, end.send)


def summarize(seconds: Mapping[str, list[float]], reference: str, amounts: Mapping[str, int]) -> dict[str, dict]:
    """Of each contender its seconds, the `amounts` of its work a second, and how many times as fast it is.

    That is the ratio of the medians of `reference`'s seconds and its own.
    """
    median = {name: statistics.median(of_one) for name, of_one in seconds.items()}
    return {
        name: {
            "median_seconds": median[name],
            **{f"{unit}_per_second": amount / median[name] for unit, amount in amounts.items()},
            "times_as_fast": median[reference] / median[name],
            "seconds": of_one,
        }
        for name, of_one in seconds.items()
    }


def name_of(device: torch.device) -> str:
    """What the device calls itself."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    found = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.MULTILINE)
    return found[1] if found else "CPU"


def peak_gib(device: torch.device) -> float:
    """The most memory that this process has held so far, in GiB: the GPU's, or else all that was resident."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    # getrusage would carry over the peak of the process that started this one
    found = re.search(r"VmHWM:\s+(\d+) kB", _read("/proc/self/status"))
    if not found:
        raise InputError("peak memory is read from /proc/self/status (VmHWM), which only Linux has")
    return int(found[1]) / 2**20


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def peak_of_fresh_process(script: str, args: Any, contender: str) -> float:
    """What `script` prints last, a number of GiB, when it is run with the same flags and --peak_of `contender`."""
    command = [sys.executable, script]
    for name, value in {**vars(args), "peak_of": contender}.items():
        command += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        raise InputError(f"the memory of {contender} could not be measured: {finished.stderr[-500:]}")
    return float(finished.stdout.split()[-1])
