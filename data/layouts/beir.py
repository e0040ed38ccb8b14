"""BEIR's layout: corpus.jsonl, queries.jsonl, and the judgments of each split in qrels/.

    corpus.jsonl     {"_id": "p1", "title": "…", "text": "…"}
    queries.jsonl    {"_id": "q1", "text": "…"}
    qrels/train.tsv  query-id, corpus-id, score, with tabs between; or train.jsonl, as the hub's copies have it

dev and test are there or not. A passage with a query's own id is that query, and never its answer.
"""

from collections.abc import Iterator
from pathlib import Path

from data.beir_data import iter_jsonl
from data.judgments import check_grade, iter_judgments
from data.layouts.records import TRAIN, Judgment, Options, Passage, Place, Query, checked_id
from data.layouts.rows import JSON_LINES, count_rows, kind_of, read_rows, split_of
from utils.runtime.errors import InputError
from utils.stores.files import find_file, has_file


class Beir:
    """A collection in BEIR's layout in a folder."""

    name = "beir"
    one_id_space = True

    def __init__(self, folder: Path) -> None:
        self._corpus, self._queries = find_file(folder, "corpus.jsonl"), find_file(folder, "queries.jsonl")
        self._qrels: dict[str, Path] = {}
        for path in sorted((folder / "qrels").glob("*")):
            split = split_of(path.name) if kind_of(path) in (".tsv", *JSON_LINES) else ""
            if not split:
                continue
            if split in self._qrels:
                raise InputError(
                    f"holds the judgments of {split} twice: {self._qrels[split].name} and {path.name}; keep one",
                    path.parent,
                )
            self._qrels[split] = path
        if TRAIN not in self._qrels:
            found = ", ".join(path.name for path in self._qrels.values()) or "none"
            raise InputError(f"holds no judgments to train on: qrels/train.tsv (there are: {found})", folder)
        self.splits = list(self._qrels)
        self.files = [self._corpus, self._queries, *self._qrels.values()]

    def count(self) -> int | None:
        return count_rows(self.files)

    @classmethod
    def find(cls, path: Path, options: Options, asked: bool) -> "Beir | None":
        there = has_file(path, "corpus.jsonl") and has_file(path, "queries.jsonl")
        return cls(path) if asked or (there and (path / "qrels").is_dir()) else None

    def read(self) -> Iterator[tuple[Place, Passage | Query | Judgment]]:
        for line, text_id, title, text in iter_jsonl(self._corpus):
            yield Place(self._corpus, line), Passage(text_id, text, title)
        for line, text_id, _, text in iter_jsonl(self._queries):
            yield Place(self._queries, line), Query(text_id, text)
        for split, path in self._qrels.items():
            if kind_of(path) in JSON_LINES:
                yield from self._judgments(split, path)
            else:
                for line, query, passage, grade in iter_judgments(path):
                    yield Place(path, line), Judgment(split, query, passage, grade)

    @staticmethod
    def _judgments(split: str, path: Path) -> Iterator[tuple[Place, Judgment]]:
        for place, row in read_rows(path):
            query, passage = (checked_id(row.get(name), name, place) for name in ("query-id", "corpus-id"))
            if type(row.get("score")) not in (int, float, str):
                raise place.error(f"expected a number as score, found {row.get('score')!r:.80}")
            yield place, Judgment(split, query, passage, check_grade(str(row["score"]), *place))
