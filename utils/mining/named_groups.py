"""Groups of queries by name: domains, languages, tenants; in the place of clusters (utils/mining/clustering.py).

    FOLDER/names.json            {"names": […]}, in the order of their numbers: sorted, whatever the file's order
    FOLDER/sizes.npy             int64 (K,), training queries a group
    FOLDER/assignment.npy        int64 (queries,), each training query's group
    FOLDER/dev_assignment.npy    int64 (dev queries,), -1 for a dev query without a group

They are read from a TSV of query id and group name. Of ids, 64-bit hashes are kept and not the texts: a line takes
12 bytes, and about as much again, twice, while lines are sorted.
"""

from array import array
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.runtime.plain_text import printable
from utils.stores.files import atomic_folder, read_json, read_records, write_json
from utils.stores.token_store import TokenStore

NAMES = "names.json"
HEADINGS = ("query-id", "query_id", "queryid", "qid", "query", "id", "_id")  # of the first column, in lower case


@dataclass(frozen=True)
class NamedGroups:
    """`names` by their numbers, `sizes` int64 (K,), `assignment` int64 (training queries,)."""

    names: list[str]
    sizes: np.ndarray
    assignment: np.ndarray

    def save(self, folder: str | Path, dev_assignment: np.ndarray) -> None:
        """Writes the names, both arrays and the dev queries' groups, atomically."""
        arrays = {"sizes": self.sizes, "assignment": self.assignment, "dev_assignment": dev_assignment}
        with atomic_folder(folder) as partial:
            write_json(partial / NAMES, {"names": self.names})
            for name, values in arrays.items():
                np.save(partial / f"{name}.npy", values)


def read_names(folder: str | Path, count: int) -> list[str] | None:
    """The names of the `count` groups that `NamedGroups.save` wrote there; None where they are clusters.

    Raises `InputError` where the file is damaged or of other groups.
    """
    path = Path(folder, NAMES)
    if not path.exists():
        return None
    cure = "mine the episode again"
    names = read_json(path, cure).get("names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"holds no list of names; {cure}", path)
    if len(names) != count or len(set(names)) != count:
        raise InputError(f"holds {len(set(names))} names of {count} groups; {cure}", path)
    return names


def read_named_groups(path: str | Path, train: TokenStore, dev: TokenStore) -> tuple[NamedGroups, np.ndarray]:
    """The groups of the training queries, and the group of each dev query, int64 (dev queries,).

    `path` has a line a query, its id, a tab and its group's name, plain or gzipped; a first line with one of
    `HEADINGS` for an id is a heading. Every training query must have a group. A dev query without one has -1, and
    so has one whose group no training query has, which is no group. Ids of no query are passed over. Both are counted
    and said. Raises `InputError` with the file, the line and the cure for everything else.
    """
    of_stores = [np.fromiter(map(hash, store.iter_ids()), np.int64, len(store)) for store in (train, dev)]
    table = _Table.read(path, of_stores)
    of_train, of_dev = map(table.groups_of, of_stores)
    lacking = np.flatnonzero(of_train < 0)
    if len(lacking):
        (query_id,) = train.ids_of(lacking[:1])
        raise InputError(
            f"{len(lacking):,} of {len(train):,} training queries have no group there, {query_id!r} the first; add a "
            "line for each, query id TAB group name, or leave these queries out of the training data",
            path,
        )
    numbers = sorted(np.unique(of_train).tolist(), key=table.names.__getitem__)
    names = [table.names[number] for number in numbers]
    renumbered = np.full(len(table.names) + 1, -1, np.int64)  # the last one is that of -1
    renumbered[numbers] = np.arange(len(numbers))
    assignment, dev_assignment = renumbered[of_train], renumbered[of_dev]
    shown = ", ".join([*names[:20], *["…"] * (len(names) > 20)])
    say(f"{path}: groups of the training queries ({len(names):,}): {shown}")
    if without := int((dev_assignment < 0).sum()):
        say(f"{path}: {without:,} of {len(dev):,} dev queries are in none of these groups, and count in none")
    if strangers := int((~np.isin(table.ids, np.concatenate(of_stores))).sum()):
        say(f"{path}: {strangers:,} ids there are of no training or dev query, and are passed over")
    return NamedGroups(names, np.bincount(assignment, minlength=len(names)), assignment), dev_assignment


@dataclass(frozen=True)
class _Table:
    """What stands in the file: `ids`, hashes in ascending order, each once; their `groups`, numbers of `names`."""

    ids: np.ndarray
    groups: np.ndarray
    names: list[str]

    @classmethod
    def read(cls, path: str | Path, known: list[np.ndarray]) -> "_Table":
        """`known`: the hashes of the ids of queries, by which a heading is told from a query."""
        hashes, groups, numbers, first = array("q"), array("i"), {}, 1
        for line, text in read_records(path):
            query_id, _, name = text.partition("\t")
            if line == 1 and query_id.lower() in HEADINGS:
                if any((ids == hash(query_id)).any() for ids in known):
                    raise InputError(
                        f"{query_id!r} may be a heading or the query of that id; remove the heading, or put another "
                        "query's line first",
                        path,
                        line,
                    )
                first = 2
                continue
            if not query_id or name not in numbers:
                _check(query_id, name, path, line)
            hashes.append(hash(query_id))
            groups.append(numbers.setdefault(name, len(numbers)))
        if not hashes:
            raise InputError("holds a heading only; a line a query is needed: its id, a tab, its group's name", path)
        names, ids, of_ids = list(numbers), np.frombuffer(hashes, np.int64), np.frombuffer(groups, np.intc)
        order = np.argsort(ids, kind="stable")
        ids, of_ids = ids[order], of_ids[order]
        again = ids[1:] == ids[:-1]
        for place in np.flatnonzero(again & (of_ids[1:] != of_ids[:-1]))[:1].tolist():
            before, line = (int(order[at]) + first for at in (place, place + 1))
            query_id = next(islice(read_records(path), line - 1, None))[1].partition("\t")[0]
            raise InputError(
                f"query {query_id!r} is in group {names[of_ids[place + 1]]!r}, and on line {before} in "
                f"{names[of_ids[place]]!r}; a query has one group: remove one of the lines",
                path,
                line,
            )
        once = np.concatenate([[True], ~again])
        return cls(ids[once], of_ids[once], names)

    def groups_of(self, ids: np.ndarray) -> np.ndarray:
        """The group of each of these hashes, int64 (n,); -1 where it is not there."""
        places = np.searchsorted(self.ids, ids).clip(max=len(self.ids) - 1)
        return np.where(self.ids[places] == ids, self.groups[places], -1).astype(np.int64)


def _check(query_id: str, name: str, path: str | Path, line: int) -> None:
    """`InputError` where this is no query and no name that can be shown as it is."""
    if not query_id or not name or "\t" in name:
        found = f"{query_id}\t{name}"[:80] if name else query_id[:80]
        raise InputError(f"expected a query's id, a tab and its group's name, found {found!r}", path, line)
    if printable(name) != name:
        raise InputError(
            f"the group's name is {name!r:.80}; names are shown as they are, so that blanks at an end, several "
            "blanks in a row and hidden characters cannot stand in one: write it without",
            path,
            line,
        )
