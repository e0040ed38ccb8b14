"""The texts of a token store's rows, read back from the file that it was made of: a token store holds no text.

The file is read by rows, so that neither time nor memory grows with the collection but for 8 bytes a line. It must be
the one that was tokenized: it is known by its size, its number of lines, and the id in each line that is read.
"""

import gzip
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data.layouts.msmarco import DOCUMENTS, FILES
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.files import open_binary, read_lines
from utils.stores.token_store import TokenStore

READ_BYTES = 2**24


class SourceText(NamedTuple):
    """A passage or query as it stands in the collection. MS MARCO's documents have url and title as title."""

    id: str
    title: str
    text: str

    @property
    def whole(self) -> str:
        """Title and text, as they are tokenized together."""
        return f"{self.title} {self.text}" if self.title else self.text


class SourceLines:
    """Lines of a UTF-8 file by their number from 0; only those that are asked for are read.

    The starts of a plain file's lines are found once, int64 (lines + 1,). A gzipped file has no such starts: it is
    read from its front for every question. `InputError` where the file has fewer lines than `count`.
    """

    def __init__(self, path: Path, count: int) -> None:
        self._path = path
        with open_binary(path) as handle:
            self._starts = None if isinstance(handle, gzip.GzipFile) else line_starts(path)
        if self._starts is not None and len(self._starts) - 1 < count:
            raise InputError(
                f"has {len(self._starts) - 1:,} lines, and its token store is of {count:,}; tokenize again", path
            )

    def read(self, numbers: list[int]) -> list[str]:
        """The lines of these numbers, in their order, without their ends."""
        if self._starts is None:
            wanted, found = set(numbers), {}
            for number, line in read_lines(self._path):
                if number - 1 in wanted:
                    found[number - 1] = line
                    if len(found) == len(wanted):
                        break
            if len(found) < len(wanted):
                raise InputError("has fewer lines than its token store is of; tokenize again", self._path)
            return [found[number] for number in numbers]
        lines = []
        with self._path.open("rb") as handle:
            for number in numbers:
                start, stop = self._starts[number : number + 2].tolist()
                handle.seek(start)
                try:
                    lines.append(
                        handle.read(stop - start).decode("utf-8-sig" if number == 0 else "utf-8").rstrip("\r\n")
                    )
                except UnicodeDecodeError:
                    raise InputError("is not valid UTF-8: the file was changed", self._path, number + 1) from None
        return lines


def line_starts(path: Path) -> np.ndarray:
    """Where each line of a plain file begins, and where the last one ends: bytes, int64 (lines + 1,)."""
    starts, position = [np.zeros(1, np.int64)], 0
    with path.open("rb") as handle:
        while block := handle.read(READ_BYTES):
            starts.append(np.flatnonzero(np.frombuffer(block, np.uint8) == ord("\n")) + (position + 1))
            position += len(block)
    found = np.concatenate(starts)
    return found if found[-1] == position else np.append(found, position)


class Texts:
    """Ids and texts of a token store's rows, from the store and from the file in `data_dir` that it was made of.

    `selected`: the store holds the texts of some of the file's lines, in their order, as those of queries do; where
    each one stands is then found by a first reading. `unpack_in`: a folder for a plain copy of a gzipped file, for
    whoever asks often. `InputError` where the file is not there or is another one by its size, its number of lines,
    or an id.
    """

    def __init__(
        self, store: TokenStore, data_dir: Path | None, *, selected: bool = False, unpack_in: Path | None = None
    ) -> None:
        source = store.meta.source_file
        if data_dir is None:
            raise InputError(f"give --data_dir: the folder with {source}, from which {store.folder} was made")
        self._path = data_dir / source
        if not self._path.is_file():
            raise InputError("no such file; the texts are read from it: name its folder with --data_dir", self._path)
        size = self._path.stat().st_size
        if size != store.meta.source_size:
            raise InputError(
                f"has {size:,} bytes, and {store.folder} was made from a {source} of {store.meta.source_size:,}: it "
                "was changed since; tokenize again, or name the folder of the old one with --data_dir",
                self._path,
            )
        self._ids = SourceLines(store.folder / "ids.txt", len(store))
        self._line_of = selected_lines(store, self._path) if selected else store.lines
        plain = self._path if unpack_in is None else _plain(self._path, unpack_in)
        self._lines = SourceLines(plain, int(self._line_of[-1]) + 1)

    def ids_of(self, rows: np.ndarray) -> list[str]:
        """The ids of these rows, int64 (n,)."""
        return self._ids.read(rows.tolist())

    def read(self, rows: list[int]) -> list[SourceText]:
        """The text of each of these rows."""
        found = []
        numbers = [int(self._line_of[row]) for row in rows]
        for number, text_id, line in zip(numbers, self._ids.read(rows), self._lines.read(numbers), strict=True):
            text = split_line(line, self._path.name)
            if text is None or text.id != text_id:
                own_id = text and text.id
                raise InputError(
                    f"holds {own_id!r} where its token store has {text_id!r}: the file was changed since; tokenize "
                    "again",
                    self._path,
                    number + 1,
                )
            found.append(text)
        return found


def _plain(path: Path, folder: Path) -> Path:
    """The file itself or, if it is gzipped, a plain copy of it in `folder`."""
    with open_binary(path) as handle:
        if not isinstance(handle, gzip.GzipFile):
            return path
        say(f"unpacking {path.name}, whose texts are read by row, into {folder}")
        copy = folder / path.name
        with copy.open("wb") as plain:
            shutil.copyfileobj(handle, plain, READ_BYTES)
    return copy


def selected_lines(store: TokenStore, path: Path) -> np.ndarray:
    """The line, from 0, of each row of a store that holds some of the file's texts, in their order: int64 (rows,)."""
    lines, row = np.empty(len(store), np.int64), 0
    ids = store.iter_ids()
    wanted = next(ids, None)
    for number, line in read_lines(path):
        if wanted is None:
            break
        text = split_line(line, path.name)
        if text is not None and text.id == wanted:
            lines[row] = number - 1
            row += 1
            wanted = next(ids, None)
    if wanted is not None:
        raise InputError(
            f"has no {wanted!r} after the lines of the rows before it in {store.folder}: the file was changed since; "
            "tokenize again",
            path,
        )
    return lines


def split_line(line: str, file_name: str) -> SourceText | None:
    """A passage or query from its line, BEIR's JSON or MS MARCO's TSV; None where that fails."""
    if file_name.removesuffix(".gz").endswith(".jsonl"):
        try:
            record = json.loads(line)
            return SourceText(str(record["_id"]).strip(), str(record.get("title") or ""), str(record["text"]))
        except (ValueError, TypeError, KeyError, RecursionError):
            return None
    text_id, *columns = line.split("\t")
    if file_name.removesuffix(".gz") in FILES[DOCUMENTS]["collection"]:
        *before, text = (column.rstrip() for column in columns) if columns else ("",)
        return SourceText(text_id.strip(), " ".join(before), text)
    return SourceText(text_id.strip(), "", columns[0].rstrip() if columns else "")
