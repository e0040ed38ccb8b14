"""Ours by the real scripts, run in this process: token stores, mining, training, and the evaluation of any model.

A contender is a loss (`model.losses.LOSSES`) and an objective (`model.dro.OBJECTIVES`), as LOSS+OBJECTIVE:
pairwise+idro, contrastive+idro+keep+normalized. What the scripts are told is here and nowhere else.
"""

import math
import runpy
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from evaluate.benchmarks.watched_work import Work, watch
from evaluate.metrics_file import read_metrics, read_per_query
from model.dro import OBJECTIVES
from model.losses import LOSSES
from model.reading import AUTO
from utils.runtime.errors import InputError
from utils.samples import Blocks
from utils.stores.checkpoint import newest_checkpoint

OPTIONS = {"keep": ["--absent", "keep"], "normalized": ["--normalize_weights", "true"]}
WARMUP_SHARE = 0.1
MEASURE = "ndcg@10"
ROOT = Path(__file__).resolve().parents[2]


def call(script: str, flags: Sequence[object]) -> Work:
    """Runs a script's main in this process, with these flags; loading the script is not watched."""
    main = runpy.run_path(str(ROOT / script))["main"]
    with patch.object(sys, "argv", [script, *map(str, flags)]):
        return watch(main)


@dataclass(frozen=True)
class Contender:
    """A loss and an objective, by their names."""

    loss: str
    objective: str

    @classmethod
    def of(cls, name: str) -> "Contender":
        """`InputError` where there is no such loss or objective."""
        loss, _, objective = name.partition("+")
        if loss not in LOSSES or objective not in OBJECTIVES:
            raise InputError(
                f"the contender {name!r} is not LOSS+OBJECTIVE; losses: {', '.join(LOSSES)}; objectives: "
                f"{', '.join(OBJECTIVES)}"
            )
        return cls(loss, objective)


@dataclass(frozen=True)
class OwnRecipe:
    """What the scripts are told. `device_flags` say where they compute and how precisely.

    `stores` are the token stores of the training collection. `queries_together` and `negatives_a_query` are of
    losses over blocks; `max_relative_score` of all, 0: no filter. `samples` a step; `batch_size` texts are encoded at
    once at most.
    """

    checkpoint: str
    stores: Path
    max_seq_length: int
    max_query_length: int
    topk: int
    negatives: int
    max_relative_score: float
    clusters: int
    queries_together: int
    negatives_a_query: int
    samples: int
    batch_size: int
    device_flags: tuple[str, ...]

    @property
    def lengths(self) -> list[object]:
        return ["--max_seq_length", self.max_seq_length, "--max_query_length", self.max_query_length]

    def tokenize(self, layout: str, raw: Path, stores: Path, in_use: bool = False) -> Work:
        """Makes token stores of a collection in MS MARCO's layout (msmarco) or BEIR's (beir).

        Those that are there stay; ones of other texts are refused where they are `in_use`, and else replaced.
        """
        flags = ["--data_dir", raw, "--out_data_dir", stores, *self.lengths, "--in_use", in_use]
        flags += ["--model_type", AUTO, "--model_name_or_path", self.checkpoint]
        return call(f"data/{layout}_data.py", flags)

    def mine(self, loss: str, folder: Path, embeddings: Path, seed: int) -> Work:
        """Mines the next episode of the run in `folder`; `embeddings` has the initial checkpoint's, or gets them."""
        flags = [
            *("--data_dir", self.stores, "--output_dir", folder / "ann_data", "--training_dir", folder / "models"),
            *("--model_type", AUTO, "--init_model_dir", self.checkpoint, "--public_ann_data_dir", embeddings),
            *("--topk_training", self.topk, "--negative_sample", self.negatives, "--seed", seed),
            *("--cluster_query", "--cluster_centroids", self.clusters, "--group", 1),
            *("--per_gpu_eval_batch_size", self.batch_size, *self.lengths, *self.device_flags),
        ]
        if self.max_relative_score:
            flags += ["--max_relative_score", self.max_relative_score]
        if LOSSES[loss].samples is Blocks:
            flags += ["--queries_together", self.queries_together, "--negatives_a_query", self.negatives_a_query]
        return call("drivers/run_ann_data_gen.py", flags)

    def train(
        self, contender: Contender, folder: Path, episode: int, episodes: int, steps: int, rate: float, seed: int
    ) -> Work:
        """Trains an episode of `steps` steps of the run in `folder`, of so many in all."""
        flags = [
            *("--data_dir", self.stores, "--ann_dir", folder / "ann_data", "--output_dir", folder / "models"),
            *("--model_type", AUTO, "--init_model_dir", self.checkpoint, "--round", episode, "--seed", seed),
            *("--max_steps", steps, "--num_training_steps", steps, "--total_training_steps", episodes * steps),
            *("--warmup_steps", math.ceil(WARMUP_SHARE * steps), "--optimizer", "adamW", "--learning_rate", rate),
            *("--per_gpu_train_batch_size", self.samples, *self.lengths, *self.device_flags),
            *("--loss", contender.loss),
        ]
        if contender.objective != "erm":
            kind, *options = contender.objective.split("+")
            flags += ["--group", 1, "--n_groups", self.clusters, "--dro_type", kind]
            flags += [flag for name in options for flag in OPTIONS[name]]
        return call("drivers/run_ann.py", flags)

    def run(
        self, contender: Contender, folder: Path, embeddings: Path, episodes: int, steps: int, rate: float, seed: int
    ) -> list[Work]:
        """Mines and trains in turn, as many of the `steps` an episode: the work of mining, training, mining …"""
        works = []
        for episode in range(episodes):
            works.append(self.mine(contender.loss, folder, embeddings, seed))
            works.append(self.train(contender, folder, episode, episodes, steps // episodes, rate, seed))
        return works

    def trained(self, folder: Path) -> Path:
        """The last checkpoint of the run in `folder`."""
        return newest_checkpoint(folder / "models")

    def evaluate(self, model: Path | str, stores: Path, split: str, folder: Path) -> tuple[dict[str, float], bool]:
        """The nDCG@10 of each query that is judged, by its id, and whether the model has collapsed."""
        flags = [
            *("--model_type", AUTO, "--model_name_or_path", model, "--data_dir", stores, "--split", split),
            *("--out_dir", folder, "--per_gpu_eval_batch_size", self.batch_size),
            *self.device_flags,
        ]
        call("evaluate/evaluate_beir.py", flags)
        values = read_per_query(folder / "per_query.json")
        collapsed = read_metrics(folder / "metrics.json").collapsed
        return {query: of_query[MEASURE] for query, of_query in values.items()}, collapsed
