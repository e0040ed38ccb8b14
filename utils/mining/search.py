"""Exact search: the k passages of the largest inner product, for every query.

A score is the inner product of two float32 vectors, summed in float32 in one order that is the same for every pair on
one kind of device. Products of matrices are faster and not quite that: their sums run in another order, or in half
precision. So they only propose. Each proposal comes with a bound on how far it can be off, and every passage that
could be among the k best within that bound is scored by itself. Equal scores are ordered by row, the lower one first,
and also at the cut. What is found therefore depends on nothing but the vectors and the kind of device: not on blocks,
processes or the type of the products.

Passages stream by in blocks and queries in windows, so that memory grows with neither. On a CPU faiss multiplies,
straight from the memory map; on a GPU torch does, in half precision, and needs no faiss: so it is imported where it
is used.

An approximate index of faiss can propose instead, for those who want one; then nothing bounds what it misses.
"""

import secrets
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from utils.batching import Sequences
from utils.runtime import distributed
from utils.runtime.errors import InputError, disk_errors, first_line
from utils.runtime.logs import progress, say, say_once
from utils.stores.embedding_store import EmbeddingMatrix

BLOCK_BYTES = 2**29  # of passages, in float32, that are copied into memory
MAPPED_BYTES = 2**31  # of passages that a CPU reads from their file where they are
WINDOW_CANDIDATES = 2**25  # best passages of a window of queries, held at once: 400 MB
LINES = 2**14  # queries that a block is searched for at once
SPARE = 56  # proposals beyond k: near-ties at the cut seldom need more
MANY = 0.1  # of the queries: near-ties at the cut are out of the ordinary
MOST_PROPOSALS = 2**25  # held at once where they need more
TILE_COLUMNS, TILE_SCORES = 2**18, 2**29  # of a product on a GPU: 1 GiB
RESCORED = 2**18  # pairs whose vectors a GPU gathers at once: 800 MB each of queries and passages, 768 wide
SEGMENT = 32  # columns of a tile that stand or fall by their best
MARGIN = 1.001  # on bounds, for the rounding of the lengths that they are made of
TRAINING_SAMPLE = 2**18  # passages that an approximate index is trained on


class Block(Protocol):
    """Passages that are searched at once, n of D dimensions.

    `propose` gives the `count` best for queries float32 (L, D) by products of matrices, best first: scores float32,
    how far each may be off at most, and columns int64, each (L, count). `score` gives the scores, float32 (L, m), for
    columns int64 (L, m); -inf where a column is -1.
    """

    def __len__(self) -> int: ...
    def propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]: ...
    def score(self, queries: Tensor, columns: Tensor) -> Tensor: ...


def summing_error(dimensions: int) -> float:
    """How far a float32 inner product of x and y, summed in any order, is off at most, over |x| |y|.

    D u / (1 - D u) with u = 2^-24 (Higham, Accuracy and Stability of Numerical Algorithms, 2002, eq. 3.5).
    """
    return dimensions * 2**-24 / (1 - dimensions * 2**-24)


class FloatBlock:
    """Passages on the CPU, searched by faiss in float32."""

    def __init__(self, vectors: np.ndarray) -> None:
        self._vectors = np.ascontiguousarray(vectors, dtype=np.float32)
        self._longest = float(np.sqrt(np.einsum("nd,nd->n", self._vectors, self._vectors).max()))

    def __len__(self) -> int:
        return len(self._vectors)

    def propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        import faiss

        found = faiss.knn(queries.numpy(), self._vectors, count, metric=faiss.METRIC_INNER_PRODUCT)
        scores, columns = map(torch.from_numpy, found)
        errors = 2 * MARGIN * summing_error(queries.shape[1]) * self._longest * queries.norm(dim=1, keepdim=True)
        return scores, errors.expand_as(scores), columns

    def score(self, queries: Tensor, columns: Tensor) -> Tensor:
        import faiss

        scores = torch.empty(columns.shape)
        arrays = scores.numpy(), queries.numpy(), self._vectors, columns.contiguous().numpy()
        faiss.fvec_inner_products_by_idx(*map(faiss.swig_ptr, arrays), queries.shape[1], *columns.shape)
        return scores


class HalfBlock:
    """Passages on a GPU, multiplied in half precision.

    What all passages have in common does not rank them, so their mean is taken off first: half precision then has
    its digits for what tells them apart. Vectors are scaled by powers of two to a length below 1, where float16
    neither overflows nor runs out of small numbers.
    """

    def __init__(self, vectors: np.ndarray, device: torch.device, dtype: torch.dtype = torch.float16) -> None:
        torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False  # sums stay in float32
        self._vectors = torch.from_numpy(np.array(vectors, dtype=np.float32)).to(device)
        self._mean = self._vectors.mean(0)
        centered = self._vectors - self._mean
        self._longest, self._longest_centered = (part.norm(dim=1).max() for part in (self._vectors, centered))
        self._scale = _power_of_two_above(self._longest_centered)
        self._half = (centered / self._scale).to(dtype)  # n, D
        rounding = (self._half.float() * self._scale - centered).norm(dim=1).max()
        self._rounding = rounding + 2**-23 * self._longest  # what taking off the mean costs is in the second

    def __len__(self) -> int:
        return len(self._vectors)

    def propose(self, queries: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        length = queries.norm(dim=1, keepdim=True)
        scale = _power_of_two_above(length)
        half = (queries / scale).to(self._half.dtype)
        parts = []
        for start in range(0, len(self), TILE_COLUMNS):
            tile = self._half[start : start + TILE_COLUMNS]
            lines = max(1, TILE_SCORES // len(tile))
            found = [_best_by_segments(part @ tile.T, min(count, len(tile))) for part in half.split(lines)]
            scores, columns = map(torch.cat, zip(*found, strict=True))
            parts.append((scores, columns + start))
        scores, columns = (torch.cat(of_tiles, dim=1) for of_tiles in zip(*parts, strict=True))
        scores, order = scores.topk(count, dim=1)
        columns = columns.gather(1, order)

        # |q·p - q'·p'| <= |q - q'| |p| + |q'| |p - p'|; then sums, and the product's own type; then the mean again.
        rounded = half.float() * scale
        errors = (rounded - queries).norm(dim=1, keepdim=True) * self._longest_centered
        errors = errors + rounded.norm(dim=1, keepdim=True) * self._rounding
        sums = 8 * summing_error(queries.shape[1])  # generous: how a GPU's matrix units round is not documented
        errors = errors + sums * length * (self._longest_centered + self._longest)
        own, scale = torch.finfo(half.dtype), scale * self._scale
        scores = scores.float() * scale
        errors = MARGIN * (errors + own.tiny * own.eps * scale) + 2 * own.eps * scores.abs()
        shift = (queries.double() @ self._mean.double()).float()
        return scores + shift[:, None], errors, columns

    def score(self, queries: Tensor, columns: Tensor) -> Tensor:
        scores = torch.full(columns.shape, -torch.inf, device=queries.device)
        lines, places = (columns >= 0).nonzero(as_tuple=True)
        for line, place in zip(lines.split(RESCORED), places.split(RESCORED), strict=True):
            scores[line, place] = _sum_in_pairs(queries[line] * self._vectors[columns[line, place]])
        return scores


def _sum_in_pairs(terms: Tensor) -> Tensor:
    """The sum of each line of (n, D), in an order that no reduction over several lines chooses: (n,)."""
    terms = pad(terms, (0, (1 << (terms.shape[1] - 1).bit_length()) - terms.shape[1]))
    while terms.shape[1] > 1:
        terms = terms[:, ::2] + terms[:, 1::2]
    return terms[:, 0]


def _power_of_two_above(lengths: Tensor) -> Tensor:
    return lengths.clamp(min=1e-30).log2().ceil().exp2()


def _best_by_segments(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` best of each line, in no order: values and columns. The best `count` segments hold them all."""
    columns = scores.shape[1]
    if columns <= count * SEGMENT:
        return scores.topk(count, dim=1, sorted=False)
    if columns % SEGMENT:
        scores = pad(scores, (0, -columns % SEGMENT), value=-torch.inf)
    segments = scores.unflatten(1, (-1, SEGMENT))
    best_segments = segments.amax(2).topk(count, dim=1, sorted=False).indices  # lines, count
    among = segments.gather(1, best_segments[:, :, None].expand(-1, -1, SEGMENT)).flatten(1)
    values, place = among.topk(count, dim=1, sorted=False)
    return values, best_segments.gather(1, place // SEGMENT) * SEGMENT + place % SEGMENT


def best(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of each line by (score descending, row ascending): scores and rows, each (Q, min(k, n)).

    `scores` (Q, n) float32; `rows` int64 (n,) or (Q, n), in any order. Entries of -inf come last, in any order.
    """
    rows = rows.expand_as(scores)
    k = min(k, scores.shape[1])
    if k == 0:
        return scores[:, :0], rows[:, :0]
    top, index = scores.topk(k, dim=1)
    top_rows = rows.gather(1, index)
    # topk may keep any of several equal scores at the cut: such lines, seldom any, are sorted in full.
    crowded = ((scores >= top[:, -1:]) & (scores > -torch.inf)).sum(1) > k
    if crowded.any():
        top[crowded], top_rows[crowded] = _sorted(scores[crowded], rows[crowded], k)
    return _sorted(top, top_rows, k)


def _sorted(scores: Tensor, rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Lines sorted by (score descending, row ascending), cut after k."""
    by_row = rows.argsort(dim=1, stable=True)
    scores, rows = scores.gather(1, by_row), rows.gather(1, by_row)
    by_score = scores.argsort(dim=1, descending=True, stable=True)[:, :k]
    return scores.gather(1, by_score), rows.gather(1, by_score)


def best_of_block(
    block: Block, queries: Tensor, k: int, least: Tensor, count: int | None = None
) -> tuple[Tensor, Tensor]:
    """The k best passages of a block that reach the scores `least` (L,): scores and columns, (L, min(k, n)).

    Best first, and -inf with -1 where fewer reach it. Begins with `count` proposals a query, `SPARE` beyond k.
    """
    k = min(k, len(block))
    count = min(count or k + SPARE, len(block))
    coarse, error, columns = block.propose(queries, count)
    least = torch.maximum(least, coarse[:, k - 1] - error[:, k - 1])  # the k best of the block reach at least this
    possible = coarse + error >= least[:, None]
    scores = block.score(queries, columns.where(possible, -1))
    scores, columns = best(scores, columns, k)
    columns = columns.where(scores > -torch.inf, -1)
    unsettled = possible[:, -1].nonzero()[:, 0]  # what was not proposed could reach it as well
    if count < len(block) and len(unsettled):
        if len(unsettled) > MANY * len(queries):
            say_once(
                "warning: many passages score so much alike that search takes long to rank them; a checkpoint that "
                "gives all texts about the same vector is broken"
            )
        for part in unsettled.split(max(1, MOST_PROPOSALS // (4 * count))):
            scores[part], columns[part] = best_of_block(block, queries[part], k, least[part], 4 * count)
    return scores, columns


@torch.inference_mode()
def search(
    queries: np.ndarray, passages: EmbeddingMatrix, first: int, last: int, k: int, device: torch.device
) -> tuple[np.ndarray, np.ndarray]:
    """The k best of passage rows first … last - 1 for each query: scores float32 and rows int64, (Q, min(k, n)).

    `queries` float (Q, D).
    """
    queries = np.require(queries, dtype=np.float32, requirements=["C", "W"])  # a view of a file is copied
    k = min(k, last - first)
    top = torch.full((len(queries), k), -torch.inf)
    top_rows = torch.full((len(queries), k), -1, dtype=torch.int64)
    with progress(total=len(queries) * (last - first), unit="scores", label="search", delay=1) as bar:
        for start, stop in _blocks(passages, first, last, 0 if device.type == "cuda" else MAPPED_BYTES):
            vectors, block = passages.rows(start, stop), None  # the last block goes before the next one comes
            block = HalfBlock(vectors, device) if device.type == "cuda" else FloatBlock(vectors)
            for line in range(0, len(queries), LINES):
                lines = slice(line, line + LINES)
                part, held = torch.from_numpy(queries[lines]).to(device), top[lines].to(device)
                scores, columns = best_of_block(block, part, k, held[:, -1])
                rows = columns.where(columns < 0, columns + start)
                rows = torch.cat([top_rows[lines].to(device), rows], dim=1)
                top[lines], top_rows[lines] = best(torch.cat([held, scores], dim=1), rows, k)
                bar.update(len(part) * (stop - start))
                distributed.beat()
    return top.numpy(), top_rows.numpy()


def _blocks(
    passages: EmbeddingMatrix, first: int, last: int, mapped_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[int, int]]:
    """Ranges that go over rows first … last - 1: of BLOCK_BYTES, or of `mapped_bytes` where rows are mapped."""
    copied, mapped = (max(1, most // (4 * passages.shape[1])) for most in (BLOCK_BYTES, mapped_bytes))
    while first < last:
        stop = max(first + copied, min(first + mapped, passages.mapped_until(first)))
        yield first, min(stop, last)
        first = stop


class ApproximateIndex:
    """An index of faiss over passage rows first … last - 1, by faiss's factory string; in memory, on the CPU.

    `parameters` are of the search, like nprobe=64 or efSearch=128. What the index proposes is scored exactly.
    """

    def __init__(
        self, passages: EmbeddingMatrix, first: int, last: int, factory: str, parameters: str = "", seed: int = 0
    ) -> None:
        import faiss

        self._passages, self._first, self._last = passages, first, last
        dimensions = passages.shape[1]
        try:
            self._index = faiss.index_factory(dimensions, factory, faiss.METRIC_INNER_PRODUCT)
        except RuntimeError:
            raise InputError(
                f"--index_factory {factory!r} is not a description that faiss knows for {dimensions} dimensions; "
                "Flat is exact search, and IVF4096,Flat or HNSW32 are examples of others"
            ) from None
        if not self._index.is_trained and last > first:
            chosen = np.random.default_rng(seed).random(last - first) < TRAINING_SAMPLE / max(1, last - first)
            sample = [
                passages.rows(start, stop)[chosen[start - first : stop - first]]
                for start, stop in _blocks(passages, first, last)
            ]
            say(f"training an index {factory} on {int(chosen.sum()):,} passages")
            try:
                self._index.train(np.concatenate(sample).astype(np.float32, copy=False))
            except RuntimeError as error:
                raise InputError(f"--index_factory {factory!r} cannot be trained: {first_line(error)}") from None
        with progress(total=last - first, unit="passages", label=f"index {factory}") as bar:
            for start, stop in _blocks(passages, first, last):
                self._index.add(np.ascontiguousarray(passages.rows(start, stop), dtype=np.float32))
                bar.update(stop - start)
                distributed.beat()
        if parameters:
            try:
                faiss.ParameterSpace().set_index_parameters(self._index, parameters)
            except RuntimeError as error:
                reason = first_line(error)
                raise InputError(f"--index_parameters {parameters!r} do not fit {factory!r}: {reason}") from None

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """As `search`; a query with fewer than k proposals has -inf and -1 at the end."""
        queries, k = np.array(queries, dtype=np.float32), min(k, self._last - self._first)
        if k == 0:
            return np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
        columns = torch.from_numpy(self._index.search(queries, k)[1])  # Q, k
        scores = torch.full(columns.shape, -torch.inf)
        for start, stop in _blocks(self._passages, self._first, self._last):
            block = FloatBlock(self._passages.rows(start, stop))
            here = (columns >= start - self._first) & (columns < stop - self._first)
            own = block.score(torch.from_numpy(queries), (columns - (start - self._first)).where(here, -1))
            scores = own.where(here, scores)
        rows = columns.where(columns < 0, columns + self._first)
        scores, rows = best(scores, rows, columns.shape[1])
        return scores.numpy(), rows.numpy()


def search_together(
    queries: EmbeddingMatrix,
    passages: EmbeddingMatrix,
    k: int,
    device: torch.device,
    exchange: Path,
    index_factory: str = "Flat",
    index_parameters: str = "",
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Searches all queries with all processes, and yields to each its own share of them, piece by piece.

    Every process searches its share of the passages and leaves its k best in a folder under `exchange`, which all
    processes see; a piece is merged by the process whose it is, as soon as all have left theirs. Yields the number of
    the piece's first query, and the scores float32 and passage rows int64, (queries of the piece, min(k, passages)).
    All processes must run it to its end, and meet before they search by way of the same `exchange` again.
    """
    rank, size = distributed.rank(), distributed.world_size()
    first, last = _share(len(passages), rank, size)
    window = max(1, WINDOW_CANDIDATES // max(1, min(k, len(passages))))
    index = None
    if index_factory != "Flat":
        index = ApproximateIndex(passages, first, last, index_factory, index_parameters)
    folder = exchange / distributed.on_main(lambda: _new_name(exchange))
    starts = sorted({*range(0, len(queries), window), *(_share(len(queries), r, size)[0] for r in range(size))})
    pieces = [*zip(starts, [*starts[1:], len(queries)], strict=True)]

    for start in range(0, len(queries), window):
        stop = min(start + window, len(queries))
        own = queries.rows(start, stop)
        scores, rows = index.search(own, k) if index else search(own, passages, first, last, k, device)
        if size == 1:
            yield start, scores, rows
            continue
        for piece, end in pieces:
            if start <= piece < stop:
                lines = slice(piece - start, end - start)
                _leave(_left(folder, piece, rank), rows[lines], scores[lines])

    own_first, own_last = _share(len(queries), rank, size)
    if own_first == own_last:
        yield own_first, *_merge([], 0, min(k, len(passages)))
    for piece, end in pieces if size > 1 else ():
        if own_first <= piece < own_last:
            names = [_left(folder, piece, other) for other in range(size)]
            distributed.wait_until(lambda names=names: all(path.exists() for pair in names for path in pair))
            yield piece, *_merge(names, end - piece, min(k, len(passages)))
            for path in (path for pair in names for path in pair):
                path.unlink()
    with suppress(OSError):  # not there, with one process, or not empty: another one is not through
        if size > 1:
            folder.rmdir()
        exchange.rmdir()


def _share(count: int, rank: int, size: int) -> tuple[int, int]:
    return rank * count // size, (rank + 1) * count // size


def _new_name(exchange: Path) -> str:
    """A folder name that no process of an earlier search uses; what those left behind is removed."""
    for old in exchange.glob("*"):
        shutil.rmtree(old)
    return secrets.token_hex(8)


def _left(folder: Path, piece: int, rank: int) -> tuple[Path, Path]:
    return folder / f"rows-{piece}-{rank}.npy", folder / f"scores-{piece}-{rank}.npy"


def _leave(paths: tuple[Path, Path], *arrays: np.ndarray) -> None:
    for path, array in zip(paths, arrays, strict=True):
        partial = path.with_suffix(".partial.npy")
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(partial, array)
            partial.replace(path)


def _merge(names: list[tuple[Path, Path]], queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The k best of what all processes have left of a piece: scores and rows, (queries, k)."""
    found = [[np.load(path, mmap_mode="r") for path in pair] for pair in names]
    top, top_rows = torch.empty(queries, k), torch.empty(queries, k, dtype=torch.int64)
    for line in range(0, queries, LINES):
        lines = slice(line, line + LINES)
        rows, scores = (
            torch.from_numpy(np.concatenate([a[lines] for a in of], axis=1)) for of in zip(*found, strict=True)
        )
        top[lines], top_rows[lines] = best(scores, rows, k)
    return top.numpy(), top_rows.numpy()


def search_rows(
    queries: EmbeddingMatrix,
    passages: EmbeddingMatrix,
    sequences: Sequences,
    k: int,
    device: torch.device,
    exchange: Path,
    index_factory: str = "Flat",
    index_parameters: str = "",
) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """As `search_together`, with passages that may be several sequences, of which the best one scores.

    Yields rows of the token store rather than of the matrix, (queries of the piece, min(k, rows)).
    """
    counts = np.diff(sequences.row_starts)
    k = min(k, len(counts))
    most = int(counts.max(initial=1))  # k · most sequences hold at least k rows
    found = search_together(queries, passages, k * most, device, exchange, index_factory, index_parameters)
    row_of = sequences.rows if most > 1 else None
    for first, scores, rows in found:
        yield (first, scores, rows) if most == 1 else (first, *best_chunks(scores, rows, row_of, k))


def score_pairs(
    queries: EmbeddingMatrix,
    passages: EmbeddingMatrix,
    sequences: Sequences,
    query_rows: np.ndarray,
    passage_rows: np.ndarray,
    device: torch.device,
) -> np.ndarray:
    """The score of each pair of rows of the token stores, float32 (pairs,), as `search_rows` gives it, to the bit.

    Of a passage of several sequences, the best one's. Passages are read in the order of their rows, in blocks.
    """
    counts = sequences.row_starts[passage_rows + 1] - sequences.row_starts[passage_rows]
    ends = np.cumsum(counts)
    starts = ends - counts
    numbers = np.arange(counts.sum()) + np.repeat(sequences.row_starts[passage_rows] - starts, counts)
    of_query = np.repeat(query_rows, counts)
    scores = np.empty(len(numbers), np.float32)
    order = np.argsort(numbers, kind="stable")
    for first in range(0, len(order), LINES):
        block = order[first : first + LINES]
        scores[block] = _inner_products(queries.take(of_query[block]), passages.take(numbers[block]), device)
        distributed.beat()
    return np.maximum.reduceat(scores, starts) if len(starts) else scores


def _inner_products(queries: np.ndarray, passages: np.ndarray, device: torch.device) -> np.ndarray:
    """The inner product of each line of the one with the same line of the other, (n, D) float32, summed as above."""
    if device.type == "cuda":
        pairs = (torch.from_numpy(vectors).to(device) for vectors in (queries, passages))
        return _sum_in_pairs(torch.mul(*pairs)).cpu().numpy()
    return FloatBlock(passages).score(torch.from_numpy(queries), torch.arange(len(queries))[:, None]).numpy()[:, 0]


def best_chunks(
    scores: np.ndarray, sequences: np.ndarray, row_of: np.ndarray, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """From the best sequences of each query to its best rows, a row scoring as its best sequence (ANCE MaxP).

    `scores` and `sequences` (Q, n), best first, -inf and -1 at the end where there are fewer; `row_of` int64
    (sequences,). Returns (Q, k), where a query with fewer rows is padded with -inf and -1.
    """
    top = np.full((len(scores), k), -np.inf, dtype=np.float32)
    top_rows = np.full((len(scores), k), -1, dtype=np.int64)
    for i, found in enumerate(sequences):
        rows = row_of[found[found >= 0]]
        chosen = np.sort(np.unique(rows, return_index=True)[1])[:k]
        top[i, : len(chosen)], top_rows[i, : len(chosen)] = scores[i, chosen], rows[chosen]
    return top, top_rows
