"""The episode files: what mining hands to training.

    OUTPUT_DIR/ann_training_data_N         a line is  query \\t positive \\t neg,neg,… [\\t weight \\t cluster]
                                           [\\t block]; a block has a weight and a cluster before it
    OUTPUT_DIR/ann_training_scores_N.npy   float32, flat: of each line, the score of its positive, then those of its
                                           negatives; an episode of an older version has none
    OUTPUT_DIR/ann_training_examples_N.json    see utils/stores/mined_examples.py
    RESULT_DIR/ann_ndcg_N                  JSON with the dev metrics of the checkpoint that mined, what filters took,
                                           and the SHA-256 of the other files; written last, so its
                                           presence makes episode N ready

Queries and passages are rows of the token stores. Each negative of a line is one triplet with the line's query and
positive; triplets are numbered in the file's order. `weight` is a factor on the loss of the line's triplets. A block
is lines of one cluster and of different queries that stand together; blocks are numbered from 0. A score is the inner
product of the vectors that were searched (of a document in several chunks, the best one's).
"""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.stores.files import atomic_file, check_sha256, load_array, read_json, write_json

METRICS = ("ndcg@10", "map@10", "mrr@10", "mrr", "recall@100", "recall@1000")  # of a checkpoint
BLOCK_BYTES = 32 * 2**20
BLOCK_LINES = 8_192


def mined_file(output_dir: str | Path, number: int) -> Path:
    return Path(output_dir) / f"ann_training_data_{number}"


def scores_file(output_dir: str | Path, number: int) -> Path:
    return Path(output_dir) / f"ann_training_scores_{number}.npy"


def result_file(result_dir: str | Path, number: int) -> Path:
    return Path(result_dir) / f"ann_ndcg_{number}"


def newest_episode(result_dir: str | Path) -> int:
    """The number of the newest episode that is ready, -1 where there is none."""
    names = (re.fullmatch(r"ann_ndcg_(\d+)", path.name) for path in Path(result_dir).glob("ann_ndcg_*"))
    return max((int(name[1]) for name in names if name), default=-1)


def newest_ready(result_dir: str | Path) -> int:
    """The number of the newest episode that is ready, the same in every process; waits for the first."""
    if newest_episode(result_dir) < 0:
        say(f"waiting for the first mined episode in {result_dir}")
        distributed.wait_until(lambda: newest_episode(result_dir) >= 0)
    return distributed.on_main(lambda: newest_episode(result_dir))


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def _is_number(value: object) -> bool:
    return isinstance(value, float) or _is_count(value)


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_filtered(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"candidates", "dropped", "queries_with_none_left"}
        and isinstance(value["dropped"], dict)
        and all(map(_is_count, (value["candidates"], value["queries_with_none_left"], *value["dropped"].values())))
    )


# What a result may hold, and what each of it must be; the first two are always there.
RESULT = {
    "ndcg": _is_number,
    "mrr": _is_number,
    **dict.fromkeys(METRICS, _is_number),
    "checkpoint": _is_text,
    **dict.fromkeys(("step", "episode", "clusters", "triplets"), _is_count),
    "mined_sha256": _is_text,
    "scores_sha256": _is_text,
    "examples_sha256": _is_text,
    "filters": _is_filtered,
    "cluster_mrr": lambda value: isinstance(value, list) and all(v is None or _is_number(v) for v in value),
    **dict.fromkeys(
        ("cluster_names", "collapsed"), lambda value: isinstance(value, list) and all(map(_is_text, value))
    ),
    "zero_shot": lambda value: (
        isinstance(value, dict)
        and all(isinstance(means, dict) and all(map(_is_number, means.values())) for means in value.values())
    ),
}


def read_result(result_dir: str | Path, number: int) -> dict:
    """Reads `ann_ndcg_N`; `InputError` where the episode is not ready or a value is not what it should be."""
    path = result_file(result_dir, number)
    if not path.exists():
        raise InputError(f"episode {number} is not ready: mine it first (drivers/run_ann_data_gen.py)", path)
    cure = "remove the file and mine the episode again"
    result = read_json(path, cure)
    for name, is_right in RESULT.items():
        if (name in result or name in ("ndcg", "mrr")) and not is_right(result.get(name)):
            raise InputError(f"{name} is {result.get(name)!r:.80}; {cure}", path)
    counts = [len(result[name]) for name in ("cluster_names", "cluster_mrr") if name in result]
    if "cluster_names" in result and {*counts} != {result.get("clusters")}:
        raise InputError(
            f"cluster_names or cluster_mrr are not of all {result.get('clusters')} clusters; {cure}", path
        )
    return result


def mined_clusters(result_dir: str | Path, number: int) -> int:
    """How many clusters, or groups by name, episode `number` was mined with; `InputError` where it was without."""
    count = read_result(result_dir, number).get("clusters", 0)
    if count < 1:
        raise InputError(
            f"episode {number} was mined without clusters, which --group 1 weighs; mine with --cluster_query or "
            "--groups_file, or train without --group 1",
            result_file(result_dir, number),
        )
    return count


def write_result(result_dir: str | Path, number: int, result: dict) -> None:
    """Writes `ann_ndcg_N`, which makes the episode ready; its other files must be complete by then."""
    write_json(result_file(result_dir, number), result)


@dataclass(frozen=True)
class MinedLines:
    """Lines to be written. Arrays of one length but `negatives`: int64 (lines, most), padded with -1 on the right.

    `clusters` is None for a mined file without the columns weight and cluster, `blocks` for one without blocks; with
    blocks and no clusters, all are of cluster 0. `scores`, float32 (lines, 1 + most), are those of the positive and
    of the negatives, or None where nobody keeps them.
    """

    query_rows: np.ndarray
    positive_rows: np.ndarray
    negatives: np.ndarray
    clusters: np.ndarray | None = None
    scores: np.ndarray | None = None
    blocks: np.ndarray | None = None

    def __getitem__(self, lines: slice) -> "MinedLines":
        return MinedLines(*(None if column is None else column[lines] for column in vars(self).values()))


def write_mined_file(path: str | Path, passes: Iterator[MinedLines], scores_path: str | Path | None = None) -> int:
    """Writes the passes one after another, atomically, and returns the number of triplets. Weights are 1.

    A query without negatives in a pass has no line there. Lines are written in blocks, from arrays and not one by
    one: MS MARCO's mined file has 2.5 million. With `scores_path` their scores are written there, float32 (lines +
    triplets,), which are held until then: 70 MB of MS MARCO's.
    """
    triplets = 0
    scores = [np.empty(0, np.float32)]
    with atomic_file(path, "wb") as handle:
        for lines in passes:
            for start in range(0, len(lines.query_rows), BLOCK_LINES):
                part = lines[start : start + BLOCK_LINES]
                handle.write(_text_of(part))
                triplets += int((part.negatives >= 0).sum())
                if scores_path is not None:
                    scores.append(_scores_of(part))
    if scores_path is not None:
        with atomic_file(scores_path, "wb") as handle:
            np.save(handle, np.concatenate(scores))
    return triplets


def _scores_of(lines: MinedLines) -> np.ndarray:
    """The scores as they stand in the file."""
    negative = lines.negatives >= 0
    return lines.scores[np.column_stack([negative.any(axis=1), negative])].astype(np.float32, copy=False)


def _text_of(lines: MinedLines) -> bytes:
    """The lines as they stand in the file."""
    kept = (lines.negatives >= 0).any(axis=1)
    columns = [lines.query_rows[:, None], lines.positive_rows[:, None], lines.negatives]
    behind = []  # the negatives: weight, cluster and block, as far as there are
    if lines.clusters is not None or lines.blocks is not None:
        behind = [np.ones_like(lines.query_rows), np.zeros_like(lines.query_rows)]
    if lines.clusters is not None:
        behind[1] = lines.clusters
    if lines.blocks is not None:
        behind.append(lines.blocks)
    columns += [column[:, None] for column in behind]
    table = np.concatenate(columns, axis=1)[kept]
    numbers = table[table >= 0]
    counts = (table >= 0).sum(axis=1)
    ends = np.cumsum(counts)
    starts = ends - counts
    separators = np.full(len(numbers), ord(","), np.uint8)
    separators[ends - 1] = ord("\n")
    for places in (starts, starts + 1, *(ends - 2 - place for place in range(len(behind)))):
        separators[places] = ord("\t")
    return _decimal(numbers, separators)


def _decimal(numbers: np.ndarray, separators: np.ndarray) -> bytes:
    """Each number in decimal digits with its separator behind it.

    `numbers` int64 (n,), none negative; `separators` uint8 (n,). The digits of all numbers are found together, the
    ones, then the tens …, in a matrix as wide as the largest number, where zero bytes stand before the shorter ones.
    """
    width = len(str(numbers.max(initial=0)))
    text = np.zeros((len(numbers), width + 1), np.uint8)
    text[:, width] = separators
    for place in range(width - 1, -1, -1):
        rest = numbers // 10
        text[:, place] = np.where((numbers > 0) | (place == width - 1), numbers - 10 * rest + ord("0"), 0)
        numbers = rest
    return text.tobytes().translate(None, b"\0")


@dataclass(frozen=True)
class Episode:
    """A mined file in memory.

    A line each: `query_rows`, `positive_rows`, `clusters` int64 (0 where the file has none), `weights` float32, and
    `starts` int64 (lines + 1,): line i's triplets are starts[i] … starts[i + 1] - 1. A triplet each:
    `negative_rows` int64. `n_groups` is the number of clusters that training distinguishes. `block_starts`, int64
    (blocks + 1,), says which lines the blocks are, as `starts` does of triplets; None for a file without blocks.
    `path` is the file, for messages.
    """

    query_rows: np.ndarray
    positive_rows: np.ndarray
    negative_rows: np.ndarray
    starts: np.ndarray
    weights: np.ndarray
    clusters: np.ndarray
    n_groups: int
    block_starts: np.ndarray | None = None
    path: Path | None = None

    @property
    def triplets(self) -> int:
        return len(self.negative_rows)

    def line_of(self, triplets: np.ndarray) -> np.ndarray:
        """The line that each triplet stands in."""
        return np.searchsorted(self.starts, triplets, side="right") - 1


def read_episode(path: str | Path, query_count: int, passage_count: int, n_groups: int | None) -> Episode:
    """Reads a mined file for stores of that many rows; `n_groups` None reads no clusters.

    Raises `InputError` with the line for anything that is not as the format says, a row outside the stores, a file
    without clusters where `n_groups` is given, and a cluster at or beyond it.
    """
    path = Path(path)
    columns: list[tuple[np.ndarray, ...]] = []
    first_line = 1
    for block in _whole_lines(path):
        columns.append(_parse(path, block, first_line, query_count, passage_count, n_groups))
        first_line += len(columns[-1][0])
    if not columns:
        raise InputError("the file is empty; mine the episode again", path)
    parts = [*zip(*columns, strict=True)]
    columns.clear()  # so that each column's parts go as soon as they are joined
    queries, positives, negatives, counts, weights, clusters, blocks = (
        np.concatenate(parts.pop(0)) for _ in range(len(parts))
    )
    starts = np.concatenate([[0], np.cumsum(counts)])
    block_starts = _find_blocks(path, blocks, queries, clusters)
    return Episode(queries, positives, negatives, starts, weights, clusters, n_groups or 1, block_starts, path)


def open_episode(
    ann_dir: str | Path,
    result_dir: str | Path,
    number: int,
    query_count: int,
    passage_count: int,
    n_groups: int | None,
) -> Episode:
    """Reads episode `number`, which must be ready and, where `n_groups` is given, mined with as many clusters.

    Raises `InputError` where the mined file is not as it was written, besides what `read_episode` raises.
    """
    result, path = read_result(result_dir, number), mined_file(ann_dir, number)
    if n_groups is not None and "mined_sha256" in result:  # that of another miner may say no more than its metrics
        mined_clusters(result_dir, number)
    mined = result.get("clusters", n_groups)
    if n_groups is not None and mined != n_groups:
        raise InputError(
            f"--n_groups is {n_groups}, and episode {number} was mined with {mined} clusters; give that number or 0, "
            "or mine again",
            result_dir,
        )
    if "mined_sha256" in result:
        cure = (
            f"remove {result_file(result_dir, number)} and, where training has begun with this episode, the "
            f"checkpoints beyond step {result.get('step', 0)}; then mine it again"
        )
        check_sha256(path, result["mined_sha256"], cure)
    return read_episode(path, query_count, passage_count, n_groups)


def open_scores(ann_dir: str | Path, result_dir: str | Path, number: int, episode: Episode) -> np.ndarray | None:
    """The scores beside a mined file, float32 (lines + triplets,), as a memory map; None where it has none.

    Line i's positive has the score i + starts[i], its negatives those that follow. `InputError` where the file is
    not as it was written, or not of `episode`.
    """
    digest, path = read_result(result_dir, number).get("scores_sha256"), scores_file(ann_dir, number)
    if digest is None:
        return None
    cure = f"remove {result_file(result_dir, number)} and mine the episode again"
    check_sha256(path, digest, cure)
    scores = load_array(path, cure, memory_map=True)
    expected = len(episode.query_rows) + episode.triplets
    if scores.shape != (expected,) or scores.dtype != np.float32:
        raise InputError(f"holds {scores.dtype} {scores.shape}, not {expected} float32; {cure}", path)
    return scores


def _whole_lines(path: Path) -> Iterator[bytes]:
    """Blocks of whole lines; a last line without its end is an error, since the file was cut there."""
    if not path.is_file():
        raise InputError("no such file; mine the episode again", path)
    with path.open("rb") as handle:
        while block := handle.read(BLOCK_BYTES):
            block += handle.readline()
            if not block.endswith(b"\n"):
                raise InputError("the last line has no end; the file was cut off: mine the episode again", path)
            yield block


def _find_blocks(path: Path, blocks: np.ndarray, queries: np.ndarray, clusters: np.ndarray) -> np.ndarray | None:
    """`Episode.block_starts` from each line's block, -1 where it has none; `InputError` for what is no block."""
    lines = np.arange(len(blocks))
    if (blocks == -1).all():
        return None
    begins = np.diff(blocks, prepend=-1)
    wrong = (begins < 0) | (begins > 1)
    wrong[0] = begins[0] != 1  # a part of the file may have blocks, and the first one none
    for line in np.flatnonzero(wrong)[:1]:
        raise InputError(
            f"block {blocks[line]} does not follow block {blocks[line - 1] if line else -1}; mine the episode again",
            path,
            int(line) + 1,
        )
    starts = np.flatnonzero(begins)
    order = np.lexsort((lines, queries, blocks))
    again = (np.diff(blocks[order]) == 0) & (np.diff(queries[order]) == 0)
    other = clusters != clusters[starts][blocks]
    for what, found in (("query", order[1:][again]), ("cluster", np.flatnonzero(other))):
        for line in np.sort(found)[:1]:
            said = f"query {queries[line]} again" if what == "query" else f"a line of cluster {clusters[line]}"
            raise InputError(
                f"block {blocks[line]} has {said}; its lines are of one cluster and of different queries: mine the "
                "episode again",
                path,
                int(line) + 1,
            )
    return np.append(starts, len(lines))


LINE = re.compile(rb"\d+\t\d+\t\d+(,\d+)*(\t[0-9.eE+-]+\t\d+(\t\d+)?)?")
BEHIND = {2: "", 4: ", weight, cluster", 5: ", weight, cluster, block"}  # the negatives, by the number of tabs


def _numbers(block: bytes) -> np.ndarray:
    """All numbers of a block, float64 (exact for rows below 2^53); as far as they could be read."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            return np.fromstring(block.translate(bytes.maketrans(b"\t,\n", b"   ")), dtype=np.float64, sep=" ")
        except (ValueError, DeprecationWarning):
            return np.empty(0)


def _parse(
    path: Path, block: bytes, first_line: int, query_count: int, passage_count: int, n_groups: int | None
) -> tuple[np.ndarray, ...]:
    """One part's columns: queries, positives, negatives (flat), negatives a line, weights, clusters, blocks.

    The part is parsed as one stream of numbers; which column a number belongs to follows from the separators.
    """

    def fail(index: int, message: str) -> InputError:
        return InputError(message, path, first_line + int(index))

    text = np.frombuffer(block, dtype=np.uint8)
    ends = np.flatnonzero(text == ord("\n"))
    lines = len(ends)
    tabs = np.diff(np.searchsorted(np.flatnonzero(text == ord("\t")), ends), prepend=0)
    commas = np.diff(np.searchsorted(np.flatnonzero(text == ord(",")), ends), prepend=0)
    width = int(tabs[0])
    well_formed = width in BEHIND and (tabs == width).all()
    numbers = _numbers(block) if well_formed else np.empty(0)
    if len(numbers) != (commas + width + 1).sum() or not np.isfinite(numbers).all():
        for index, line in enumerate(block.split(b"\n")[:-1]):
            if not LINE.fullmatch(line) or line.count(b"\t") != width:
                raise fail(
                    index,
                    f"expected query, positive, negatives with commas{BEHIND.get(width, '')} "
                    f"between tabs, found {line[:80]!r}; mine the episode again",
                )
        raise InputError("cannot be parsed; mine the episode again", path)

    starts = np.concatenate([[0], np.cumsum(commas + width + 1)[:-1]])
    queries, positives = numbers[starts], numbers[starts + 1]
    counts = commas + 1
    within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    negatives = numbers[np.repeat(starts + 2, counts) + within]
    line_of_negative = np.repeat(np.arange(lines), counts)

    for name, values, limit, line_of in (
        ("query", queries, query_count, None),
        ("positive", positives, passage_count, None),
        ("negative", negatives, passage_count, line_of_negative),
    ):
        bad = np.flatnonzero((values < 0) | (values >= limit) | (values != np.floor(values)))
        if len(bad):
            index = bad[0] if line_of is None else line_of[bad[0]]
            raise fail(
                index,
                f"{name} {values[bad[0]]:.10g} is no row of the token store ({limit} rows); the file is of other "
                "stores: mine the episode again",
            )
    weights, clusters, blocks = np.ones(lines), np.zeros(lines), np.full(lines, -1)
    if width > 2:
        weights = numbers[starts + 2 + counts]
    if n_groups is not None:
        if width == 2:
            raise fail(0, "the file has no clusters, and --group 1 needs them; mine with --cluster_query")
        clusters = numbers[starts + 3 + counts]
        for index in np.flatnonzero((clusters < 0) | (clusters >= n_groups) | (clusters != np.floor(clusters)))[:1]:
            raise fail(
                index,
                f"cluster {clusters[index]:.10g} is not among the {n_groups} of --n_groups; give the number that the "
                "episode was mined with (--cluster_centroids)",
            )
    if width == 5:
        blocks = numbers[starts + 4 + counts]
        for index in np.flatnonzero((blocks < 0) | (blocks >= 2**53) | (blocks != np.floor(blocks)))[:1]:
            raise fail(index, f"block {blocks[index]:.10g} is no number of a block; mine the episode again")
    for index in np.flatnonzero(weights <= 0)[:1]:
        raise fail(index, f"weight {weights[index]:.6g} is not above 0")
    return (
        queries.astype(np.int64),
        positives.astype(np.int64),
        negatives.astype(np.int64),
        counts,
        weights.astype(np.float32),
        clusters.astype(np.int64),
        blocks.astype(np.int64),
    )
