"""Pairs and triplets in named columns, as users of sentence-transformers have them.

    {"query": "how do I sort a list", "positive": "Return a new sorted list.", "negative": "Reverse in place."}

A row is (query, positive) or (query, positive, negative …). Files are JSON lines, CSV, TSV or parquet; a folder holds
train.jsonl and, where there are, dev.jsonl and test.jsonl, or the like. Columns are known by their names, or given in
their order. A cell may be a list of texts, and a negative's may be empty. Equal texts are one query or one passage.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.layouts.records import Example, Options, Passage, Place, Query, checked_text
from data.layouts.rows import Row, SplitFiles, first_row, split_files
from utils.runtime.errors import InputError
from utils.runtime.logs import say

QUERY_COLUMNS = ("anchor", "query", "question")
POSITIVE_COLUMNS = ("positive", "positives", "answer", "answers", "passage", "document")
NEGATIVE_COLUMN = re.compile(r"(hard_)?negatives?([_ ]?\d+)?")
LABEL_COLUMNS = ("label", "labels", "score", "scores", "similarity_score")


def plain(name: str) -> str:
    """A column's name as it is compared: without blanks around it, in lower case."""
    return name.strip().lower()


def find_column(names: Sequence[str], wanted: Sequence[str]) -> str | None:
    """The first of the `wanted` names that is among `names`, as it stands there."""
    by_name = {plain(name): name for name in names}
    return next((by_name[name] for name in wanted if name in by_name), None)


class Columns:
    """Which columns hold the query, the positive and the negatives. Neither case nor blanks around names count.

    `given` are their names in this order; without, they are known among `names`, those of the first row. `InputError`
    with `path` where that cannot be told. JSON lines may name negatives that the first row lacks.
    """

    def __init__(self, names: Sequence[str], given: Sequence[str], path: Path | str) -> None:
        self._path, self._given = path, bool(given)
        if given:
            columns = [name if name in names else find_column(names, [plain(name)]) for name in given]
            if len(given) < 2 or None in columns:
                absent = f"has no column {given[columns.index(None)]!r}" if None in columns else ""
                found = absent or "--pair_columns names the query alone"
                raise InputError(f"{found}; --pair_columns QUERY,POSITIVE[,NEGATIVE…] of: {', '.join(names)}", path)
            self.query, self.positive, *self.negatives = columns
            return
        query, positive = (find_column(names, of) for of in (QUERY_COLUMNS, POSITIVE_COLUMNS))
        if query is None or positive is None:
            raise InputError(
                f"has the columns {', '.join(map(repr, names)) or '(none)'}: say which are meant, by "
                f"--pair_columns QUERY,POSITIVE[,NEGATIVE…]. Known by their names are a query "
                f"({', '.join(QUERY_COLUMNS)}), a positive ({', '.join(POSITIVE_COLUMNS)}) and negatives (negative, "
                "negative_1, …)",
                path,
            )
        self.query, self.positive, self.negatives = query, positive, []
        self._known = {query, positive}
        self._meet(names)

    def _meet(self, names: Sequence[str]) -> None:
        """Takes the columns of a row that are new; `InputError` for one that says which pairs are none."""
        new = [name for name in names if name not in self._known]
        if label := find_column(new, LABEL_COLUMNS):
            raise InputError(
                f"has a column {label!r}: where pairs carry a label or a score, not all are a query and its "
                "answer. Keep the rows of those that are, without that column; or name the columns that count: "
                f"--pair_columns {self.query},{self.positive}",
                self._path,
            )
        self._known.update(new)
        self.negatives += [name for name in new if NEGATIVE_COLUMN.fullmatch(plain(name))]
        if others := [name for name in new if name not in self.negatives]:
            say(f"{self._path}: columns that are left out: {', '.join(others)}")

    @staticmethod
    def are_among(names: Sequence[str]) -> bool:
        """Whether a query and a positive can be told among these columns."""
        return None not in (find_column(names, QUERY_COLUMNS), find_column(names, POSITIVE_COLUMNS))

    def example(self, split: str, row: Row, place: Place) -> Example:
        """The row as an example; `InputError` where a text is missing or none."""
        if not (self._given or row.keys() <= self._known):
            self._meet([*row])
        query = Query(None, checked_text(row.get(self.query), self.query, place))
        positives = [Passage(None, text) for text in _texts(row.get(self.positive), self.positive, place)]
        negatives = [
            Passage(None, text)
            for name in self.negatives
            if row.get(name) not in (None, "", [])
            for text in _texts(row[name], name, place)
        ]
        return Example(split, query, positives, negatives)


def _texts(cell: object, name: str, place: Place) -> list[str]:
    """The texts of a cell, which holds one or a list of them; at least one."""
    cells = cell if isinstance(cell, list) and cell else [cell]
    return [checked_text(text, name, place) for text in cells]


class Pairs(SplitFiles):
    """Files of pairs at a path."""

    name = "pairs"
    one_id_space = False

    def __init__(self, splits: dict[str, list[Path]], columns: Sequence[str]) -> None:
        super().__init__(splits)
        self._columns = columns

    @classmethod
    def find(cls, path: Path, options: Options, asked: bool) -> "Pairs | None":
        splits = split_files(path)
        if not splits or not (
            asked or options.columns or Columns.are_among([*first_row(next(iter(splits.values()))[0])])
        ):
            return None
        return cls(splits, options.columns)

    def read(self) -> Iterator[tuple[Place, Example]]:
        of_path: dict[Path | str, Columns] = {}
        for split, place, row in self.split_rows():
            if place.path not in of_path:
                of_path[place.path] = Columns([*row], self._columns, place.path)
            yield place, of_path[place.path].example(split, row, place)
