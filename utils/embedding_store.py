"""Embeddings on disk: one matrix a token store, in shards of contiguous rows, reused when nothing changed.

    FOLDER/NAME.K-of-N.npy             float32 (rows of shard K, dimensions); NAME is that of the token store
    FOLDER/manifest.json               of each whole matrix: what it was made from and with, and its layout
    FOLDER/NAME.K-of-N.unfinished.npy  a shard that is being written, and how far it is whole
    FOLDER/NAME.K-of-N.progress.json

A matrix counts only through the manifest: where its entry is what the reader expects, the matrix is reused,
otherwise it is made again. Before the first of its shards is touched the entry is removed, so that none ever
vouches for shards of two sources. A shard that a crash left unfinished goes on where its last mark stands. A row
here is a sequence of the token store: a text, or one chunk of a long one.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from utils.errors import InputError
from utils.files import read_json, sync_folder, write_json

FORMAT_VERSION = 1


@dataclass(frozen=True)
class EmbeddingSource:
    """What a matrix follows from: equal sources give equal embeddings (to rounding).

    `weights` and `tokens` are fingerprints of the checkpoint and of the token store; `max_length` and
    `chunk_length` (0: rows are not cut) count tokens; `precision` is the type of the matrix products.
    """

    weights: str
    tokens: str
    max_length: int
    chunk_length: int
    precision: str
    rows: int
    dimensions: int


class EmbeddingMatrix:
    """A whole matrix, opened for reading through memory maps: (rows, dimensions), float32."""

    def __init__(self, folder: Path, name: str, source: EmbeddingSource, shards: int) -> None:
        paths = [_shard_path(folder, name, k, shards) for k in range(shards)]
        self._shards = [_open(path, source.dimensions) for path in paths]
        self._starts = np.concatenate([[0], np.cumsum([len(shard) for shard in self._shards])])
        self.shape = (int(self._starts[-1]), source.dimensions)
        if len(self) != source.rows:
            raise InputError(
                f"the shards of {name} hold {len(self)} rows and its manifest says {source.rows}; "
                "remove the folder, and they are encoded again",
                folder,
            )

    def __len__(self) -> int:
        return self.shape[0]

    def all(self) -> np.ndarray:
        """Every row, float32 (rows, dimensions); in memory where there are several shards."""
        return self.rows(0, len(self))

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Rows start … stop - 1, float32 (stop - start, dimensions); a view where one shard holds them."""
        pieces = [
            shard[max(start - first, 0) : stop - first]
            for shard, first in zip(self._shards, self._starts[:-1], strict=True)
            if first < stop and start < first + len(shard)
        ]
        if len(pieces) == 1:
            return pieces[0]
        return np.concatenate([np.empty((0, self.shape[1]), np.float32), *pieces])


def find_embeddings(folder: str | Path, name: str, source: EmbeddingSource) -> EmbeddingMatrix | None:
    """The matrix NAME in `folder` if a whole one of this very source is there, else None."""
    folder = Path(folder)
    entry = _read_manifest(folder).get(name)
    if not isinstance(entry, dict) or {k: v for k, v in entry.items() if k != "shards"} != asdict(source):
        return None
    return EmbeddingMatrix(folder, name, source, entry["shards"])


def record_embeddings(folder: str | Path, name: str, source: EmbeddingSource, shards: int) -> EmbeddingMatrix:
    """Enters a matrix whose shards are all written into the manifest; shards of an older layout are removed."""
    folder = Path(folder)
    matrix = EmbeddingMatrix(folder, name, source, shards)
    _write_manifest(folder, {**_read_manifest(folder), name: {**asdict(source), "shards": shards}})
    current = {_shard_path(folder, name, k, shards) for k in range(shards)}
    for path in folder.glob(f"{name}.*-of-*.*"):
        if path not in current:
            path.unlink()
    return matrix


def forget_embeddings(folder: str | Path, name: str) -> None:
    """Removes NAME from the manifest: to be done once, before the first `ShardWriter` of any process is made."""
    matrices = _read_manifest(Path(folder))
    if matrices.pop(name, None) is not None:
        _write_manifest(Path(folder), matrices)


class ShardWriter:
    """Writes one shard front to back; `mark` makes what stands before it survive a crash.

    `done` is the number of rows that are whole already: 0, or where an earlier writer of the same shard and source
    stopped. The finished shard appears by a rename.
    """

    def __init__(self, folder: str | Path, name: str, shard: int, shards: int, rows: int, source: EmbeddingSource):
        self._path = _shard_path(Path(folder), name, shard, shards)
        self._unfinished = self._path.with_suffix(".unfinished.npy")
        self._progress = self._path.with_suffix(".progress.json")
        self._identity = {**asdict(source), "shard_rows": rows}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self.done = self._rows_done()
        shape = (rows, source.dimensions)
        if self.done == 0:  # what lies there is of another source, and no mark of this one may ever stand beside it
            for stale in (self._progress, self._path):
                stale.unlink(missing_ok=True)
            sync_folder(self._path.parent)
        if rows == 0:
            np.save(self._unfinished, np.empty(shape, np.float32))
            self._data = np.empty(shape, np.float32)
        elif self.done:
            self._data = np.lib.format.open_memmap(self._unfinished, mode="r+")
        else:
            self._data = np.lib.format.open_memmap(self._unfinished, mode="w+", dtype=np.float32, shape=shape)

    def _rows_done(self) -> int:
        for finished in (self._path, self._unfinished):
            if not (self._progress.exists() and finished.exists()):
                continue
            progress = read_json(self._progress)
            if {k: v for k, v in progress.items() if k != "done"} == self._identity:
                if finished == self._path:
                    finished.replace(self._unfinished)
                return progress["done"]
        return 0

    def write(self, rows: np.ndarray, vectors: np.ndarray) -> None:
        """Puts `vectors` (n, dimensions) at these rows of the shard, int64 (n,)."""
        self._data[rows] = vectors

    def mark(self, done: int) -> None:
        """Declares the first `done` rows whole, after they are on the disk."""
        if isinstance(self._data, np.memmap):
            self._data.flush()
        write_json(self._progress, {**self._identity, "done": done})

    def close(self) -> None:
        """Moves the shard to its place."""
        self.mark(len(self._data))
        del self._data
        self._unfinished.replace(self._path)


def _shard_path(folder: Path, name: str, shard: int, shards: int) -> Path:
    return folder / f"{name}.{shard}-of-{shards}.npy"


def _read_manifest(folder: Path) -> dict:
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    manifest = read_json(path)
    return manifest.get("matrices", {}) if manifest.get("format_version") == FORMAT_VERSION else {}


def _write_manifest(folder: Path, matrices: dict) -> None:
    write_json(folder / "manifest.json", {"format_version": FORMAT_VERSION, "matrices": matrices})


def _open(path: Path, dimensions: int) -> np.ndarray:
    try:
        shard = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"cannot be read ({error}); remove the folder, and it is encoded again", path) from None
    if shard.ndim != 2 or shard.shape[1] != dimensions or shard.dtype != np.float32:
        raise InputError(
            f"holds {shard.dtype} {shard.shape}, not float32 (rows, {dimensions}); remove the folder", path
        )
    return shard
