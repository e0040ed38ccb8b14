"""Files and folders that are complete or absent, and lines of text that know where they stand.

Whatever this project writes for a later step is built beside its place under a name that starts with a dot and
holds `.partial-`, flushed to the disk and then renamed. A crash leaves only such partial names behind; the next
writer of the same path removes them.
"""

import codecs
import glob
import gzip
import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from utils.runtime.errors import InputError, disk_errors, first_line

GZIP_MAGIC = b"\x1f\x8b"
OUTGOING = ".partial-outgoing"  # of a folder that is being replaced

_intact: set[tuple[str, int, int, str]] = set()  # path, size, time of the last change in ns, SHA-256, as found


def _partial_path(path: Path) -> Path:
    """A fresh name beside `path`; what earlier crashes left there for the same path is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_partials(path)
    return path.parent / f".{path.name}.partial-{os.getpid()}"


def remove_leftovers(folder: str | os.PathLike) -> None:
    """Removes what crashes left half written in `folder`, of any name: to be called by the folder's only writer."""
    for leftover in Path(folder).glob(".*.partial-*"):
        _remove(leftover)


def _remove_partials(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        _remove(leftover)


def _remove(leftover: Path) -> None:
    """Removes it, but for a folder that was about to be replaced, and is not: that one goes back to its place."""
    outgoing = re.fullmatch(rf"\.(.*){re.escape(OUTGOING)}", leftover.name, re.DOTALL)
    with disk_errors(leftover):
        if outgoing and not (leftover.parent / outgoing[1]).exists():
            leftover.replace(leftover.parent / outgoing[1])
        elif leftover.is_dir():
            shutil.rmtree(leftover)
        else:
            leftover.unlink()


def remove_folder(path: str | os.PathLike) -> None:
    """Removes a folder, of which nothing is to be seen from the first moment on."""
    path = Path(path)
    with disk_errors(path):
        partial = _partial_path(path)
        path.replace(partial)
        shutil.rmtree(partial)


def sync(path: Path) -> None:
    """Makes the content of a file, or the names and renames inside a folder, survive a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_file(path: str | os.PathLike, mode: str = "w") -> Iterator[IO]:
    """Opens a file for writing that appears at `path` only when the block ends without an error.

    Text is UTF-8 with `\\n` line ends. `mode` is "w" or "wb". One writer a path at a time.
    """
    path = Path(path)
    with disk_errors(path):
        partial = _partial_path(path)
        text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
        try:
            with partial.open(mode, **text) as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
        sync(path.parent)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yields an empty folder to fill; it appears at `path`, in place of what was there, when the block ends well."""
    path = Path(path)
    with disk_errors(path):
        partial = _partial_path(path)
        partial.mkdir()
        try:
            yield partial
            for file in (partial, *partial.rglob("*")):
                sync(file)
            outgoing = path.parent / f".{path.name}{OUTGOING}"
            if path.exists():
                path.replace(outgoing)
            partial.replace(path)
            shutil.rmtree(outgoing, ignore_errors=True)
        except BaseException:
            _remove_partials(path)
            raise
        sync(path.parent)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically. Not-a-number is refused, as JSON has none."""
    with atomic_file(path) as handle:
        json.dump(value, handle, indent=2, ensure_ascii=False, allow_nan=False)
        handle.write("\n")


def read_json(path: str | os.PathLike, cure: str = "make it again") -> dict:
    """Reads a JSON object; raises `InputError` with the cure where the file is missing or is no JSON object."""
    path = Path(path)
    try:
        value = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError("no such file", path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"is not valid JSON ({error}); it was damaged or is another file: {cure}", path) from None
    if not isinstance(value, dict):
        raise InputError(f"holds a JSON {type(value).__name__} where an object was expected: {cure}", path)
    return value


def load_array(path: str | os.PathLike, cure: str, memory_map: bool = False) -> np.ndarray:
    """Opens a .npy file of numbers, as a memory map if asked for; `InputError` with the cure where it is none."""
    try:
        array = np.load(path, mmap_mode="r" if memory_map else None, allow_pickle=False)
    except Exception as error:  # numpy hands its header to Python's parser, which raises many kinds for a damaged one
        raise InputError(f"cannot be read ({first_line(error)}); {cure}", path) from None
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise InputError(f"is no array of numbers; {cure}", path)
    return array


def sha256_of_file(path: str | os.PathLike) -> str:
    """The SHA-256 of a file's content, as hexadecimal digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def check_sha256(path: str | os.PathLike, expected: str, cure: str) -> None:
    """`InputError` with the cure where a file is missing or its content has another SHA-256 than expected.

    A process reads a file once, about 1.5 GB a second, and again only where its size or time of change has moved.
    """
    path = Path(path)
    try:
        status = path.stat()
        known = str(path.resolve()), status.st_size, status.st_mtime_ns, expected
        if known in _intact:
            return
        found = sha256_of_file(path)
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror}); {cure}", path) from None
    if found != expected:
        raise InputError(f"is damaged: its content is not what was written; {cure}", path)
    _intact.add(known)


def find_file(folder: str | os.PathLike, *names: str) -> Path:
    """The first of `names` (plain, or gzipped as NAME.gz) that exists in `folder`; `InputError` where none does."""
    folder = Path(folder)
    for name in names:
        for candidate in (folder / name, folder / f"{name}.gz"):
            if candidate.is_file():
                return candidate
    raise InputError(f"holds none of {', '.join(names)} (plain or with .gz)", folder)


def has_file(folder: str | os.PathLike, *names: str) -> bool:
    """Whether `find_file` finds one of them."""
    return any(Path(folder, f"{name}{suffix}").is_file() for name in names for suffix in ("", ".gz"))


def open_binary(path: str | os.PathLike) -> IO[bytes]:
    """Opens a plain or gzipped file (told by its first two bytes) for reading."""
    path = Path(path)
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        raise InputError("no such file", path) from None
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", path) from None
    if handle.read(2) == GZIP_MAGIC:
        handle.close()
        return gzip.open(path, "rb")
    handle.seek(0)
    return handle


def read_lines(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its end) of a plain or gzipped UTF-8 file.

    Only `\\n` (or `\\r\\n`) ends a line, so that text may hold any other separator of Unicode. Raises `InputError`
    for a missing or empty file, for bytes that are not UTF-8 and for a broken gzip stream, with the line.
    """
    number = 0
    with open_binary(path) as handle:
        try:
            for number, line in enumerate(handle, start=1):
                if number == 1:
                    line = line.removeprefix(codecs.BOM_UTF8)
                try:
                    yield number, line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"is not valid UTF-8 at byte {error.start} of the line; convert the file (iconv)",
                        path,
                        number,
                    ) from None
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise InputError(f"the gzip stream is broken ({error}); fetch the file again", path, number + 1) from None
        except OSError as error:
            raise InputError(f"cannot be read on ({error.strerror})", path, number + 1) from None
    if number == 0:
        raise InputError("the file is empty", path)


def read_records(path: str | os.PathLike) -> Iterator[tuple[int, str]]:
    """As `read_lines`, without the blank lines at the end of the file, which say nothing.

    Raises `InputError` besides where a blank line stands before another one, and where all lines are blank.
    """
    blank, found = None, False  # `blank`: the number of the first of the blank lines that came last
    for number, line in read_lines(path):
        if not line.strip():
            blank = blank or number
            continue
        if blank:
            raise InputError(
                f"the line is blank and line {number} is not: lines are missing or were added; blank lines may stand "
                "at the end only, remove this one",
                path,
                blank,
            )
        found = True
        yield number, line
    if not found:
        raise InputError("holds blank lines only", path)


def split_fields(line: str, count: int, path: str | os.PathLike, number: int) -> list[str]:
    """Splits a line at its tabs into exactly `count` fields (the last keeps further tabs)."""
    fields = line.split("\t", count - 1)
    if len(fields) < count:
        raise InputError(
            f"expected {count} fields separated by tabs, found {len(fields)}: {line[:80]!r}", path, number
        )
    return fields
