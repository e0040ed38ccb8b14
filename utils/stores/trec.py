"""Run and qrels files as TREC has them, for trec_eval and whatever else reads them.

    run.trec      query Q0 passage rank score tag
    qrels.trec    query 0 passage grade

White space separates the fields, and ids of a collection may hold it: in these files white space and % stand
percent-encoded in an id (RFC 3986: a blank is %20), so that every id is one field and no two become the same.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote, unquote

import numpy as np

from utils.runtime.errors import InputError
from utils.stores.files import atomic_file, read_lines
from utils.stores.qrels import Qrels

NOT_IN_A_FIELD = re.compile(r"[%\s\0]")


def encode_id(text_id: str) -> str:
    """The id as these files hold it; the order of such ids by bytes is that of Python's strings."""
    return NOT_IN_A_FIELD.sub(lambda found: quote(found[0], safe=""), text_id)


def decode_id(field: str) -> str:
    """The id that `encode_id` made a field of."""
    return unquote(field, errors="strict")


def write_trec_run(
    path: str | Path,
    query_ids: Sequence[str],
    passage_ids: Sequence[str],
    ranked_rows: np.ndarray,
    scores: np.ndarray,
    tag: str,
) -> None:
    """Writes the rankings, ranks from 1, atomically; a query with an empty ranking has no line.

    `ranked_rows` int64 and `scores` float32 are (queries, k), padded with -1 rows at the end; the scores keep all
    their digits. trec_eval sorts by score again, so the lines should be in its order (`utils.mining.rankings`). White
    space in the tag, which is only a label, becomes "-". Raises `InputError` for an empty id.
    """
    tag = "-".join(tag.split()) or "run"
    names = _names(passage_ids, ranked_rows[ranked_rows >= 0], "passage", path)
    queries = _names(query_ids, np.arange(len(query_ids)), "query", path)
    with atomic_file(path) as handle:
        for query, (rows, row_scores) in enumerate(zip(ranked_rows.tolist(), scores, strict=True)):
            handle.writelines(
                f"{queries[query]} Q0 {names[row]} {rank} {score:.9g} {tag}\n"
                for rank, (row, score) in enumerate(zip(rows, row_scores.tolist(), strict=True), start=1)
                if row >= 0
            )


def write_trec_qrels(path: str | Path, query_ids: Sequence[str], passage_ids: Sequence[str], qrels: Qrels) -> None:
    """Writes all judgments, atomically. `passage_ids` has those of missing passages too (`utils.stores.qrels`)."""
    names = _names(passage_ids, qrels.passage_rows, "passage", path)
    queries = _names(query_ids, qrels.query_rows, "query", path)
    with atomic_file(path) as handle:
        handle.writelines(f"{queries[query]} 0 {names[passage]} {grade}\n" for query, passage, grade in qrels)


def _names(ids: Sequence[str], rows: np.ndarray, kind: str, path: str | Path) -> dict[int, str]:
    """The fields for the ids of these rows, by row."""
    names = {row: encode_id(ids[row]) for row in np.unique(rows).tolist()}
    for row, name in names.items():
        if not name:
            raise InputError(f"the {kind} of row {row} has an empty id, which no TREC file can hold", path)
    return names


def read_trec_run(path: str | Path) -> dict[str, dict[str, float]]:
    """Reads what `write_trec_run` wrote: query id → passage id → score, best first, with the collection's own ids."""
    run: dict[str, dict[str, float]] = {}
    for number, line in read_lines(path):
        try:
            query, _, passage, _, score, _ = line.split()
            run.setdefault(decode_id(query), {})[decode_id(passage)] = float(score)
        except ValueError:
            raise InputError(
                f"expected query, Q0, passage, rank, score and tag, found {line[:80]!r}; evaluate again", path, number
            ) from None
    return run
