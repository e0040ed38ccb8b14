"""MS MARCO's files, of passages or documents: what data/msmarco_data.py reads by itself, read to be mixed with
others.

A folder holds collection.tsv (id, text) or msmarco-docs.tsv (id, url, title, body), queries and qrels of training,
and perhaps of dev. Where there is a dev split, and no other source, run_ance.sh reads it in place.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from data.judgments import iter_judgments
from data.layouts.records import DEV, TRAIN, Judgment, Options, Passage, Place, Query
from data.layouts.rows import count_rows
from data.tokenizing import Text
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.files import find_file, has_file, read_records, split_fields

DOCUMENTS, PASSAGES = 0, 1
DOCUMENT_SEPARATOR = "<sep>"  # between url, title and body: five characters, a special token of no public checkpoint
# The collection, then queries and judgments of each split; where two names are given, the first that exists is read.
FILES = {
    PASSAGES: {
        "collection": ("collection.tsv",),
        "train": (("queries.train.tsv",), ("qrels.train.tsv",)),
        "dev": (("queries.dev.small.tsv", "queries.dev.tsv"), ("qrels.dev.small.tsv", "qrels.dev.tsv")),
    },
    DOCUMENTS: {
        "collection": ("msmarco-docs.tsv",),
        "train": (("msmarco-doctrain-queries.tsv",), ("msmarco-doctrain-qrels.tsv",)),
        "dev": (("msmarco-docdev-queries.tsv",), ("msmarco-docdev-qrels.tsv",)),
    },
}
# What the first column of a file with a header is called.
COLUMN_NAMES = {"id", "_id", "pid", "qid", "docid", "doc_id", "passage_id", "query_id", "query-id", "corpus-id"}


def read_tsv(path: Path, prepare: Callable[[str], str] = str) -> Iterator[Text]:
    """Passages or queries: an id, a tab, the text, stripped on the right, of which `prepare` makes what is tokenized.

    As in the published code, further columns are not read; that is said once.
    """
    said = False
    for line, content in read_records(path):
        text_id, rest = split_fields(content, 2, path, line)
        text, tab, more = rest.partition("\t")
        if tab and not said:
            said = True
            say(f"{path.name}: columns after the second are left out, in line {line} for one: {more[:40]!r}")
        yield line, _checked_id(text_id, path, line), prepare(text.rstrip())


def read_documents(
    path: Path, separator: str, max_characters: int, prepare: Callable[[str], str] = str
) -> Iterator[Text]:
    """Documents: an id, url, title, body, with tabs between; the last three become one text, cut, then prepared.

    With `separator` DOCUMENT_SEPARATOR that is the text that the public document checkpoints were trained on.
    """
    for line, content in read_records(path):
        text_id, *parts = split_fields(content, 4, path, line)
        text = separator.join(part.rstrip() for part in parts)
        yield line, _checked_id(text_id, path, line), prepare(text[:max_characters])


def _checked_id(text_id: str, path: Path, line: int) -> str:
    """The id without blanks around it; `InputError` where nothing is left, or where the line is a header."""
    text_id = text_id.strip()
    if not text_id:
        raise InputError("the first column, the id, is empty", path, line)
    if line == 1 and text_id.lower() in COLUMN_NAMES:
        raise InputError(
            f"is a header ({text_id[:80]!r} is no id), and this layout has none; remove the line", path, 1
        )
    return text_id


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
