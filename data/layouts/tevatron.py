"""Tevatron's files: JSON lines, a query a line, in today's form and in the older one that most published sets have.

    {"query_id": "1", "query_text": "…", "positive_document_ids": ["d3"], "negative_document_ids": ["d7"]}
    {"query_id": "1", "query": "…", "positive_passages": [{"docid": "d3", "title": "…", "text": "…"}],
     "negative_passages": […]}

Today's form wants a collection beside it, `corpus.jsonl` of {"docid": "d3", "document_text": "…"}. The older form has
the texts with it; where there is no collection (of docid, title, text), all passages that occur are it.
"""

from collections.abc import Iterator
from pathlib import Path

from data.layouts.records import TRAIN, Example, Options, Passage, Place, Query, checked_id, checked_text
from data.layouts.rows import Row, SplitFiles, first_row, kind_of, read_rows, split_files
from utils.runtime.errors import InputError

COLLECTION = "corpus"


def is_example(row: Row) -> bool:
    """Whether a row is a query of either form."""
    return "positive_document_ids" in row or "positive_passages" in row


def example_of(split: str, row: Row, place: Place) -> Example:
    """The row as an example; in today's form its passages are named by their ids.

    A query that is not trained on may have no positive, as hidden test queries have none: it is not measured.
    """
    today = "positive_document_ids" in row
    query_id = row.get("query_id")
    query = Query(
        None if query_id in (None, "") else checked_id(query_id, "query_id", place),
        checked_text(row.get("query_text" if today else "query"), "query_text" if today else "query", place),
    )
    sides = []
    for side in ("positive", "negative"):
        name = f"{side}_document_ids" if today else f"{side}_passages"
        entries = row.get(name) or []
        if not isinstance(entries, list):
            raise place.error(f"expected a list as {name}, found {entries!r:.80}")
        if today:
            sides.append([Passage(checked_id(entry, name, place), None) for entry in entries])
        else:
            sides.append([_passage(entry, name, place) for entry in entries])
    if not sides[0] and split == TRAIN:
        raise place.error("no passage answers the query: it has no positive; give one, or remove the row")
    return Example(split, query, *sides)


def _passage(entry: object, name: str, place: Place) -> Passage:
    """A passage of the older form, or of the collection of either."""
    if not isinstance(entry, dict):
        raise place.error(f"expected an object with docid, title and text in {name}, found {entry!r:.80}")
    docid, title = entry.get("docid"), entry.get("title") or ""
    text = entry.get("document_text") if "document_text" in entry else entry.get("text")
    if not isinstance(title, str):
        raise place.error(f"expected a text as the title of {docid!r}, found {title!r:.80}")
    if not isinstance(text, str):
        raise place.error(f"expected a text as the text of {docid!r}, found {text!r:.80}")
    known = None if docid in (None, "") else checked_id(docid, "docid", place)
    if known is None:
        checked_text(text, "text", place)
    return Passage(known, text.strip(), title.strip())


class Tevatron(SplitFiles):
    """Files of Tevatron's queries at a path, with or without a collection."""

    name = "tevatron"
    one_id_space = False

    def __init__(self, splits: dict[str, list[Path]], collection: list[Path]) -> None:
        super().__init__(splits, collection)
        self._collection = collection

    @classmethod
    def find(cls, path: Path, options: Options, asked: bool) -> "Tevatron | None":
        splits = split_files(path, leave_out=COLLECTION)
        if not splits or not (asked or is_example(first_row(next(iter(splits.values()))[0]))):
            return None
        folder = path if path.is_dir() else path.parent
        found = sorted(
            file for file in (*folder.glob(f"{COLLECTION}*"), *folder.glob(f"{COLLECTION}/*")) if kind_of(file)
        )
        collection = [file for file in found if "docid" in first_row(file)]
        first = next(iter(splits.values()))[0]
        if "positive_document_ids" in first_row(first) and not collection:
            raise InputError(
                f"names passages by their ids, and there is no collection with their texts: put {COLLECTION}.jsonl "
                '({"docid": "d3", "document_text": "…"} a line) beside it',
                first,
            )
        return cls(splits, collection)

    def read(self) -> Iterator[tuple[Place, Passage | Example]]:
        for path in self._collection:
            for place, row in read_rows(path):
                checked_id(row.get("docid"), "docid", place)
                yield place, _passage(row, "the collection", place)
        for split, place, row in self.split_rows():
            yield place, example_of(split, row, place)
