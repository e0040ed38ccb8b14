"""The queries of a split (train, dev, test) and their relevance judgments, from the raw files to rows.

They are read before the collection is tokenized: they are small beside it, a mistake in them shows at once, and they
tell the passages whose rows have to be remembered. A judgment takes 20 bytes of memory, a query 16: ids are known by
their hashes (`data.hashed`), and texts are read again when they are tokenized.
"""

import re
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from data.hashed import WantedIds, hashes_of
from data.tokenizing import Text, blocks_of, each_once, write_token_store
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.files import read_records
from utils.stores.qrels import LARGEST_GRADE, Qrels, missing_file, say_missing, write_missing_ids, write_qrels
from utils.stores.token_store import AS_IT_IS, Preparation, TokenStore


@dataclass(frozen=True)
class Split:
    """The queries of a split that have a relevant passage, and all judgments of its qrels file.

    `judged` are the hashes of these queries' ids, int64, ascending. Of each judgment `query_keys` and `passage_keys`
    are the hashes of both ids, int64 (n,), and `grades` int32 (n,), sorted by the two. `read_queries` reads all
    queries of `queries_path`, each time that it is called.
    """

    name: str
    read_queries: Callable[[], Iterable[Text]]
    queries_path: Path
    qrels_path: Path
    query_keys: np.ndarray
    passage_keys: np.ndarray
    grades: np.ndarray
    judged: np.ndarray

    def queries(self, keys: np.ndarray) -> Iterator[Text]:
        """The queries of these hashes, int64, ascending, in the file's order and each once."""
        waiting = np.ones(len(keys), dtype=bool)
        for block in blocks_of(self.read_queries()):
            found = _places(keys, hashes_of(block[1], len(block[1])))
            for place, text in zip(found.tolist(), zip(*block, strict=True), strict=True):
                if place >= 0 and waiting[place]:
                    waiting[place] = False
                    yield text

    @property
    def highest_grade(self) -> int:
        """Of the judgments of these queries."""
        return int(self.grades[np.isin(self.query_keys, self.judged)].max())


def _places(keys: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The place of each of `wanted` in `keys` (ascending, one at least): int64 (n,), -1 where it has none."""
    places = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[places] == wanted, places, -1)


def iter_judgments(path: Path) -> Iterator[tuple[int, str, str, int]]:
    """Yields (line, query, passage, relevance) of a qrels file, plain or gzipped, in either layout.

    Four columns as TREC has them (query, a column that says nothing, passage, relevance), or three (query, passage,
    relevance); the first line may name them. Columns are parted by tabs, or by blanks where a line has no tab.
    Relevance is any whole number (1 or 1.0), relevant above 0. Blank lines at the end of the file say nothing. Raises
    `InputError` with the line for anything else.
    """
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
        yield number, query, passage, check_grade(fields[-1], path, number)


def judged_twice(query: str, passage: str, known: int, grade: int, path: Path | str, line: int) -> InputError:
    """What is said of a query and passage that are judged `known` on an earlier line and `grade` on this one."""
    return InputError(
        f"query {query} and passage {passage} are judged {known} on an earlier line and {grade} here; keep one",
        path,
        line,
    )


def check_grade(field: str, path: Path, line: int) -> int:
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


def read_split(name: str, read_queries: Callable[[], Iterable[Text]], queries_path: Path, qrels_path: Path) -> Split:
    """Reads a split's judgments and, of its queries, which ones have a relevant passage.

    A judgment given twice alike counts once. What is left out is counted and said. Raises `InputError` where one is
    given twice with different grades, an id comes with two texts, or no query is left.
    """
    query_keys, passage_keys, grades = _read_judgments(qrels_path)
    judged_keys = np.unique(query_keys)
    relevant = np.unique(query_keys[grades > 0])
    seen, known, judged = 0, np.zeros(len(judged_keys), dtype=bool), []
    for block in blocks_of(each_once(read_queries(), queries_path)):
        seen += len(block[1])
        keys = hashes_of(block[1], len(block[1]))
        known[_places(judged_keys, keys)[_places(judged_keys, keys) >= 0]] = True
        if len(relevant):
            judged.append(keys[_places(relevant, keys) >= 0])
    if not known.all():
        lines = int(np.isin(query_keys, judged_keys[~known]).sum())
        say(f"{qrels_path.name}: {lines:,} judgments left out, their {int((~known).sum()):,} queries are unknown")
    kept = np.sort(np.concatenate([np.empty(0, np.int64), *judged]))
    if not len(kept):
        raise InputError(
            f"no query of {queries_path} has a relevant passage here; do the two files belong together?", qrels_path
        )
    if seen > len(kept):
        say(f"{queries_path.name}: {len(kept):,} of {seen:,} queries have a relevant passage in {qrels_path.name}")
    return Split(name, read_queries, queries_path, qrels_path, query_keys, passage_keys, grades, kept)


def _read_judgments(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The judgments as `Split` has them, each once."""
    columns = array("q"), array("q"), array("q")
    for _, query, passage, grade in iter_judgments(path):
        for column, value in zip(columns, (hash(query), hash(passage), grade), strict=True):
            column.append(value)
    queries, passages, grades = (np.frombuffer(column, dtype=np.int64) for column in columns)
    if not len(queries):
        raise InputError("holds no judgment but a header", path)
    order = np.lexsort((passages, queries))  # stable: what is given again comes after it
    queries, passages, grades = queries[order], passages[order], grades[order].astype(np.int32)
    again = np.concatenate([[False], (queries[1:] == queries[:-1]) & (passages[1:] == passages[:-1])])
    if (again[1:] & (grades[1:] != grades[:-1])).any():
        raise _first_contradiction(path)
    return queries[~again], passages[~again], grades[~again]


def _first_contradiction(path: Path) -> InputError:
    """The first line of a qrels file that contradicts an earlier one; there is one."""
    known: dict[tuple[str, str], int] = {}
    for line, query, passage, grade in iter_judgments(path):
        if known.setdefault((query, passage), grade) != grade:
            return judged_twice(query, passage, known[query, passage], grade, path, line)
    raise AssertionError("no contradiction, yet there was one")


def judgments_by_row(
    split: Split, query_keys: np.ndarray, passage_rows: WantedIds, passage_count: int
) -> tuple[Qrels, list[str]]:
    """The judgments of the queries of these hashes, int64, whose rows are their places; and ids of missing passages.

    `passage_rows` has the row of each judged passage that the collection holds; those that it lacks get rows from
    `passage_count`, the collection's number of passages, on, in the order of the qrels file.
    """
    order = np.argsort(query_keys)
    places = _places(query_keys[order], split.query_keys)
    kept = places >= 0
    query_rows, passage_keys = order[places[kept]], split.passage_keys[kept]
    rows = passage_rows.rows(passage_keys)
    lacking = np.unique(passage_keys[rows < 0])
    missing: list[str] = []
    if len(lacking):
        row_of, wanted = np.full(len(lacking), -1), set(lacking.tolist())
        for _, _, passage, _ in iter_judgments(split.qrels_path):
            if (key := hash(passage)) in wanted:
                wanted.remove(key)
                row_of[np.searchsorted(lacking, key)] = passage_count + len(missing)
                missing.append(passage)
        rows[rows < 0] = row_of[np.searchsorted(lacking, passage_keys[rows < 0])]
    return Qrels.by_row(query_rows, rows, split.grades[kept]), missing


def write_split(
    split: Split,
    passage_rows: WantedIds,
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
    found = passage_rows.rows(split.passage_keys) >= 0
    findable = np.intersect1d(split.query_keys[found & (split.grades > 0)], split.judged)
    if not len(findable):
        raise InputError(
            "the collection holds none of the relevant passages; do the files belong together?", split.qrels_path
        )
    kept = findable if trained_on else split.judged
    if left_out := len(split.judged) - len(kept):
        say(f"{split.queries_path.name}: {left_out:,} more queries left out, the collection lacks what is relevant")
    store = out_folder / f"{split.name}-query"
    write_token_store(
        store,
        split.queries(kept),
        tokenizer,
        max_length,
        split.queries_path,
        prepared=prepared,
        label=f"{split.name} queries",
        total=len(kept),
        flag="--max_query_length",
    )
    query_keys = hashes_of(TokenStore(store).iter_ids(), len(kept))
    passage_count = len(TokenStore(out_folder / "passages"))
    qrels, missing = judgments_by_row(split, query_keys, passage_rows, passage_count)
    say_missing(qrels, passage_count, split.qrels_path.name)
    path = qrel_file(out_folder, split.name)
    write_missing_ids(path, missing)
    write_qrels(path, qrels)
    say(f"{split.name}: {len(kept):,} queries, {len(qrels):,} judgments")
    return len(kept)


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
