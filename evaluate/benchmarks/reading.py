"""How fast training data are read, and in how much memory: data/import_data.py, and plain dictionaries of texts.

    python evaluate/benchmarks/reading.py --out_dir runs/benchmarks
    python evaluate/benchmarks/reading.py --out_dir runs/benchmarks --pairs 10000000 --rounds 1

Reads pairs of a query and a positive from a JSONL file, tells equal texts, and writes each once, with judgments;
nothing is tokenized. The pairs are made on the spot: texts of random words, queries of 40 characters and passages of
330 in the mean, of which a share comes again. The contenders take turns, each as a process of its own:

    ours            data/import_data.py: texts are known again by hashes; it checks what it reads, holds out dev
                    queries, and takes checksums of the file
    dictionaries    evaluate/benchmarks/dictionary_reader.py: texts are kept in memory, and nothing else is done

In each round both must write the same passages, queries and judgments, byte for byte. Ten million pairs take 15 GB of
disk, in the folder for temporary files (TMPDIR).
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
import torch

from evaluate.benchmarks import contenders, processes
from evaluate.benchmarks.processes import Stage
from utils.runtime.arguments import check_at_least_one, option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import progress, say
from utils.stores.files import sha256_of_file

ROOT = Path(__file__).resolve().parents[2]
OURS, DICTIONARIES = "ours", "dictionaries"
PHRASES, PHRASE_WORDS = 5_000, 12
QUERY_CHARACTERS, PASSAGE_PHRASES = 32, 4
BLOCK = 10_000


@dataclass
class Arguments:
    out_dir: str = required("where reading-PAIRS.json goes")
    pairs: int = option(200_000, "pairs of the file")
    repeated: float = option(0.2, "share of the queries, and of the passages, that an earlier pair has, too")
    rounds: int = option(3, "runs of each contender")
    seed: int = option(42, "seed of the pairs")

    def __post_init__(self) -> None:
        check_at_least_one(self, "pairs", "rounds")
        if not 0 <= self.repeated < 1:
            raise InputError(f"--repeated is {self.repeated:g}; a share from 0 on and below 1 is needed")


def make_pairs(args: Arguments) -> Iterator[tuple[str, str]]:
    """A query and a passage of each pair. Texts are numbered as they are new, and end with their numbers."""
    generator = np.random.default_rng(args.seed)
    letters = generator.integers(ord("a"), ord("z") + 1, size=(PHRASES, PHRASE_WORDS, 6), dtype=np.uint8)
    phrases = [b" ".join(word.tobytes() for word in phrase).decode() for phrase in letters]
    known = [0, 0]
    for start in range(0, args.pairs, BLOCK):
        columns = []
        for side in range(2):
            new = generator.random(min(BLOCK, args.pairs - start)) >= args.repeated
            counts = known[side] + np.cumsum(new)
            columns.append(np.where(new, counts - 1, generator.integers(np.maximum(counts, 1))).tolist())
            known[side] = counts[-1]
        for query, passage in zip(*columns, strict=True):
            parts = [phrases[(passage + i * i) % PHRASES] for i in range(PASSAGE_PHRASES)]
            yield f"{phrases[query % PHRASES][:QUERY_CHARACTERS]} {query}", f"{' '.join(parts)} {passage}"


def write_pairs(args: Arguments, path: Path) -> None:
    with path.open("w", encoding="utf-8") as file:
        for query, passage in progress(make_pairs(args), total=args.pairs, unit="pairs", label="make pairs"):
            file.write(f'{{"query": "{query}", "positive": "{passage}"}}\n')


def make_command(name: str, pairs: Path, folder: Path) -> tuple[Path, list[object]]:
    """A contender's script and flags; it writes to folder/imported."""
    out = folder / "imported"
    if name == OURS:
        return ROOT / "data" / "import_data.py", ["--data_dir", pairs, "--layout", "pairs", "--out_dir", out]
    out.mkdir()
    return ROOT / "evaluate/benchmarks/dictionary_reader.py", ["--pairs", pairs, "--out_dir", out]


def content_of(out: Path) -> list[object]:
    """What a contender wrote: sums of passages and queries, and all judgments, sorted, as a sum of their hashes."""
    files = [out / "judgments.tsv"] if (out / "judgments.tsv").exists() else sorted((out / "qrels").glob("*.tsv"))
    lines, total = 0, 0
    for path in files:
        with path.open("rb") as file:
            for line in file:
                if line != b"query-id\tcorpus-id\tscore\n":
                    lines, total = lines + 1, (total + hash(line)) % 2**64
    return [sha256_of_file(out / "passages.jsonl"), sha256_of_file(out / "queries.jsonl"), lines, total]


def size_of(folder: Path) -> int:
    """Bytes of a folder's files."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(args: Arguments, folder: Path) -> dict:
    """The content of reading-PAIRS.json."""
    pairs = folder / "pairs.jsonl"
    write_pairs(args, pairs)
    runs: dict[str, list[Stage]] = {OURS: [], DICTIONARIES: []}
    written = 0
    for number in range(1, args.rounds + 1):
        contents = []
        for name in [*runs][number % 2 :] + [*runs][: number % 2]:
            with tempfile.TemporaryDirectory(dir=folder) as place:
                script, flags = make_command(name, pairs, Path(place))
                runs[name].append(processes.whole(processes.watch_python(script, flags)))
                contents.append(content_of(Path(place, "imported")))
                written = size_of(Path(place, "imported")) if name == OURS else written
        if contents[0] != contents[1]:
            raise RuntimeError(f"the contenders have written different things: {contents[0]} and {contents[1]}")
        say(f"round {number} of {args.rounds} is over")
    seconds = {name: [stage.seconds for stage in of_one] for name, of_one in runs.items()}
    summary = contenders.summarize(seconds, DICTIONARIES, {"texts": 2 * args.pairs})
    for name, of_one in runs.items():
        summary[name] |= {
            "own_gib": max(stage.own_gib for stage in of_one),
            "resident_gib": max(stage.resident_gib for stage in of_one),
        }
    return {
        **contenders.describe(args, ("numpy",), ("out_dir",), torch.device("cpu")),
        "threads": len(os.sched_getaffinity(0)),
        "read_gib": pairs.stat().st_size / 2**30,
        "written_gib": written / 2**30,
        "contenders": summary,
    }


def main() -> None:
    args = parse(Arguments, __doc__)
    with tempfile.TemporaryDirectory() as folder:
        result = measure(args, Path(folder))
    contenders.write_result(Path(args.out_dir, f"reading-{args.pairs}.json"), result)


if __name__ == "__main__":
    run(main)
