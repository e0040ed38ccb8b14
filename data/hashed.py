"""A map from 64-bit keys to whole numbers in 16 bytes an entry: how millions of ids and texts are known again.

Keys are hashes. Of n of them, two different ids or texts are taken for the same with a probability of about n² /
2^65: 2 in a million for MS MARCO's 8.8 million passages. Entries are kept in sorted runs, which are merged as they
grow, so that adding n of them one block after another takes O(n log n).
"""

from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def hashes_of(values: Iterable[Hashable], count: int) -> np.ndarray:
    """Python's own hashes of so many values, int64 (count,); they differ from process to process."""
    return np.fromiter(map(hash, values), dtype=np.int64, count=count)


class HashedValues:
    """int64 keys with an int64 value each."""

    def __init__(self) -> None:
        self._runs: list[tuple[np.ndarray, np.ndarray]] = []

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The value of each key, int64 (n,), 0 where it has none; and whether it has one, bool (n,)."""
        values, found = np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
        for run_keys, run_values in self._runs:
            place = np.minimum(np.searchsorted(run_keys, keys), len(run_keys) - 1)
            here = run_keys[place] == keys
            values[here], found = run_values[place[here]], found | here
        return values, found

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Adds entries, int64 (n,) each, of keys that differ and are not there yet."""
        order = np.argsort(keys)
        keys, values = keys[order], values[order]
        while self._runs and len(self._runs[-1][0]) <= 2 * len(keys):
            merged = [np.concatenate(pair) for pair in zip(self._runs.pop(), (keys, values), strict=True)]
            order = np.argsort(merged[0], kind="stable")
            keys, values = (part[order] for part in merged)
        if len(keys):
            self._runs.append((keys, values))


class WantedIds:
    """The rows of the ids that somebody asks for, found while all of them go by; by the ids' hashes (`hashes_of`)."""

    def __init__(self, keys: Iterable[np.ndarray] = ()) -> None:
        self._keys = np.unique(np.concatenate([np.empty(0, np.int64), *keys]))
        self._rows = np.full(len(self._keys), -1, dtype=np.int64)

    def see(self, ids: Sequence[str], first_row: int) -> None:
        """Takes the ids of the rows from `first_row` on."""
        places, found = self._places(hashes_of(ids, len(ids)))
        self._rows[places[found]] = first_row + np.flatnonzero(found)

    def rows(self, keys: np.ndarray) -> np.ndarray:
        """The row of each id, int64 (n,) as its hash; -1 where none has been seen, or it was not asked for."""
        places, found = self._places(keys)
        rows = np.full(len(keys), -1, dtype=np.int64)
        rows[found] = self._rows[places[found]]
        return rows

    def _places(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not len(self._keys):
            return np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=bool)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        return places, self._keys[places] == keys
