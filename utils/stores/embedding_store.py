"""Embeddings on disk: one matrix a token store, in shards of contiguous rows, reused when nothing changed.

    FOLDER/NAME.K-of-N.npy             float32 or float16 (rows of shard K, dimensions); NAME is the token store's
    FOLDER/manifest.json               of each whole matrix: what it was made from and with, and its shards' SHA-256
    FOLDER/NAME.K-of-N.unfinished.npy  a shard that is being written, and how far it is whole
    FOLDER/NAME.K-of-N.progress.json

A matrix counts only through the manifest: where its entry is what the reader expects, the matrix is reused,
otherwise it is made again. Before the first of its shards is touched the entry is removed, so that none ever
vouches for shards of two sources. A shard that a crash left unfinished goes on where its last mark stands. Marks
are made by the clock: a text is a millisecond's work on one machine and a second's on another. A row here is a
sequence of the token store: a text, or one chunk of a long one. Whoever reuses a matrix checks its shards' sums
(`check_content`), which costs seconds where encoding again would cost minutes to hours.
"""

import hashlib
import os
import re
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from utils.runtime.errors import InputError, disk_errors
from utils.stores.files import check_sha256, load_array, read_json, remove_folder, sha256_of_file, sync, write_json

FORMAT_VERSION = 2
DTYPES = ("float32", "float16")
MARK_SECONDS = 30  # what a kill costs at most, and the batch in hand
CHECKED_ROWS = 4_096  # of an unfinished shard, at once
CURE = "remove the folder, and it is encoded again"


@dataclass(frozen=True)
class EmbeddingSource:
    """What a matrix follows from: equal sources give equal embeddings (to rounding).

    `weights` and `tokens` are fingerprints of the checkpoint and of the token store; `max_length` and
    `chunk_length` (0: rows are not cut) count tokens; `precision` is the type of the matrix products, and `dtype`,
    one of `DTYPES`, that of the vectors on the disk; `reading` is how vectors are read off the last layer.
    """

    weights: str
    tokens: str
    max_length: int
    chunk_length: int
    precision: str
    dtype: str
    rows: int
    dimensions: int
    reading: str = "cls"


@dataclass(frozen=True)
class _Entry:
    """What the manifest says of a matrix: its source, and the SHA-256 of each shard's file."""

    source: EmbeddingSource
    digests: list[str]


class EmbeddingMatrix:
    """A whole matrix, opened for reading through memory maps: (rows, dimensions), given out as float32.

    `collapsed` is set where its encoder gave different texts the same vector (`utils.mining.collapse`).
    """

    collapsed = False

    def __init__(self, folder: Path, name: str, entry: _Entry) -> None:
        source, shards = entry.source, len(entry.digests)
        self._folder, self._name = folder, name
        self._digests = {_shard_path(folder, name, k, shards): digest for k, digest in enumerate(entry.digests)}
        self._shards = [_open(path, source) for path in self._digests]
        self._starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self._shards])])
        self.shape = (int(self._starts[-1]), source.dimensions)
        if len(self) != source.rows:
            raise InputError(
                f"the shards of {name} hold {len(self)} rows and its manifest says {source.rows}; {CURE}", folder
            )

    def __len__(self) -> int:
        return self.shape[0]

    def all(self) -> np.ndarray:
        """Every row, float32 (rows, dimensions); in memory, but where one shard of float32 holds them."""
        return self.rows(0, len(self))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1, float32 (stop - start, dimensions); a view where stop <= `mapped_until(start)`."""
        pieces = [
            shard[max(start - first, 0) : stop - first]
            for shard, first in zip(self._shards, self._starts[:-1], strict=True)
            if first < stop and start < first + len(shard)
        ]
        if len(pieces) == 1:
            return pieces[0].astype(np.float32, copy=False)
        return np.concatenate([np.empty((0, self.shape[1]), np.float32), *pieces])

    def take(self, rows: np.ndarray) -> np.ndarray:
        """These rows, int64 (n,), float32 (n, dimensions); no other one is read."""
        taken = np.empty((len(rows), self.shape[1]), np.float32)
        for shard, first in zip(self._shards, self._starts[:-1], strict=True):
            here = (first <= rows) & (rows < first + len(shard))
            taken[here] = shard[rows[here] - first]
        return taken

    def check_content(self, first: int = 0, step: int = 1) -> None:
        """`InputError` where shard `first`, or any `step` shards further on, is not what was written."""
        for path in list(self._digests)[first::step]:
            check_sha256(path, self._digests[path], CURE)

    def others(self) -> list[Path]:
        """What else lies in the folder of a matrix of this name: marks, and shards of an older layout."""
        return [path for path in self._folder.glob(f"{self._name}.*-of-*.*") if path not in self._digests]

    def remove_others(self) -> None:
        """Removes them: to be called where nobody else encodes in the folder."""
        for path in self.others():
            path.unlink(missing_ok=True)

    def mapped_until(self, row: int) -> int:
        """The end of the shard of float32 that holds this row, or just the row where its shard is of another type."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return int(self._starts[number + 1]) if self._shards[number].dtype == np.float32 else row


def check_dtype(name: str) -> None:
    if name not in DTYPES:
        raise InputError(f"--embedding_dtype {name!r}: there are {', '.join(DTYPES)}")


def find_embeddings(folder: str | Path, name: str, source: EmbeddingSource) -> EmbeddingMatrix | None:
    """The matrix NAME in `folder` if a whole one of this very source is there, else None."""
    entry = _read_manifest(Path(folder)).get(name)
    return EmbeddingMatrix(Path(folder), name, entry) if entry and entry.source == source else None


def has_embeddings(folder: str | Path, name: str) -> bool:
    """Whether a whole matrix NAME is in `folder`, of whichever weights and texts."""
    return name in _read_manifest(Path(folder))


def open_embeddings(folder: str | Path, name: str, tokens: str) -> EmbeddingMatrix:
    """The whole matrix NAME in `folder`, by whichever weights; `InputError` where none is of the store `tokens`."""
    entry = _read_manifest(Path(folder)).get(name)
    if entry is None:
        raise InputError(f"holds no embeddings of {name}; encode them (drivers/run_ann_data_gen.py)", folder)
    if entry.source.tokens != tokens:
        raise InputError(f"holds embeddings of another {name} than the run's token store; encode again", folder)
    matrix = EmbeddingMatrix(Path(folder), name, entry)
    matrix.check_content()
    return matrix


def record_embeddings(folder: str | Path, name: str, source: EmbeddingSource, shards: int) -> EmbeddingMatrix:
    """Enters a matrix whose shards are all written into the manifest; shards of an older layout are removed."""
    folder = Path(folder)
    digests = _digests_of_whole(folder, name, source, shards)
    assert None not in digests, "a shard that is not whole"
    entry = _Entry(source, digests)
    matrix = EmbeddingMatrix(folder, name, entry)
    _write_manifest(folder, {**_read_manifest(folder), name: entry})
    matrix.remove_others()
    return matrix


def forget_embeddings(folder: str | Path, name: str) -> None:
    """Removes NAME from the manifest: to be done once, before the first `ShardWriter` of any process is made."""
    matrices = _read_manifest(Path(folder))
    if matrices.pop(name, None) is not None:
        _write_manifest(Path(folder), matrices)


def remove_earlier_embeddings(output_dir: str | Path, step: int, public_dir: str | Path) -> None:
    """Removes embeddings-STEP of every step before `step` but 0, the initial model's; `public_dir` stays too."""
    for folder in Path(output_dir).glob("embeddings-*"):
        earlier = re.fullmatch(r"embeddings-(\d+)", folder.name)
        if earlier and 0 < int(earlier[1]) < step and folder.resolve() != Path(public_dir).resolve():
            remove_folder(folder)


class ShardWriter:
    """Writes one shard, batch by batch, and marks every `MARK_SECONDS` what a crash will leave.

    `order`, int64 (rows,), is the order in which the shard's rows come, each once. `done` of them are written: 0, or
    as many as an earlier writer of the same shard, source and order had marked. Whatever else lies in the shard's
    place is removed before the first row is written. The finished shard appears by a rename. `InputError` where a
    shard that is gone on with, or stands finished, is not what was written.
    """

    def __init__(
        self, folder: str | Path, name: str, shard: int, shards: int, order: np.ndarray, source: EmbeddingSource
    ) -> None:
        self._path = _shard_path(Path(folder), name, shard, shards)
        self._unfinished = self._path.with_suffix(".unfinished.npy")
        self._order = order
        self._identity = {**asdict(source), "order": hashlib.sha256(order).hexdigest()}
        self._written = hashlib.sha256()  # of the rows that are written, in their order
        self._data: np.memmap | None = None  # of a shard that stands in its place already
        with disk_errors(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self.done = self._rows_done(source)
            if self.done == 0:
                self._data = self._start_over(source)
            elif not self._path.exists():
                self._data = np.lib.format.open_memmap(self._unfinished, mode="r+")
        self._marked = time.monotonic()

    def _start_over(self, source: EmbeddingSource) -> np.memmap:
        """A shard of zeros; what lies there is of another source, and no mark of this one may stand beside it."""
        for stale in (_progress_path(self._path), self._path):
            stale.unlink(missing_ok=True)
        sync(self._path.parent)
        shape = (len(self._order), source.dimensions)
        data = np.lib.format.open_memmap(self._unfinished, mode="w+", dtype=source.dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk shows here, and not as SIGBUS when rows come
            with self._unfinished.open("r+b") as handle:
                os.posix_fallocate(handle.fileno(), 0, self._unfinished.stat().st_size)
        return data

    def _rows_done(self, source: EmbeddingSource) -> int:
        mark = _read_mark(self._path)
        if not self._identity.items() <= mark.items():
            return 0
        done, digest, length = mark.get("done"), mark.get("sha256"), len(self._order)
        if type(done) is not int or not 0 <= done <= length:
            raise InputError(f"done is {done!r} of {length} rows; {CURE}", _progress_path(self._path))
        if self._path.exists():
            if done < length or not isinstance(digest, str):
                return 0  # the mark is not this shard's
            check_sha256(self._path, digest, CURE)
            return done
        if not self._unfinished.exists() or "written_sha256" not in mark:  # earlier versions made no sum
            return 0
        data = load_array(self._unfinished, CURE, memory_map=True)
        if data.shape != (length, source.dimensions) or data.dtype != source.dtype:
            raise InputError(f"holds {data.dtype} {data.shape}; {CURE}", self._unfinished)
        for start in range(0, done, CHECKED_ROWS):
            self._written.update(data[self._order[start : min(start + CHECKED_ROWS, done)]])
        if mark.get("written_sha256") != self._written.hexdigest():
            raise InputError(f"is damaged: its first {done} rows are not what was written; {CURE}", self._unfinished)
        return done

    def write(self, vectors: np.ndarray) -> None:
        """Puts the next `vectors`, (n, dimensions), at their rows."""
        vectors = np.ascontiguousarray(vectors, dtype=self._data.dtype)
        self._data[self._order[self.done : self.done + len(vectors)]] = vectors
        written = self._written.copy()
        written.update(vectors)
        done = self.done + len(vectors)
        self._written, self.done = written, done  # at once: a signal may raise after any call, and a mark follow
        if time.monotonic() - self._marked >= MARK_SECONDS:
            self.mark()

    def mark(self, **more: str) -> None:
        """Declares the rows that are written to be so, after they are on the disk."""
        if self._data is not None:
            self._data.flush()
            mark = {**self._identity, "done": self.done, "written_sha256": self._written.hexdigest(), **more}
            write_json(_progress_path(self._path), mark)
            self._marked = time.monotonic()

    def close(self) -> None:
        """Moves the shard to its place, with its checksum in the mark, unless it stood there already."""
        if self._data is not None:
            self.mark(sha256=sha256_of_file(self._unfinished))
            self._data = None
            with disk_errors(self._path):
                self._unfinished.replace(self._path)


def shards_are_whole(folder: str | Path, name: str, source: EmbeddingSource, shards: int) -> bool:
    """Whether every shard of this source is in its place.

    To be asked once all processes have made their `ShardWriter`: until then, files of other attempts may lie there.
    """
    return None not in _digests_of_whole(Path(folder), name, source, shards)


def _digests_of_whole(folder: Path, name: str, source: EmbeddingSource, shards: int) -> list[str | None]:
    """The SHA-256 of each shard of this source by its last mark, None of one that is not in its place."""
    digests = []
    for path in (_shard_path(folder, name, k, shards) for k in range(shards)):
        mark = _read_mark(path) if path.exists() else {}
        digest = mark.get("sha256") if asdict(source).items() <= mark.items() else None
        digests.append(digest if isinstance(digest, str) else None)
    return digests


def _shard_path(folder: Path, name: str, shard: int, shards: int) -> Path:
    return folder / f"{name}.{shard}-of-{shards}.npy"


def _progress_path(path: Path) -> Path:
    return path.with_suffix(".progress.json")


def _read_mark(path: Path) -> dict:
    progress = _progress_path(path)
    return read_json(progress, CURE) if progress.exists() else {}


def _read_manifest(folder: Path) -> dict[str, _Entry]:
    """The matrices that are whole, by name; none where there is no manifest or it is of another version."""
    path = folder / "manifest.json"
    manifest = read_json(path, CURE) if path.exists() else {}
    if manifest.get("format_version") != FORMAT_VERSION:
        return {}
    matrices = manifest.get("matrices")
    if not isinstance(matrices, dict):
        raise InputError(f"matrices is {matrices!r:.80}, not an object; {CURE}", path)
    return {name: _parse_entry(path, name, entry) for name, entry in matrices.items()}


def _parse_entry(path: Path, name: str, entry: object) -> _Entry:
    expected = {field.name: field.type for field in fields(EmbeddingSource)} | {"sha256": list}
    if not isinstance(entry, dict) or any(type(entry.get(key)) is not kind for key, kind in expected.items()):
        raise InputError(f"the entry of {name!r} is not as it was written: {entry!r:.200}; {CURE}", path)
    digests = entry["sha256"]
    if entry["dtype"] not in DTYPES or not all(isinstance(digest, str) for digest in digests):
        raise InputError(f"the entry of {name!r} has another dtype or sha256 than was written; {CURE}", path)
    return _Entry(EmbeddingSource(**{key: entry[key] for key in expected if key != "sha256"}), digests)


def _write_manifest(folder: Path, matrices: dict[str, _Entry]) -> None:
    content = {name: {**asdict(entry.source), "sha256": entry.digests} for name, entry in matrices.items()}
    write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, "matrices": content})


def _open(path: Path, source: EmbeddingSource) -> np.ndarray:
    shard = load_array(path, CURE, memory_map=True)
    if shard.shape[1:] != (source.dimensions,) or shard.dtype != source.dtype:
        found, expected = f"{shard.dtype} {shard.shape}", f"{source.dtype} (rows, {source.dimensions})"
        raise InputError(f"holds {found}, not {expected}; {CURE}", path)
    return shard
