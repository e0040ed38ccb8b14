"""What mining dropped and kept, with its texts, for a person to judge. Nothing is scored here."""

from collections.abc import Iterable
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

from data.source_texts import Texts
from utils.runtime.errors import InputError
from utils.stores.episode import newest_episode, read_result
from utils.stores.mined_examples import MinedExample, Scored, read_examples
from utils.stores.run_folder import RunFolder
from utils.stores.token_store import TokenStore

CHARACTERS = 500  # of a passage; of a query, which is a heading, fewer
QUERY_CHARACTERS = 200


@dataclass(frozen=True)
class ShownExample:
    """A query's text, and passages as (what each is, score, text): the positive, negatives, what filters dropped.

    `left_out` counts what was dropped and is not among them.
    """

    query: str
    passages: list[tuple[str, float, str]]
    left_out: int


def filtered_episodes(run: RunFolder) -> list[tuple[int, dict[str, Any]]]:
    """The number of each episode that was mined with filters, and what `ann_ndcg_N` says of them."""
    results = run.path / "results"
    found = ((number, read_result(results, number)) for number in range(newest_episode(results) + 1))
    return [(number, result["filters"]) for number, result in found if "filters" in result]


def shown_examples(run: RunFolder, number: int) -> list[ShownExample]:
    """The examples of an episode; `InputError` where it has none, or their texts are not there as tokenized."""
    stores = [TokenStore(run.tokens / name) for name in ("train-query", "passages")]
    examples = read_examples(run.path / "ann_data", run.path / "results", number, *map(len, stores))
    if examples is None:
        raise InputError(f"episode {number + 1} was mined by a version that kept none")
    queries = _read(Texts(stores[0], run.data_dir, selected=True), (example.query for example in examples))
    shown = (each.passage for example in examples for each in _passages(example))
    passages = _read(Texts(stores[1], run.data_dir), shown)

    def lines(name: str, found: Iterable[Scored]) -> list[tuple[str, float, str]]:
        return [
            (
                f"{name} {each.filter}".strip(),
                each.score,
                shorten(passages[each.passage], CHARACTERS, placeholder=" …"),
            )
            for each in found
        ]

    return [
        ShownExample(
            shorten(queries[example.query], QUERY_CHARACTERS, placeholder=" …"),
            [
                *lines("positive" if example.positives == 1 else "lowest positive", [example.positive]),
                *lines("negative", example.kept),
                *lines("dropped by", example.dropped),
            ],
            example.all_dropped - len(example.dropped),
        )
        for example in examples
    ]


def why_left_out(error: InputError, run: RunFolder) -> str:
    """The reason without the folders of this machine."""
    reason = str(error)
    for folder in (run.data_dir, run.path):
        reason = reason.replace(f"{folder}/", "")
    return reason


def _passages(example: MinedExample) -> list[Scored]:
    return [example.positive, *example.kept, *example.dropped]


def _read(texts: Texts, rows: Iterable[int]) -> dict[int, str]:
    ordered = sorted(set(rows))
    return {row: text.whole for row, text in zip(ordered, texts.read(ordered), strict=True)}
