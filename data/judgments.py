"""The queries of a split (train, dev, test) and their relevance judgments, from the raw files to rows.

They are read before the collection is tokenized: they are small beside it, a mistake in them shows at once, and they
tell the few passages whose rows have to be remembered.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from data.tokenizing import Text, each_once, write_token_store
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.files import read_records
from utils.stores.qrels import LARGEST_GRADE, Qrels, missing_file, say_missing, write_missing_ids, write_qrels
from utils.stores.token_store import AS_IT_IS, Preparation, TokenStore

Judgments = dict[str, dict[str, int]]  # query id → passage id → relevance


@dataclass(frozen=True)
class Split:
    """The queries of a split that have a relevant passage by their judgments: id → text, in the file's order."""

    name: str
    queries: dict[str, str]
    judgments: Judgments
    queries_path: Path
    qrels_path: Path

    @property
    def passage_ids(self) -> set[str]:
        """Every passage that is judged for one of the queries."""
        return {passage for query in self.queries for passage in self.judgments[query]}


def read_judgments(path: Path) -> Judgments:
    """Reads a qrels file, plain or gzipped, in either layout.

    Four columns as TREC has them (query, a column that says nothing, passage, relevance), or three (query, passage,
    relevance); the first line may name them. Columns are parted by tabs, or by blanks where a line has no tab.
    Relevance is any whole number (1 or 1.0), relevant above 0. A judgment given twice alike counts once. Blank lines
    at the end of the file say nothing. Raises `InputError` with the line for anything else.
    """
    judgments: Judgments = {}
    columns = None
    for number, line in read_records(path):
        fields = [field.strip() for field in line.split("\t")] if "\t" in line else line.split()
        if columns is None:
            columns = len(fields)
            if columns not in (3, 4):
                raise InputError(
                    f"expected 4 columns (query, 0, passage, relevance) or 3 (query, passage, relevance), found "
                    f"{columns}: {line[:80]!r}",
                    path,
                    number,
                )
            if not any(character.isdigit() for i in (0, -2, -1) for character in fields[i]):
                continue  # the header that BEIR's files have; the second of four columns may be named Q0
        if len(fields) != columns:
            raise InputError(
                f"expected {columns} columns as on the first line, found {len(fields)}: {line[:80]!r}", path, number
            )
        query, passage = fields[0], fields[-2]
        if not query or not passage:
            raise InputError(f"the query or the passage has no id: {line[:80]!r}", path, number)
        relevance = _relevance(fields[-1], path, number)
        known = judgments.setdefault(query, {}).setdefault(passage, relevance)
        if known != relevance:
            raise InputError(
                f"query {query} and passage {passage} are judged {known} on an earlier line and {relevance} here; "
                "keep one",
                path,
                number,
            )
    if not judgments:
        raise InputError("holds no judgment but a header", path)
    return judgments


def _relevance(field: str, path: Path, line: int) -> int:
    """The grade that a field holds: 1, 1.0, -2 …; `InputError` for anything else."""
    whole = re.fullmatch(r"([+-]?[0-9]+)(\.0*)?", field)
    if whole and abs(int(whole[1])) <= LARGEST_GRADE:
        return int(whole[1])
    if re.fullmatch(r"[+-]?[0-9]*\.0*[1-9][0-9]*", field):
        raise InputError(
            f"the relevance is {field[:80]}, and trec_eval's measures, which are reported here, know whole numbers "
            "only; map the grades to whole numbers, with 0 for what is not relevant",
            path,
            line,
        )
    raise InputError(
        f"the relevance must be a whole number of at most 31 bits, found {field[:80]!r}; is the last column another "
        "one?",
        path,
        line,
    )


def read_split(name: str, queries: Iterable[Text], queries_path: Path, qrels_path: Path) -> Split:
    """Reads a split's judgments and, of its queries, those that have a relevant passage.

    What is left out is counted and said. Raises `InputError` where an id comes with two texts or no query is left.
    """
    judgments = read_judgments(qrels_path)
    seen = set()
    judged = {}
    for _, query, text in each_once(queries, queries_path):
        seen.add(query)
        if _has_relevant(judgments.get(query, {})):
            judged[query] = text
    strangers = [query for query in judgments if query not in seen]
    if strangers:
        lines = sum(len(judgments[query]) for query in strangers)
        say(f"{qrels_path.name}: {lines:,} judgments left out, their {len(strangers):,} queries are unknown")
    if not judged:
        raise InputError(
            f"no query of {queries_path} has a relevant passage here; do the two files belong together?", qrels_path
        )
    left_out = len(seen) - len(judged)
    if left_out:
        say(f"{queries_path.name}: {left_out:,} of {len(seen):,} queries left out, judged relevant to no passage")
    return Split(name, judged, judgments, queries_path, qrels_path)


def _has_relevant(judged: dict[str, int]) -> bool:
    return any(relevance > 0 for relevance in judged.values())


def judgments_by_row(
    split: Split, queries: Iterable[str], passage_rows: dict[str, int], passage_count: int
) -> tuple[Qrels, list[str]]:
    """The judgments of these queries, whose rows are their places, and the ids of missing passages.

    `passage_rows` has the row of each judged passage that the collection holds; one that it lacks gets a row from
    `passage_count`, the collection's number of passages, on.
    """
    missing: dict[str, int] = {}
    judgments = []
    for query_row, query in enumerate(queries):
        for passage, grade in split.judgments[query].items():
            row = passage_rows.get(passage)
            if row is None:
                row = missing.setdefault(passage, passage_count + len(missing))
            judgments.append((query_row, row, grade))
    return Qrels.of(judgments), list(missing)


def write_split(
    split: Split,
    passage_rows: dict[str, int],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    out_folder: Path,
    *,
    prepared: Preparation = AS_IT_IS,
    trained_on: bool = False,
) -> int:
    """Writes `out_folder`/NAME-query/ and, last, NAME-qrel.tsv; returns the number of queries.

    For `prepared` see `write_token_store`. `passage_rows` has the row of each judged passage that the
    collection, in `out_folder`/passages/, holds. Judgments of others are kept (`utils.stores.qrels`), and counted. A
    query that is judged relevant to none but such passages is kept to be measured, and left out of a split that is
    `trained_on`. `InputError` where all queries are such.
    """

    def can_be_found(query: str) -> bool:
        judged = split.judgments[query]
        return any(grade > 0 and passage in passage_rows for passage, grade in judged.items())

    findable = [query for query in split.queries if can_be_found(query)]
    if not findable:
        raise InputError(
            "the collection holds none of the relevant passages; do the files belong together?", split.qrels_path
        )
    queries = findable if trained_on else list(split.queries)
    left_out = len(split.queries) - len(queries)
    if left_out:
        say(f"{split.queries_path.name}: {left_out:,} more queries left out, the collection lacks what is relevant")
    write_token_store(
        out_folder / f"{split.name}-query",
        ((0, query, split.queries[query]) for query in queries),
        tokenizer,
        max_length,
        split.queries_path,
        prepared=prepared,
        wanted=(),
        label=f"{split.name} queries",
        total=len(queries),
    )
    passage_count = len(TokenStore(out_folder / "passages"))
    qrels, missing = judgments_by_row(split, queries, passage_rows, passage_count)
    say_missing(qrels, passage_count, split.qrels_path.name)
    path = qrel_file(out_folder, split.name)
    write_missing_ids(path, missing)
    write_qrels(path, qrels)
    say(f"{split.name}: {len(queries):,} queries, {len(qrels):,} judgments")
    return len(queries)


def qrel_file(out_folder: Path, name: str) -> Path:
    """The judgments of a split by row; written last, so that a split with this file is whole."""
    return out_folder / f"{name}-qrel.tsv"


def remove_judgments(out_folder: Path, splits: Iterable[str] | None = None) -> None:
    """Removes the judgments of these splits; without `splits`, of all, as new passages have other rows."""
    if splits is None:
        paths = [*out_folder.glob("*-qrel.tsv"), *out_folder.glob("*-missing.txt")]
    else:
        whole = [qrel_file(out_folder, split) for split in splits]
        paths = [*whole, *map(missing_file, whole)]
    for path in paths:
        path.unlink(missing_ok=True)
