"""Says what a run trains with, where nobody said: by its training queries and its encoder (model/hyperparameters.py).

    python drivers/choose_settings.py --model_name_or_path CHECKPOINT --data_dir OUT/preprocessed
    python drivers/choose_settings.py --model_name_or_path CHECKPOINT --data_dir OUT/preprocessed --batch_size 8

Flags are named as run_ance.sh's settings: what is given stays, and the others are chosen around it. FILE of
--settings_file gets a line NAME=value for each of them, and BY_SIZE: 0 where the published hyperparameters hold, from
400,000 training queries on with an encoder that comes without a reading of its own (or is read as a published type).
Weights and texts are not read. Where the number of processes is not known, have the launcher start it in all of them.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from model.dro import OPTIONS
from model.hyperparameters import NAMES, PUBLISHED, Choice, Size, Value, choose, choose_published
from model.losses import LOSSES
from model.reading import AUTO, declared_reading
from utils.runtime.arguments import check_at_least_one, check_at_least_zero, option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import say
from utils.stores.files import atomic_file
from utils.stores.pretrained import pretrained_config
from utils.stores.token_store import TokenStore

NOT_COUNTS = ("LOSS", "ABSENT", "MAX_RELATIVE_SCORE", "OPTIMIZER", "LEARNING_RATE")
FROM_ZERO = ("QUERIES_TOGETHER", "NEGATIVES_A_QUERY", "NORMALIZE_WEIGHTS", "WARMUP_STEPS")


@dataclass(kw_only=True)
class Arguments:
    model_name_or_path: str = required("the checkpoint to begin with: a folder or a hub name")
    data_dir: str = required("token stores, as data/beir_data.py or data/msmarco_data.py writes them")
    model_type: str = option(AUTO, "auto: the checkpoint's own files say how it is read, if there are any")
    cache_dir: str = option("", "where models from the hub are kept")
    model_size: str = option("base", "base or large: the published values that differ")
    processes: int = option(0, "processes that train; 0: as many as run this script")
    by_size: int | None = option(None, "1: by size, 0: as published (default: by the number of training queries)")
    loss: str | None = option(None, "pairwise or contrastive")
    queries_together: int | None = option(None, "queries of a block, for a contrastive loss")
    negatives_a_query: int | None = option(None, "negatives of a query in a pass; 0: by the number of passes")
    max_relative_score: str | None = option(None, "filter of negatives: a share of the positive's score, or off")
    objective: str = option("idro", "idro, dro-greedy, balanced or erm")
    absent: str | None = option(None, "what becomes of absent clusters' weights: drop or keep")
    normalize_weights: int | None = option(None, "1: a step's coefficients sum to 1")
    topk: int | None = option(None, "passages ranked per training query")
    negatives: int | None = option(None, "negatives drawn from them")
    clusters: int | None = option(None, "clusters of the training queries")
    episodes: int | None = option(None, "rounds of mining and training")
    steps: int | None = option(None, "optimizer steps per episode")
    batch_size: int | None = option(None, "samples per process and pass")
    accumulation: int | None = option(None, "passes per step")
    optimizer: str | None = option(None, "lamb or adamW")
    learning_rate: float | None = option(None, "peak of the first episode")
    warmup_steps: int | None = option(None, "steps of linear warm-up")
    num_training_steps: int | None = option(None, "the episode's step at which its learning rate is down to 0")
    total_training_steps: int | None = option(None, "the run's step by which the peaks of the episodes fall")
    save_steps: int | None = option(None, "steps between checkpoints")
    settings_file: str = option("", "where the settings go (default: nowhere)")

    def __post_init__(self) -> None:
        if self.model_size not in PUBLISHED:
            raise InputError(f"--model_size {self.model_size!r} is unknown; there are {', '.join(PUBLISHED)}")
        if self.loss not in (None, *LOSSES):
            raise InputError(f"--loss {self.loss!r} is unknown; there are {', '.join(LOSSES)}")
        if self.objective not in OPTIONS:
            raise InputError(f"--objective {self.objective!r} is unknown; there are {', '.join(OPTIONS)}")
        if self.loss == "contrastive" and self.queries_together == 0:
            raise InputError(
                "--loss contrastive and --queries_together 0: there are no blocks whose passages it takes"
            )
        check_at_least_one(self, *(name.lower() for name in self.given if name not in (*NOT_COUNTS, *FROM_ZERO)))
        check_at_least_zero(self, *(name.lower() for name in self.given if name in FROM_ZERO))
        self.processes = self.processes or int(os.environ.get("WORLD_SIZE", 1))

    @property
    def given(self) -> dict[str, Value]:
        """The settings that are given, by their names in run_ance.sh."""
        values = {name: getattr(self, name.lower()) for name in NAMES}
        return {name: value for name, value in values.items() if value is not None}


def read_size(args: Arguments) -> Size:
    """Counts the rows of the token stores and asks the checkpoint's configuration."""
    queries, passages = (len(TokenStore(Path(args.data_dir, name))) for name in ("train-query", "passages"))
    cache_dir = args.cache_dir or None
    reading = declared_reading(args.model_name_or_path, cache_dir) if args.model_type == AUTO else None
    width = pretrained_config(args.model_name_or_path, cache_dir).hidden_size
    return Size(queries, passages, width, reading is not None, args.processes)


def text_of(value: Value) -> str:
    """A setting's value as a person would write it: 1e-4, not 0.0001."""
    if isinstance(value, float):
        digits, power = f"{value:.1e}".split("e")
        return f"{digits.removesuffix('.0')}e{int(power)}"
    return str(value)


def report(size: Size, choices: dict[str, Choice]) -> list[str]:
    """What was chosen, and why: a line for all that have a reason in common."""
    reading = "is made for vectors already" if size.declared else "has no reading of its own"
    lines = [
        f"chosen for {size.queries:,} training queries, {size.passages:,} passages and an encoder of width "
        f"{size.width:,} that {reading} (docs/running.md, Defaults by size); each can be set:"
    ]
    reasons: dict[str, list[str]] = {}
    for name, (value, why) in choices.items():
        reasons.setdefault(why, []).append(f"{name} {text_of(value)}")
    return lines + [f"  {', '.join(settings)}: {why}" for why, settings in reasons.items()]


def main() -> None:
    args = parse(Arguments, __doc__)
    if int(os.environ.get("RANK", 0)):
        return  # the first process says it and writes it
    size, given = read_size(args), args.given
    by_size = not size.is_published if args.by_size is None else bool(args.by_size)
    choices = (
        choose(size, given, args.objective) if by_size else choose_published(args.model_size, given, args.objective)
    )
    if choices:
        say("\n".join(report(size, choices)))
    if args.settings_file:
        with atomic_file(args.settings_file) as handle:
            handle.write(f"BY_SIZE={int(by_size)}\n")
            handle.writelines(f"{name}={text_of(choice.value)}\n" for name, choice in choices.items())


if __name__ == "__main__":
    run(main)
