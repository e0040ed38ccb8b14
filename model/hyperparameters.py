"""The hyperparameters of a run, by the size of its data and of its encoder, where nobody says otherwise.

The published ones (`PUBLISHED`) are of a BERT on MS MARCO's half a million training queries. On 300 queries they are
absurd: the first episode would show each query 75,000 times. So they hold from `PUBLISHED_QUERIES` training queries
on, and for an encoder that comes without files of its own, or is read as a published type; everything else is chosen
here (`choose`), by these rules:

    LOSS           contrastive from an encoder that is made for vectors already, with NEGATIVES_A_QUERY 1, and
                   QUERIES_TOGETHER 16 where a step has two such blocks and a process one, else 8; pairwise from any
                   other
    ABSENT         keep, and NORMALIZE_WEIGHTS 1, with iDRO and a contrastive loss, since a step of a few blocks holds
                   few of the clusters; otherwise as published
    NEGATIVES      5: one a query in each of the 5 passes that a mined file consists of, so that a step sees as many
                   queries as it can
    filter         none (MAX_RELATIVE_SCORE off)
    TOPK           √(2 · passages), so 100 of 5,000; at most 200 and half the passages, at least four times NEGATIVES
    a step         √queries / 2 samples, a multiple of 8 from 16 to 512, of all processes together: triplets, or with
                   a contrastive loss lines of the mined file, whole blocks in each process
    CLUSTERS       √queries / 4, from 2 to 50, and at most half as many as a step has samples. With a contrastive loss
                   a step holds as many of them as it has blocks
    EPISODES       2 from an encoder that is made for vectors already, 3 from any other
    STEPS          a pass over the queries from the former, the whole mined file (5 passes) for any other; at
                   least 60, unless that is more than the whole file
    LEARNING_RATE  AdamW, of an encoder that is made for vectors already: 5e-5 up to a width of 384, beyond it falling
                   with the width (2.5e-5 at 768, 1.9e-5 at 1024); with fewer than 250 queries times √(queries / 250),
                   at least 0.4: there is more to lose than to learn. Of any other: 1e-4 up to a width of 384, beyond
                   it falling with its square (2.5e-5 at 768, 1.4e-5 at 1024). LAMB 25 times that
    schedule       warm-up over a tenth of the steps, then down to 0 at the episode's last; peaks fall over the run
    SAVE_STEPS     half an episode, from 20 to 5,000

What was given stays, and the others are chosen around it. Everything is a function of its arguments, so that a run
that is started again chooses the same. What was tried is in docs/running.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, sqrt
from typing import NamedTuple

PUBLISHED_QUERIES = 400_000
FEW_QUERIES = 250
MINED_PASSES = 5  # over the training queries, that the negatives of a mined file are dealt into, by default
TOGETHER = 16  # queries of a block, in steps that have room for two
OFF = "off"  # no filter

COMMON = {
    "LOSS": "pairwise",
    "QUERIES_TOGETHER": 0,
    "NEGATIVES_A_QUERY": 0,
    "MAX_RELATIVE_SCORE": OFF,
    "ABSENT": "drop",
    "NORMALIZE_WEIGHTS": 0,
    "TOPK": 200,
    "NEGATIVES": 30,
    "CLUSTERS": 50,
    "EPISODES": 3,
    "ACCUMULATION": 1,
    "OPTIMIZER": "lamb",
    "LEARNING_RATE": 5e-6,
    "WARMUP_STEPS": 3_000,
    "NUM_TRAINING_STEPS": 60_000,
    "TOTAL_TRAINING_STEPS": 300_000,
    "SAVE_STEPS": 5_000,
}
PUBLISHED = {
    "base": COMMON | {"STEPS": 45_000, "BATCH_SIZE": 64},
    "large": COMMON | {"STEPS": 30_000, "BATCH_SIZE": 32},
}
NAMES = tuple(PUBLISHED["base"])
IDRO_LAYERS = {"base": 3, "large": 2}  # the last ones, over which iDRO compares gradients

Value = int | float | str


class Choice(NamedTuple):
    """A setting's value, and in a few words why it is that."""

    value: Value
    why: str


@dataclass(frozen=True)
class Size:
    """What is trained on what: rows of the token stores, the encoder's width, and the processes that train.

    `declared`: the encoder's own files say how it is read, so that it is made for vectors already.
    """

    queries: int
    passages: int
    width: int
    declared: bool
    processes: int = 1

    @property
    def is_published(self) -> bool:
        """Whether the published hyperparameters are meant for such a run."""
        return self.queries >= PUBLISHED_QUERIES and not self.declared


def choose_published(model_size: str, given: Mapping[str, Value], objective: str = "idro") -> dict[str, Choice]:
    """The published values of what is not `given`, for `model_size` base or large.

    An episode and its schedule fit each other also where one of them is given, and so do a loss and its blocks.
    """
    values = PUBLISHED[model_size] | given
    if values["LOSS"] == "contrastive":
        blocks = {"QUERIES_TOGETHER": min(TOGETHER, values["BATCH_SIZE"]), "NEGATIVES_A_QUERY": 1}
        values = values | blocks | _options(objective, "contrastive") | given
    if "NUM_TRAINING_STEPS" not in given:
        values["NUM_TRAINING_STEPS"] = max(values["NUM_TRAINING_STEPS"], values["STEPS"])
    elif "STEPS" not in given:
        values["STEPS"] = min(values["STEPS"], values["NUM_TRAINING_STEPS"])
    return {name: Choice(values[name], "as published") for name in NAMES if name not in given}


def choose(size: Size, given: Mapping[str, Value], objective: str = "idro") -> dict[str, Choice]:
    """The values of what is not `given`, by size, for training with this kind of objective.

    Numbers of steps and of samples are at least 1, and there is never less than a step.
    """
    choices: dict[str, Choice] = {}

    def settle(name: str, value: Value, why: str) -> Value:
        if name in given:
            return given[name]
        choices[name] = Choice(value, why)
        return value

    blocks = size.declared and given.get("QUERIES_TOGETHER") != 0
    made = "made for vectors" if size.declared else "not made for vectors yet"
    loss = settle("LOSS", "contrastive" if blocks else "pairwise", f"for an encoder that is {made}")
    contrasts = loss == "contrastive"
    of_loss = f"for a {loss} loss"
    samples = min(max(8 * round(sqrt(size.queries) / 16), 16), 512)
    share = given.get("BATCH_SIZE") or ceil(samples / size.processes)
    large = share >= TOGETHER and share * size.processes >= 2 * TOGETHER
    block = min(TOGETHER if large else TOGETHER // 2, given.get("BATCH_SIZE", TOGETHER))
    together = settle("QUERIES_TOGETHER", block * contrasts, of_loss)
    a_query = settle("NEGATIVES_A_QUERY", int(contrasts), of_loss)
    for name, value in _options(objective, loss).items():
        settle(name, value, of_loss)
    settle("MAX_RELATIVE_SCORE", OFF, "no gain was seen with a filter")

    negatives = settle("NEGATIVES", min(5, given.get("TOPK", 5)), "one a query in each pass")
    # Of few passages the upper half holds no hard negatives, whatever their number.
    ranks = min(max(round(sqrt(2 * size.passages)), 4 * negatives), max(200, 4 * negatives), size.passages // 2)
    settle("TOPK", max(1, ranks), f"of {size.passages:,} passages")

    batch, accumulation = _batch(samples, size, given, together if contrasts else 1)
    step = batch * accumulation * size.processes
    unit = "lines" if contrasts else "triplets"
    meaning = f"{step:,} {unit} a step in all, by the number of queries"
    settle("BATCH_SIZE", batch, meaning)
    settle("ACCUMULATION", accumulation, meaning)
    clusters = min(round(sqrt(size.queries) / 4), 50, step // 2)
    settle("CLUSTERS", max(1, min(max(clusters, 2), size.queries)), "by the number of queries")

    episodes = settle("EPISODES", 2 if size.declared else 3, f"from an encoder that is {made}")
    passes = ceil(negatives / a_query) if a_query else MINED_PASSES
    steps, why = _steps(size, size.queries * (passes if contrasts else negatives), passes, step, unit)
    if "NUM_TRAINING_STEPS" in given:
        steps = min(steps, given["NUM_TRAINING_STEPS"])
    steps = settle("STEPS", steps, why)
    settle("WARMUP_STEPS", min(ceil(steps / 10), steps - 1), "a tenth of the steps")
    settle("NUM_TRAINING_STEPS", steps, "an episode's learning rate ends at 0")
    settle("TOTAL_TRAINING_STEPS", episodes * steps, "the peaks of the episodes fall over the run")
    settle("SAVE_STEPS", min(max(ceil(steps / 2), 20), 5_000), "half an episode, from 20 to 5,000")

    optimizer = settle("OPTIMIZER", "adamW", "needs fewer steps than LAMB")
    few = size.declared and size.queries < FEW_QUERIES
    why = f"of an encoder {size.width:,} wide" + ", less for few queries" * few
    settle("LEARNING_RATE", _learning_rate(size, optimizer), why)
    return choices


def _options(objective: str, loss: str) -> dict[str, Value]:
    """The options of an objective with this loss: the steps of a contrastive one hold few of the clusters."""
    if objective == "idro" and loss == "contrastive":
        return {"ABSENT": "keep", "NORMALIZE_WEIGHTS": 1}
    return {"ABSENT": "drop", "NORMALIZE_WEIGHTS": 0}


def _batch(samples: int, size: Size, given: Mapping[str, Value], block: int) -> tuple[int, int]:
    """Samples a process and backward pass, whole blocks of them, and passes a step, for about so many in all."""
    share = ceil(samples / size.processes)
    largest = PUBLISHED["base" if size.width <= 768 else "large"]["BATCH_SIZE"]  # which is known to fit
    accumulation = given.get("ACCUMULATION") or ceil(share / given.get("BATCH_SIZE", largest))
    batch = given.get("BATCH_SIZE") or block * max(1, round(min(ceil(share / accumulation), largest) / block))
    return batch, accumulation


def _steps(size: Size, mined: int, passes: int, step: int, unit: str) -> tuple[int, str]:
    """Steps of `step` samples an episode, and how much that is of a mined file of `mined` of them in `passes`."""
    wanted = ceil(mined / passes) if size.declared else mined
    steps, most = ceil(wanted / step), ceil(mined / step)
    least = min(60, most)
    if steps < least:
        return least, f"at least 60, or the mined file once: {mined:,} {unit}, {step:,} a step"
    part = "a pass over the queries" if size.declared else "the mined file once"
    return steps, f"{part}: {wanted:,} {unit}, {step:,} a step"


def _learning_rate(size: Size, optimizer: str) -> float:
    """The peak, to two digits.

    LAMB's is relative to the size of the weights, whose standard deviation is about 1 / 25 in these encoders.
    """
    narrower = min(1.0, 384 / size.width)
    if size.declared:
        rate = 5e-5 * narrower * min(1.0, max(0.4, sqrt(size.queries / FEW_QUERIES)))
    else:
        rate = 1e-4 * narrower**2
    rate *= 25 if optimizer == "lamb" else 1
    return float(f"{rate:.1e}")
