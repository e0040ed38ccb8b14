"""Files of rows, each a dictionary: JSON lines, CSV, TSV and parquet; and which of a folder's files belong to a
split.

Rows are streamed. A file's first columns tell which layout it is of (`first_row`).
"""

import csv
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from gzip import BadGzipFile
from pathlib import Path
from typing import Any

from data.layouts.records import DEV, SPLITS, TEST, TRAIN, Place
from data.tokenizing import count_lines
from utils.runtime.errors import InputError
from utils.stores.files import open_binary, read_records

Row = dict[str, Any]

JSON_LINES, CSV, TSV, PARQUET = (".jsonl", ".json"), (".csv",), (".tsv",), (".parquet",)
KINDS = (*JSON_LINES, *CSV, *TSV, *PARQUET)
# How files and splits of either name are called by their makers; what follows is a shard's number, or says nothing.
SPLIT_NAMES = {
    TRAIN: ("train", "training"),
    DEV: ("dev", "validation", "valid", "val", "eval"),
    TEST: ("test", "testing"),
}
ROWS_A_BATCH = 1_024
PARQUET_CURE = "parquet files are read by pyarrow, which is not installed: bash commands/install.sh data"


def kind_of(path: Path) -> str:
    """The suffix that tells a file's kind, without that of gzip; "" for a file of another kind."""
    suffix = Path(path.name.removesuffix(".gz")).suffix.lower()
    return suffix if suffix in KINDS else ""


def split_of(name: str) -> str:
    """The split that a file's or a split's name says it is of; "" where it says none."""
    for split, names in SPLIT_NAMES.items():
        if re.fullmatch(rf"({'|'.join(names)})([-_.].*)?", name, re.IGNORECASE):
            return split
    return ""


def split_files(path: Path, leave_out: str = "") -> dict[str, list[Path]]:
    """The files of rows at `path` by their split; a file, or a folder without a split's name in it, is all training.

    A folder's own files count, or else those in `data/`, as the hub's copies have them: the first that name a split.
    Where none does, a .json file, which may be anybody's settings, only counts where there is nothing else. Files
    whose names begin with `leave_out` do not.
    """
    if path.is_file():
        return {TRAIN: [path]} if kind_of(path) else {}
    found = []
    for folder in (path, path / "data"):
        files = [file for file in rows_in(folder) if not (leave_out and file.name.startswith(leave_out))]
        splits: dict[str, list[Path]] = {}
        for file in files:
            if split := split_of(file.name):
                splits.setdefault(split, []).append(file)
        if splits:
            return {split: splits[split] for split in SPLITS if split in splits}
        found.append(files)
    others = [[file for file in files if kind_of(file) != ".json"] for files in found]
    unnamed = next(filter(None, others + found), None)
    return {TRAIN: unnamed} if unnamed else {}


def rows_in(folder: Path) -> list[Path]:
    """The files of rows in a folder, sorted; none where there is no such folder."""
    return sorted(file for file in folder.glob("*") if file.is_file() and kind_of(file))


class SplitFiles:
    """What the layouts of files of rows have in common; `collection` are files that belong to no split."""

    def __init__(self, splits: dict[str, list[Path]], collection: Sequence[Path] = ()) -> None:
        self._splits = splits
        self.splits = list(splits)
        self.files = [*collection, *(path for paths in splits.values() for path in paths)]

    def count(self) -> int | None:
        """The rows of all files, see `count_rows`."""
        return count_rows(self.files)

    def split_rows(self) -> Iterator[tuple[str, Place, Row]]:
        """The rows of all splits, with the split."""
        for split, paths in self._splits.items():
            for path in paths:
                for place, row in read_rows(path):
                    yield split, place, row


def count_rows(paths: list[Path]) -> int | None:
    """The rows of these files, for a progress bar; None where they cannot be counted without reading them all."""
    total = 0
    for path in paths:
        if kind_of(path) in PARQUET:
            total += _open_parquet(path).metadata.num_rows
        elif path.name.endswith(".gz") or (lines := count_lines(path)) is None:
            return None
        else:
            total += lines
    return total


def first_row(path: Path) -> Row:
    """A file's first row, empty where it has none; `InputError` where it cannot be read."""
    return next(read_rows(path), (None, {}))[1]


def read_rows(path: Path) -> Iterator[tuple[Place, Row]]:
    """The rows of a file with their places; `InputError` with the line for one that cannot be read."""
    kind = kind_of(path)
    if kind in JSON_LINES:
        return _read_json_lines(path)
    if kind in CSV:
        return _read_csv(path)
    if kind in TSV:
        return _read_tsv(path)
    if kind in PARQUET:
        return _read_parquet(path)
    raise InputError(f"is no file of a known kind ({', '.join(KINDS)}; all but parquet may be gzipped)", path)


def _read_json_lines(path: Path) -> Iterator[tuple[Place, Row]]:
    for line, content in read_records(path):
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as error:
            cure = ""
            if line == 1 and content.lstrip().startswith("["):
                cure = "; a list of objects becomes one a line by: jq -c '.[]' FILE"
            raise InputError(f"is not valid JSON ({error}): {content[:80]!r}{cure}", path, line) from None
        if not isinstance(row, dict):
            cure = "; a list of objects becomes one a line by: jq -c '.[]' FILE" if isinstance(row, list) else ""
            raise InputError(f"expected a JSON object a line, found {content[:80]!r}{cure}", path, line)
        yield Place(path, line), row


def _read_csv(path: Path) -> Iterator[tuple[Place, Row]]:
    """Fields may be quoted, and then hold commas and line breaks; the place is a row's last line."""
    csv.field_size_limit(2**31 - 1)
    with open_binary(path) as handle:
        reader = csv.reader(_decoded(handle, path), strict=True, skipinitialspace=True)
        try:
            names = next(reader, [])
            _check_names(names, path)
            for values in reader:
                if values:
                    yield Place(path, reader.line_num), _row_of(names, values, path, reader.line_num)
        except csv.Error as error:
            raise InputError(
                f"is not valid CSV ({error}); quote fields that hold quotes, and double these", path, reader.line_num
            ) from None
        except (BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(
                f"the gzip stream is broken ({error}); fetch the file again", path, reader.line_num
            ) from None


def _decoded(lines: Iterable[bytes], path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their ends; `InputError` with the line for one that is no UTF-8."""
    for number, line in enumerate(lines, start=1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(
                f"is not valid UTF-8 at byte {error.start} of the line; convert the file, like iconv -f cp1252 -t "
                "utf-8",
                path,
                number,
            ) from None


def _read_tsv(path: Path) -> Iterator[tuple[Place, Row]]:
    """A tab ends a field, a line a row; quotes are characters like others, as in MS MARCO's and BEIR's files."""
    names: list[str] = []
    for line, content in read_records(path):
        values = content.split("\t")
        if not names:
            _check_names(values, path)
            names = values
        else:
            yield Place(path, line), _row_of(names, values, path, line)


def _check_names(names: list[str], path: Path) -> None:
    if not names or len(set(names)) < len(names) or not all(name.strip() for name in names):
        raise InputError(f"the first line names the columns, each once; found {names!r:.80}", path, 1)
    if len(names) == 1 and (between := next(filter(names[0].__contains__, ";\t|"), None)):
        raise InputError(
            f"the first line is one column, {names[0]!r:.80}, and seems to be separated by {between!r}; "
            "separate columns by commas in .csv, and by tabs in .tsv",
            path,
            1,
        )


def _row_of(names: list[str], values: list[str], path: Path, line: int) -> Row:
    if len(values) != len(names):
        raise InputError(
            f"has {len(values)} columns, and the first line names {len(names)} ({', '.join(names)}); a text with a "
            "line break or a separator in it is better kept as JSON lines",
            path,
            line,
        )
    return dict(zip(names, values, strict=True))


def _open_parquet(path: Path) -> Any:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ModuleNotFoundError:
        raise InputError(PARQUET_CURE, path) from None
    try:
        return ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise InputError(f"cannot be read as parquet ({error}); fetch or write it again", path) from None


def _read_parquet(path: Path) -> Iterator[tuple[Place, Row]]:
    from pyarrow import ArrowException

    number = 0
    file = _open_parquet(path)
    try:
        for batch in file.iter_batches(batch_size=ROWS_A_BATCH):
            for row in batch.to_pylist():
                number += 1
                yield Place(path, number), row
    except (
        ArrowException,
        OSError,
        ValueError,
        OverflowError,
    ) as error:  # texts that are no UTF-8, dates that are none
        raise InputError(f"cannot be read on ({error}); fetch or write it again", path, number + 1) from None
