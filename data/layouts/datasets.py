"""Data sets of the library `datasets`: by their name on the hub, streamed, or from a folder that it has saved.

Rows are those of the other layouts: Tevatron's older form, FlagEmbedding's, or pairs in named columns. Of a data set
on the hub all splits that say they are of training, dev or test are read, or the one that is asked for, as training.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from data.layouts import flagembedding, tevatron
from data.layouts.pairs import Columns
from data.layouts.records import SPLITS, TRAIN, Example, Options, Place
from data.layouts.rows import Row, split_of
from utils.runtime.errors import InputError, first_line

SAVED = (("dataset_dict.json",), ("dataset_info.json", "state.json"))  # what a saved folder holds, of either form
CURE = "data sets are read by the library datasets, which is not installed: bash commands/install.sh data"


def choose_splits(found: dict[str, Any], path: Path) -> dict[str, Any]:
    """The splits of training, dev and test, by these names: whichever says so, one called just that before others.

    `InputError` where several say the same.
    """
    splits = {}
    for split in SPLITS:
        names = [name for name in found if split_of(name) == split]
        names = [name for name in names if name == split] or names
        if len(names) > 1:
            raise InputError(f"has several splits of {split}: {', '.join(names)}; name one with --data_split", path)
        if names:
            splits[split] = found[names[0]]
    return splits


class DataSets:
    """A data set's splits."""

    name = "datasets"
    one_id_space = False

    def __init__(self, source: str, splits: dict[str, Any], files: list[Path], columns: tuple[str, ...]) -> None:
        self._source, self._splits, self._columns = source, splits, columns
        self.splits = list(splits)
        self.files = files

    def count(self) -> int | None:
        sizes = [getattr(rows, "num_rows", None) for rows in self._splits.values()]
        return None if None in sizes else sum(sizes)

    @classmethod
    def find(cls, path: Path, options: Options, asked: bool) -> "DataSets | None":
        saved = any(all((path / name).is_file() for name in names) for names in SAVED)
        if not (saved or asked):
            return None
        try:
            import datasets
        except ModuleNotFoundError:
            raise InputError(CURE, path) from None
        try:
            if saved:
                found = datasets.load_from_disk(str(path))
            else:
                found = datasets.load_dataset(str(path), options.config or None, streaming=True)
        except Exception as error:  # of the network, of the hub, of the files: the library has many kinds
            raise InputError(f"cannot be loaded as a data set ({first_line(error)})", path) from None
        if not isinstance(found, dict):
            found = {options.split or TRAIN: found}
        if options.split and options.split not in found:
            raise InputError(f"has no split {options.split!r}; there are: {', '.join(found)}", path)
        splits = {TRAIN: found[options.split]} if options.split else choose_splits(found, path)
        if TRAIN not in splits:
            raise InputError(f"has no split train; name one with --data_split: {', '.join(found)}", path)
        files = sorted(file for file in path.rglob("*") if file.is_file())  # none of a data set on the hub
        return cls(str(path), splits, files, options.columns)

    def read(self) -> Iterator[tuple[Place, Example]]:
        for split, rows in self._splits.items():
            columns = None
            place = Place(f"{self._source}, split {split}", 0)
            for number, row in enumerate(_read_on(rows, place), start=1):
                place = Place(place.path, number)
                if tevatron.is_example(row):
                    yield place, tevatron.example_of(split, row, place)
                elif flagembedding.is_example(row):
                    yield place, flagembedding.example_of(split, row, place)
                else:
                    columns = columns or Columns([*row], self._columns, self._source)
                    yield place, columns.example(split, row, place)


def _read_on(rows: Iterable[Row], place: Place) -> Iterator[Row]:
    """The rows, one after another; `InputError` where the next one cannot be had."""
    number, rows = 0, iter(rows)
    while True:
        number += 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except Exception as error:  # of the network, of the hub, of the files: the library has many kinds
            raise Place(place.path, number).error(
                f"cannot be read on ({first_line(error)}); run this again"
            ) from None
        yield row
