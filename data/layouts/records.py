"""What every layout is read as: a stream of passages, queries and judgments, or of examples that hold all three.

A layout with a collection of its own (MS MARCO's, BEIR's) gives each `Passage` and `Query` once, with its id, and
then `Judgment`s that name these ids. A layout of examples (pairs, FlagEmbedding's) gives an `Example` a row, with
texts; where these have no ids, equal texts are one query or one passage. Tevatron's may give both.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, Protocol

from utils.runtime.errors import InputError

TRAIN, DEV, TEST = "train", "dev", "test"
SPLITS = (TRAIN, DEV, TEST)


class Place(NamedTuple):
    """Where a record stands: a file (or what else it is from), and its line or row there, from 1."""

    path: Path | str
    line: int

    def error(self, message: str) -> InputError:
        return InputError(message, self.path, self.line)


class Passage(NamedTuple):
    """`id` is None where the layout has none; the passage is then known by its text.

    `text` is None where an example names a passage of the collection by its id.
    """

    id: str | None
    text: str | None
    title: str = ""


class Query(NamedTuple):
    """`id` is None where the layout has none; the query is then known by its text."""

    id: str | None
    text: str


class Judgment(NamedTuple):
    """How relevant a passage is to a query, both by their ids: relevant above 0."""

    split: str
    query_id: str
    passage_id: str
    grade: int


class Example(NamedTuple):
    """A query with passages that answer it, and some that do not.

    `scores`: a teacher's, of the positives and then of the negatives; None where there are none.
    """

    split: str
    query: Query
    positives: list[Passage]
    negatives: list[Passage]
    scores: list[float] | None = None


Record = Passage | Query | Judgment | Example


class Layout(Protocol):
    """A source of training data, found and not read yet.

    `files` are all that it reads, none of a data set on the hub; `splits` those that it has judgments of.
    `one_id_space`: a passage with a query's id is that query (BEIR's rule).
    """

    name: str
    files: list[Path]
    splits: list[str]
    one_id_space: bool

    def count(self) -> int | None:
        """About how many records `read` yields, for a progress bar; None where that cannot be told beforehand."""
        ...

    def read(self) -> Iterator[tuple[Place, Record]]:
        """Everything that there is, streamed. Raises `InputError` with file and line for what cannot be read."""
        ...


class Options(NamedTuple):
    """What a user may say about the data beside their place; empty where nothing was said.

    `columns` names the columns of pairs: query, positive, negatives. `config` and `split` are of a data set on the
    hub.
    """

    columns: tuple[str, ...] = ()
    config: str = ""
    split: str = ""


def checked_text(value: object, name: str, place: Place) -> str:
    """The text without white space around it; `InputError` where it is none, or is empty."""
    if not isinstance(value, str):
        found = "nothing" if value is None else f"{value!r:.80}"
        raise place.error(f"expected a text as {name}, found {found}; give one, or remove the row")
    text = value.strip()
    if not text:
        raise place.error(f"{name} is empty; give a text, or remove the row")
    return text


def checked_id(value: object, name: str, place: Place) -> str:
    """The id as text, without blanks around it; `InputError` where it is none, or holds tabs or line breaks.

    And where it holds half of a pair of surrogates, which no file can hold.
    """
    if isinstance(value, str) or type(value) is int:
        text = str(value).strip()
        if text and not set(text) & set("\t\r\n") and text == text.encode(errors="replace").decode():
            return text
    found = "nothing" if value is None else f"{value!r:.80}"
    raise place.error(
        f"expected an id as {name}, without tabs, line breaks and halves of surrogate pairs, found {found}"
    )
