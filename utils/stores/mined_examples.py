"""Examples beside a mined file, for a person to judge: what was mined for a few queries, and what was dropped.

    OUTPUT_DIR/ann_training_examples_N.json

Rows and scores alone: evaluate/report.py shows the texts. The queries are a seeded sample, the same in every episode.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils.runtime.errors import InputError
from utils.stores.episode import read_result, result_file
from utils.stores.files import check_sha256, read_json, sha256_of_file, write_json


@dataclass(frozen=True)
class Scored:
    """A passage row and its score for the query; `filter` is the name of the one that dropped it."""

    passage: int
    score: float
    filter: str = ""


@dataclass(frozen=True)
class MinedExample:
    """A query row; of its `positives`, which are counted, the one that scores lowest; passages, best score first.

    `kept` are the hardest of the negatives that were drawn, `dropped` the best of the candidates that filters took:
    of `all_dropped` in all.
    """

    query: int
    positives: int
    positive: Scored
    kept: list[Scored]
    dropped: list[Scored]
    all_dropped: int


def examples_file(output_dir: str | Path, number: int) -> Path:
    return Path(output_dir) / f"ann_training_examples_{number}.json"


def write_examples(output_dir: str | Path, number: int, examples: Sequence[MinedExample]) -> str:
    """Writes the examples of an episode and returns the file's SHA-256, for `ann_ndcg_N`."""
    path = examples_file(output_dir, number)
    write_json(path, {"queries": [asdict(example) for example in examples]})
    return sha256_of_file(path)


def read_examples(
    output_dir: str | Path, result_dir: str | Path, number: int, query_count: int, passage_count: int
) -> list[MinedExample] | None:
    """The examples of an episode that is ready, None where a version without them mined it.

    `InputError` where the file is not as it was written, or names rows outside stores of that many.
    """
    digest, path = read_result(result_dir, number).get("examples_sha256"), examples_file(output_dir, number)
    if digest is None:
        return None
    cure = f"remove {result_file(result_dir, number)} and mine the episode again"
    check_sha256(path, digest, cure)
    try:
        examples = [_example(content, query_count, passage_count) for content in read_json(path, cure)["queries"]]
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"does not hold examples ({type(error).__name__}: {error}); {cure}", path) from None
    return examples


def _example(content: dict[str, Any], queries: int, passages: int) -> MinedExample:
    """`ValueError`, `KeyError` or `TypeError` for what is none."""
    counts = [_whole(content[name], 2**53) for name in ("positives", "all_dropped")]
    lists = ([_scored(each, passages) for each in content[name]] for name in ("kept", "dropped"))
    return MinedExample(
        _whole(content["query"], queries), counts[0], _scored(content["positive"], passages), *lists, counts[1]
    )


def _scored(content: dict[str, Any], passages: int) -> Scored:
    score, by = content["score"], content["filter"]
    if not isinstance(score, float) or not math.isfinite(score) or not isinstance(by, str):
        raise ValueError(f"{content!r:.80} is no passage with its score")
    return Scored(_whole(content["passage"], passages), score, by)


def _whole(value: object, limit: int) -> int:
    if type(value) is not int or not 0 <= value < limit:
        raise ValueError(f"{value!r:.40} is no number below {limit}")
    return value
