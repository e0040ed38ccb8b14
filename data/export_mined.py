"""Writes a mined episode as examples with texts, for those who train with another library.

    python data/export_mined.py --run_dir runs/mine --out_file triplets.jsonl
    python data/export_mined.py --run_dir runs/mine --form lists --out_file mined.parquet
    python data/export_mined.py --run_dir runs/mine --form tevatron --out_file tevatron.jsonl

Forms, with one example a row:

    triplets    query, positive, negative, scores; in the mined file's order. sentence-transformers' trainers take it
                as it is: the texts by their order, scores as labels, which most losses leave aside
    lists       query, positive, negatives, scores, group, query_id, positive_id, negative_ids: all negatives that
                were mined for a query and positive, to be filtered by their scores
    tevatron    query_id, query, positive_passages, negative_passages, each of docid, title, text: all of a query

Scores are the miner's own, float32: the positive's first, then those of the negatives, in their order. An episode
of an older version has none, and examples then lack the column. Group is the number of the query's cluster, where
there are clusters, or its group's name. Texts are those of the collection, without prompts and uncut; they are read
by row, so that memory stays the same however large the collection is. A gzipped file is unpacked beside --out_file
meanwhile.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.source_texts import SourceText, Texts
from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import progress, say
from utils.stores.episode import Episode, newest_episode, open_episode, open_scores, read_result
from utils.stores.files import atomic_file
from utils.stores.run_folder import RunFolder
from utils.stores.token_store import TokenStore

BLOCK_NEGATIVES = 2**13  # whose texts are held at once
Record = dict[str, Any]


@dataclass
class Arguments:
    out_file: str = required("what is written: NAME.jsonl or NAME.parquet")
    run_dir: str = option("", "a run of commands/run_ance.sh, which knows the folders that are not given below")
    episode: int = option(-1, "number of the episode; -1: the newest")
    form: str = option("triplets", "triplets, lists or tevatron, see above")
    token_dir: str = option("", "folder with the token stores passages/ and train-query/")
    data_dir: str = option("", "folder with the collection's own files, in MS MARCO's or BEIR's layout")
    ann_dir: str = option("", "folder with the mined files")
    result_dir: str = option("", "folder with the files ann_ndcg_N")

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise InputError(f"--form {self.form!r}: there are {', '.join(FORMS)}")
        if Path(self.out_file).suffix not in WRITERS:
            raise InputError(f"--out_file {self.out_file}: the name must end in {' or '.join(WRITERS)}")
        if self.form == "tevatron" and not self.out_file.endswith(".jsonl"):
            raise InputError("--form tevatron is JSONL; give an --out_file that ends in .jsonl")
        if self.run_dir:
            run_folder = RunFolder(Path(self.run_dir))
            self.token_dir = self.token_dir or str(run_folder.tokens)
            self.data_dir = self.data_dir or str(run_folder.data_dir)
            self.ann_dir = self.ann_dir or str(run_folder.path / "ann_data")
            self.result_dir = self.result_dir or str(run_folder.path / "results")
        missing = [f"--{name}" for name in ("token_dir", "data_dir", "ann_dir", "result_dir") if not vars(self)[name]]
        if missing:
            raise InputError(f"give --run_dir, or {', '.join(missing)}")


@dataclass(frozen=True)
class Example:
    """A query with positives and negatives, all as rows; their scores are empty lists where there are none."""

    query: int
    positives: list[int]
    negatives: list[int]
    positive_scores: list[float]
    negative_scores: list[float]
    group: int | str | None


@dataclass(frozen=True)
class Form:
    """`together`: the columns of an `Episode` whose equal values bring lines into one example; none: a line each."""

    together: tuple[str, ...]
    records: Callable[[Example, dict[int, SourceText], dict[int, SourceText]], Iterator[Record]]


def triplets(example: Example, queries: dict[int, SourceText], passages: dict[int, SourceText]) -> Iterator[Record]:
    query, positive = queries[example.query].whole, passages[example.positives[0]].whole
    for place, negative in enumerate(example.negatives):
        record = {"query": query, "positive": positive, "negative": passages[negative].whole}
        if example.positive_scores:
            record["scores"] = [example.positive_scores[0], example.negative_scores[place]]
        yield record


def lists(example: Example, queries: dict[int, SourceText], passages: dict[int, SourceText]) -> Iterator[Record]:
    query, positive = queries[example.query], passages[example.positives[0]]
    negatives = [passages[row] for row in example.negatives]
    record = {
        "query": query.whole,
        "positive": positive.whole,
        "negatives": [passage.whole for passage in negatives],
    }
    if example.positive_scores:
        record["scores"] = example.positive_scores[:1] + example.negative_scores
    if example.group is not None:
        record["group"] = example.group
    ids = {"query_id": query.id, "positive_id": positive.id, "negative_ids": [passage.id for passage in negatives]}
    yield record | ids


def tevatron(example: Example, queries: dict[int, SourceText], passages: dict[int, SourceText]) -> Iterator[Record]:
    query = queries[example.query]
    record = {"query_id": query.id, "query": query.whole}
    for name, rows in (("positive_passages", example.positives), ("negative_passages", example.negatives)):
        found = [passages[row] for row in rows]
        record[name] = [{"docid": text.id, "title": text.title, "text": text.text} for text in found]
    yield record


FORMS = {
    "triplets": Form((), triplets),
    "lists": Form(("query_rows", "positive_rows"), lists),
    "tevatron": Form(("query_rows",), tevatron),
}


def examples_of(
    episode: Episode, scores: np.ndarray | None, together: tuple[str, ...], groups: Sequence[int | str]
) -> Iterator[Example]:
    """The examples of a mined file: line by line, else by query (and positive). `scores` as `open_scores`.

    `groups` are what clusters are called, by their numbers; empty where there are none.
    """
    lines = np.arange(len(episode.query_rows))
    firsts = lines
    if together:
        columns = [getattr(episode, name) for name in together]
        lines = np.lexsort(columns[::-1])  # stable: lines of one example stay in the file's order
        changes = np.zeros(len(lines), dtype=bool)
        for column in columns:
            changes |= np.diff(column[lines], prepend=-1) != 0
        firsts = np.flatnonzero(changes)
    ends = [*firsts[1:].tolist(), len(lines)]
    for first, end in zip(firsts.tolist(), ends, strict=True):
        query, positives, negatives, positive_scores, negative_scores = None, {}, [], [], []
        for line in lines[first:end].tolist():
            start, stop = episode.starts[line : line + 2].tolist()
            query, positive = int(episode.query_rows[line]), int(episode.positive_rows[line])
            negatives += episode.negative_rows[start:stop].tolist()
            if scores is not None:
                of_positive, *of_negatives = map(shortest, scores[start + line : stop + line + 1])
                negative_scores += of_negatives
                positive_scores += [] if positive in positives else [of_positive]
            positives[positive] = True
        group = groups[episode.clusters[lines[first]]] if groups else None
        yield Example(query, [*positives], negatives, positive_scores, negative_scores, group)


def shortest(score: np.float32) -> float:
    """The same number to float32, of as few digits as that takes."""
    return float(f"{score:.9g}")


def blocks_of(examples: Iterator[Example]) -> Iterator[list[Example]]:
    """Groups examples, a bounded number of negatives together but for the last one's."""
    block, negatives = [], 0
    for example in examples:
        block.append(example)
        negatives += len(example.negatives)
        if negatives >= BLOCK_NEGATIVES:
            yield block
            block, negatives = [], 0
    if block:
        yield block


def read_texts(texts: Texts, rows: set[int]) -> dict[int, SourceText]:
    """The texts of these rows, each read once, in the order of their rows."""
    ordered = sorted(rows)
    return dict(zip(ordered, texts.read(ordered), strict=True))


class JsonLines:
    """Writes records as JSON, one a line."""

    def __init__(self, handle: IO[bytes]) -> None:
        self._handle = handle

    def write(self, records: list[Record]) -> None:
        lines = (json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n" for record in records)
        self._handle.write("".join(lines).encode())

    def close(self) -> None:
        pass


class Parquet:
    """Writes records as parquet, a row group a block."""

    def __init__(self, handle: IO[bytes]) -> None:
        try:
            self._arrow, self._parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
        except ImportError:
            raise InputError(
                "writing parquet wants pyarrow: bash commands/install.sh data installs it; without it, give an "
                "--out_file that ends in .jsonl"
            ) from None
        self._handle, self._writer = handle, None

    def write(self, records: list[Record]) -> None:
        if self._writer is None:
            arrow = self._arrow
            texts = arrow.list_(arrow.string())
            types = {"negatives": texts, "negative_ids": texts, "scores": arrow.list_(arrow.float32())}
            types |= {"group": arrow.int64()} if isinstance(records[0].get("group"), int) else {}
            schema = arrow.schema([(name, types.get(name, arrow.string())) for name in records[0]])
            self._writer = self._parquet.ParquetWriter(self._handle, schema)
        self._writer.write_table(self._arrow.Table.from_pylist(records, schema=self._writer.schema))

    def close(self) -> None:
        self._writer.close()


WRITERS = {".jsonl": JsonLines, ".parquet": Parquet}


def main() -> None:
    args = parse(Arguments, __doc__)
    number = args.episode if args.episode >= 0 else newest_episode(args.result_dir)
    if number < 0:
        raise InputError("no episode there is ready; mine one first (drivers/run_ann_data_gen.py)", args.result_dir)
    stores = [TokenStore(Path(args.token_dir, name)) for name in ("train-query", "passages")]
    folders, result = (args.ann_dir, args.result_dir), read_result(args.result_dir, number)
    n_groups = result.get("clusters")
    groups = result.get("cluster_names") or range(n_groups or 0)
    filters = result.get("filters", {}).get("dropped", {})
    episode = open_episode(*folders, number, len(stores[0]), len(stores[1]), n_groups)
    scores = open_scores(*folders, number, episode)
    if scores is None:
        say(f"episode {number} was mined by a version that kept no scores; examples lack them")
    form, out_file, written = FORMS[args.form], Path(args.out_file), 0
    with (
        atomic_file(out_file, "wb") as handle,
        TemporaryDirectory(dir=out_file.parent, prefix=f".{out_file.name}.partial-") as unpacked,
        progress(total=episode.triplets, unit="negatives", label=f"episode {number}") as bar,
    ):
        writer = WRITERS[out_file.suffix](handle)
        queries = Texts(stores[0], Path(args.data_dir), selected=True, unpack_in=Path(unpacked))
        passages = Texts(stores[1], Path(args.data_dir), unpack_in=Path(unpacked))
        for block in blocks_of(examples_of(episode, scores, form.together, groups)):
            of_queries = read_texts(queries, {example.query for example in block})
            rows = (row for example in block for row in (*example.positives, *example.negatives))
            of_passages = read_texts(passages, set(rows))
            records = [record for example in block for record in form.records(example, of_queries, of_passages)]
            writer.write(records)
            written += len(records)
            bar.update(sum(len(example.negatives) for example in block))
        writer.close()
    say(f"episode {number}: {written:,} examples ({args.form}) with {episode.triplets:,} negatives are in {out_file}")
    say(f"episode {number} was mined {'with the filters ' + ', '.join(filters) if filters else 'without filters'}")


if __name__ == "__main__":
    run(main)
