"""BEIR's layout: corpus.jsonl, queries.jsonl, and the judgments of each split in qrels/.

    corpus.jsonl     {"_id": "p1", "title": "…", "text": "…"}
    queries.jsonl    {"_id": "q1", "text": "…"}
    qrels/train.tsv  query-id, corpus-id, score, with tabs between; or train.jsonl, as the hub's copies have it

dev and test are there or not. A passage with a query's own id is that query, and never its answer.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from data.judgments import check_grade, iter_judgments
from data.layouts.records import TRAIN, Judgment, Options, Passage, Place, Query, checked_id
from data.layouts.rows import JSON_LINES, count_rows, kind_of, read_rows, split_of
from data.tokenizing import Text
from utils.runtime.errors import InputError
from utils.stores.files import find_file, has_file, read_records

COLLECTION_FILES = ("corpus.jsonl", "passages.jsonl")  # the latter from data/import_data.py: ids apart from queries'
SURROGATE = re.compile("[\ud800-\udfff]")  # what Python's JSON makes of half of a pair


def iter_jsonl(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yields (line, id, title, text) of passages or queries: JSON objects of _id, text and perhaps title."""
    for line, content in read_records(path):
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise InputError(f"is not valid JSON ({error}): {content[:80]!r}", path, line) from None
        if not isinstance(record, dict):
            raise InputError(f"expected a JSON object with _id and text, found {content[:80]!r}", path, line)
        text_id, title, text = record.get("_id"), record.get("title") or "", record.get("text")
        if isinstance(text_id, str) or type(text_id) is int:
            text_id = str(text_id).strip()  # as in judgments
        for key, value in (("_id", text_id), ("title", title), ("text", text)):
            if not isinstance(value, str):
                found = f"found {value!r:.80}" if key in record else "found none"
                raise InputError(f"expected a string as {key}, {found}: {content[:80]!r}", path, line)
        if "\\u" in content and SURROGATE.search(f"{text_id}{title}{text}"):
            raise InputError(
                f"holds half of a pair of surrogates, like \\ud800; it is no character, remove it: {content[:80]!r}",
                path,
                line,
            )
        if not text_id or "\n" in text_id or "\r" in text_id or "\t" in text_id:
            raise InputError(f"the id {text_id!r} is empty or holds a tab or line break", path, line)
        yield line, text_id, title, text


def read_jsonl(path: Path, prepare: Callable[[str], str] = str) -> Iterator[Text]:
    """Passages or queries, see `iter_jsonl`; of text, after the title, `prepare` makes what is tokenized."""
    for line, text_id, title, text in iter_jsonl(path):
        yield line, text_id, prepare(f"{title} {text}" if title else text)


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
