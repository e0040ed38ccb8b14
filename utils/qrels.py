"""Relevance judgments by row: which passage rows are judged for which query rows, and how relevant."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import atomic_file, read_lines, split_fields
from utils.token_store import TokenStore

LARGEST_GRADE = 2**31 - 1  # above and below 0: trec_eval's integers


@dataclass(frozen=True)
class Qrels:
    """Judgments, sorted by query row, then passage row: three int64 arrays of one length.

    A passage is relevant to a query where `relevance` is above 0.
    """

    query_rows: np.ndarray
    passage_rows: np.ndarray
    relevance: np.ndarray

    def __len__(self) -> int:
        return len(self.query_rows)

    @cached_property
    def positives(self) -> dict[int, np.ndarray]:
        """Query row → its relevant passage rows, ascending; only queries that have one."""
        relevant = self.relevance > 0
        queries, passages = self.query_rows[relevant], self.passage_rows[relevant]
        rows, starts = np.unique(queries, return_index=True)
        return dict(zip(rows.tolist(), np.split(passages, starts[1:]), strict=True)) if len(rows) else {}


def write_qrels(path: str | Path, judgments: Iterable[tuple[int, int, int]]) -> None:
    """Writes (query row, passage row, relevance) lines in ascending order, atomically."""
    with atomic_file(path) as handle:
        handle.writelines(f"{query}\t{passage}\t{grade}\n" for query, passage, grade in sorted(judgments))


def read_qrels(path: str | Path, query_count: int, passage_count: int) -> Qrels:
    """Reads what `write_qrels` wrote; raises `InputError` for a row outside the stores or a judgment given twice."""
    rows = []
    for number, line in read_lines(path):
        try:
            query, passage, grade = map(int, split_fields(line, 3, path, number))
        except ValueError:
            raise InputError(f"expected three whole numbers, found {line[:80]!r}", path, number) from None
        if not (0 <= query < query_count and 0 <= passage < passage_count):
            raise InputError(
                f"query row {query} or passage row {passage} is outside the token stores ({query_count} queries, "
                f"{passage_count} passages); the file belongs to other stores: tokenize again",
                path,
                number,
            )
        if abs(grade) > LARGEST_GRADE:
            raise InputError(f"the relevance {grade} is out of range; tokenize again", path, number)
        rows.append((query, passage, grade))
    table = np.array(sorted(rows), dtype=np.int64)
    if len(table) > 1 and (np.diff(table[:, :2], axis=0) == 0).all(axis=1).any():
        raise InputError("judges a query and passage twice; tokenize again", path)
    return Qrels(table[:, 0], table[:, 1], table[:, 2])


def check_positives(qrels: Qrels, query_count: int, path: str | Path) -> None:
    """`InputError` where a query row below `query_count` has no relevant passage in `qrels`, read from `path`."""
    counts = np.bincount(qrels.query_rows[qrels.relevance > 0], minlength=query_count)[:query_count]
    without = np.flatnonzero(counts == 0)
    if len(without):
        raise InputError(
            f"{len(without)} of {query_count} training queries have no relevant passage, query row {without[0]} the "
            "first; the file belongs to other token stores: tokenize again",
            path,
        )


def read_train_and_dev_qrels(data_dir: str | Path) -> tuple[Qrels, Qrels]:
    """The judgments beside the token stores in `data_dir`; every training query must have a relevant passage."""
    folder = Path(data_dir)
    train_rows, dev_rows, passage_rows = (
        len(TokenStore(folder / name)) for name in ("train-query", "dev-query", "passages")
    )
    train = read_qrels(folder / "train-qrel.tsv", train_rows, passage_rows)
    check_positives(train, train_rows, folder / "train-qrel.tsv")
    return train, read_qrels(folder / "dev-qrel.tsv", dev_rows, passage_rows)
