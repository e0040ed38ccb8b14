"""Relevance judgments by row: which passage rows are judged for which query rows, and how relevant.

    NAME-qrel.tsv       query row, passage row, relevance
    NAME-missing.txt    the ids of judged passages that the collection lacks, a line each; their rows are those from
                        the number of passages on. Where none is missing, there is no such file

Missing passages are relevant and never found: they count in the metrics, as in trec_eval, and are never trained on.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.files import atomic_file, read_lines, split_fields
from utils.stores.token_store import TokenStore

BLOCK_JUDGMENTS = 65_536  # made into Python's numbers together
LARGEST_GRADE = 2**31 - 1  # above and below 0: trec_eval's integers


@dataclass(frozen=True)
class Qrels:
    """Judgments, sorted by query row, then passage row: three int64 arrays of one length.

    A passage is relevant to a query where `relevance` is above 0. Rows from the number of passages on are of passages
    that the collection lacks.
    """

    query_rows: np.ndarray
    passage_rows: np.ndarray
    relevance: np.ndarray

    @classmethod
    def of(cls, judgments: Iterable[tuple[int, int, int]]) -> "Qrels":
        """From (query row, passage row, relevance), in any order."""
        return cls.by_row(*np.array(list(judgments), dtype=np.int64).reshape(-1, 3).T)

    @classmethod
    def by_row(cls, query_rows: np.ndarray, passage_rows: np.ndarray, relevance: np.ndarray) -> "Qrels":
        """From three columns of whole numbers (n,), in any order."""
        order = np.lexsort((relevance, passage_rows, query_rows))
        return cls(*(column[order].astype(np.int64, copy=False) for column in (query_rows, passage_rows, relevance)))

    def __len__(self) -> int:
        return len(self.query_rows)

    def __iter__(self) -> Iterator[tuple[int, int, int]]:
        """(query row, passage row, relevance) of each judgment, as Python's numbers."""
        columns = self.query_rows, self.passage_rows, self.relevance
        for start in range(0, len(self), BLOCK_JUDGMENTS):
            block = slice(start, start + BLOCK_JUDGMENTS)
            yield from zip(*(column[block].tolist() for column in columns), strict=True)

    def only(self, kept: np.ndarray) -> "Qrels":
        """Those that `kept`, bool (judgments,), marks."""
        return Qrels(self.query_rows[kept], self.passage_rows[kept], self.relevance[kept])

    def within(self, passage_count: int) -> "Qrels":
        """Those of the passages that the collection holds: what can be trained on."""
        return self.only(self.passage_rows < passage_count)

    @cached_property
    def positives(self) -> dict[int, np.ndarray]:
        """Query row → its relevant passage rows, ascending, missing ones too; only queries that have one."""
        relevant = self.relevance > 0
        queries, passages = self.query_rows[relevant], self.passage_rows[relevant]
        rows, starts = np.unique(queries, return_index=True)
        return dict(zip(rows.tolist(), np.split(passages, starts[1:]), strict=True)) if len(rows) else {}


def write_qrels(path: str | Path, qrels: Qrels) -> None:
    """Writes (query row, passage row, relevance) lines in ascending order, atomically."""
    with atomic_file(path) as handle:
        handle.writelines(f"{query}\t{passage}\t{grade}\n" for query, passage, grade in qrels)


def missing_file(qrel_path: str | Path) -> Path:
    """Where the ids of missing passages stand beside NAME-qrel.tsv."""
    path = Path(qrel_path)
    return path.with_name(f"{path.name.removesuffix('-qrel.tsv')}-missing.txt")


def write_missing_ids(qrel_path: str | Path, ids: Sequence[str]) -> None:
    """Writes the ids of missing passages, in the order of their rows, atomically; call it before `write_qrels`."""
    path = missing_file(qrel_path)
    if not ids:
        path.unlink(missing_ok=True)
        return
    with atomic_file(path) as handle:
        handle.writelines(f"{text_id}\n" for text_id in ids)


def read_missing_ids(qrel_path: str | Path) -> list[str]:
    """The ids of missing passages, in the order of their rows."""
    path = missing_file(qrel_path)
    return [text_id for _, text_id in read_lines(path)] if path.exists() else []


def read_qrels(path: str | Path, query_count: int, passage_count: int) -> Qrels:
    """Reads what `write_qrels` wrote, with the judgments of missing passages.

    Raises `InputError` for a row outside the stores that is no missing passage's, or a judgment given twice.
    """
    missing = len(read_missing_ids(path))
    columns = array("q"), array("q"), array("q")
    for number, line in read_lines(path):
        try:
            query, passage, grade = map(int, split_fields(line, 3, path, number))
        except ValueError:
            raise InputError(f"expected three whole numbers, found {line[:80]!r}", path, number) from None
        if not (0 <= query < query_count and 0 <= passage < passage_count + missing):
            raise InputError(
                f"query row {query} or passage row {passage} is outside the token stores ({query_count} queries, "
                f"{passage_count} passages and {missing} missing ones); the file belongs to other stores: tokenize "
                "again",
                path,
                number,
            )
        if abs(grade) > LARGEST_GRADE:
            raise InputError(f"the relevance {grade} is out of range; tokenize again", path, number)
        for column, value in zip(columns, (query, passage, grade), strict=True):
            column.append(value)
    qrels = Qrels.by_row(*(np.frombuffer(column, dtype=np.int64) for column in columns))
    if ((np.diff(qrels.query_rows) == 0) & (np.diff(qrels.passage_rows) == 0)).any():
        raise InputError("judges a query and passage twice; tokenize again", path)
    return qrels


def say_missing(qrels: Qrels, passage_count: int, name: str) -> None:
    """Says of the judgments of `name` how many are of missing passages, if any, and which queries have no others."""
    relevant = qrels.only(qrels.relevance > 0)
    missing = len(relevant) - len(relevant.within(passage_count))
    if not missing:
        return
    queries, left = (len(np.unique(of.query_rows)) for of in (relevant, relevant.within(passage_count)))
    say(
        f"{name}: the collection lacks the passages of {missing:,} of {len(relevant):,} relevant judgments; they "
        f"count as never found, and {queries - left:,} of {queries:,} queries, which have no others, with 0"
    )


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
    """The judgments beside the token stores in `data_dir`: of training, those of passages that the collection holds.

    Every training query must have a relevant passage.
    """
    folder = Path(data_dir)
    train_rows, dev_rows, passage_rows = (
        len(TokenStore(folder / name)) for name in ("train-query", "dev-query", "passages")
    )
    train = read_qrels(folder / "train-qrel.tsv", train_rows, passage_rows).within(passage_rows)
    check_positives(train, train_rows, folder / "train-qrel.tsv")
    return train, read_qrels(folder / "dev-qrel.tsv", dev_rows, passage_rows)
