"""MS MARCO's files, of passages or documents: what data/msmarco_data.py reads by itself, read to be mixed with
others.

A folder holds collection.tsv (id, text) or msmarco-docs.tsv (id, url, title, body), queries and qrels of training,
and perhaps of dev. Where there is a dev split, and no other source, run_ance.sh reads it in place.
"""

from collections.abc import Iterator
from pathlib import Path

from data.judgments import iter_judgments
from data.layouts.records import DEV, TRAIN, Judgment, Options, Passage, Place, Query
from data.layouts.rows import count_rows
from data.msmarco_data import DOCUMENTS, FILES, PASSAGES, read_documents, read_tsv
from utils.runtime.errors import InputError
from utils.stores.files import find_file, has_file


class MSMarco:
    """MS MARCO's files in a folder."""

    name = "msmarco"
    one_id_space = False

    def __init__(self, folder: Path, kind: int) -> None:
        names = FILES[kind]
        self._documents = kind == DOCUMENTS
        self._collection = find_file(folder, *names["collection"])
        self._pairs = {TRAIN: [find_file(folder, *of) for of in names[TRAIN]]}
        if has_file(folder, *names[DEV][1]):
            self._pairs[DEV] = [find_file(folder, *of) for of in names[DEV]]
        self.splits = list(self._pairs)
        self.files = [self._collection, *(path for paths in self._pairs.values() for path in paths)]

    def count(self) -> int | None:
        return count_rows(self.files)

    @classmethod
    def find(cls, path: Path, options: Options, asked: bool) -> "MSMarco | None":
        for kind in (PASSAGES, DOCUMENTS):
            if has_file(path, *FILES[kind]["collection"]):
                return cls(path, kind)
        if asked:
            raise InputError(
                f"holds neither {FILES[PASSAGES]['collection'][0]} nor {FILES[DOCUMENTS]['collection'][0]}", path
            )
        return None

    def read(self) -> Iterator[tuple[Place, Passage | Query | Judgment]]:
        texts = read_documents(self._collection, " ", 10_000) if self._documents else read_tsv(self._collection)
        for line, text_id, text in texts:
            yield Place(self._collection, line), Passage(text_id, text)
        for queries, _ in self._pairs.values():
            for line, text_id, text in read_tsv(queries):
                yield Place(queries, line), Query(text_id, text)
        for split, (_, qrels) in self._pairs.items():
            for line, query, passage, grade in iter_judgments(qrels):
                yield Place(qrels, line), Judgment(split, query, passage, grade)
