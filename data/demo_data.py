"""Builds the demo collection: questions and passages from the documentation of installed Python libraries.

    python data/demo_data.py --msmarco_dir OUT/msmarco --beir_dir OUT/beir/python-docs

Every public class, function and method with a docstring of a summary and a body gives a pair: query = summary,
passage = body. It is real text that is on the machine anyway, so the demo needs no download, and whole libraries can
be left out of training: they make the zero-shot collection, whose words and habits the model has not seen. Sources
are parsed, nothing is imported. Files are read in sorted order and what is chosen is chosen by the hash of its text:
the same installed versions give the same files, to the byte.
"""

import ast
import hashlib
import json
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from utils.runtime.arguments import option, parse, required
from utils.runtime.errors import InputError, run
from utils.runtime.logs import progress, say
from utils.stores.files import atomic_file

STANDARD_LIBRARY = "python"
TRAINING_LIBRARIES = ("torch", "transformers", "numpy", STANDARD_LIBRARY)
ZERO_SHOT_LIBRARIES = ("sklearn", "scipy", "matplotlib")

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
SUMMARY_WORDS = range(3, 31)
LEAST_BODY_WORDS = 10
# A text that belongs to more partners than this is boilerplate: no passage answers it, or it answers no query.
MOST_PARTNERS = 5
DEV_SHARE, LEAST_DEV_QUERIES = 0.1, 300

# "empty(shape, *, dtype=None) -> Tensor", at times with a dash after it
SIGNATURE = re.compile(r"[\w.]+\s*\(.*\)(\s*->.*|\s*--|\.)?|.*\s->\s.*", re.DOTALL)
# "labels (`torch.Tensor`, *optional*): Ground truth …"
PARAMETER = re.compile(r"[\w.]+\s*\(.*?\)\s*:|:\w+|@\w+", re.DOTALL)
HEADING = re.compile(
    r"(arg|argument|parameter|return|yield|raise|example|note|usage|warning)s?\s*(:|$)", re.IGNORECASE
)
MARKUP = re.compile(r"\.\. |>>>|[<`|(\[{*-]|https?:")
UNDERLINE = re.compile(r"^\s*([-=~^*#])\1{2,}\s*$\n?", re.MULTILINE)


@dataclass
class Arguments:
    msmarco_dir: str = required("where the training collection is written, in MS MARCO's layout")
    beir_dir: str = required("where the zero-shot collection is written, in BEIR's layout")
    max_passages: int = option(5_000, "passages of the training collection at most")
    max_zero_shot_passages: int = option(1_500, "passages of the zero-shot collection at most")
    dev_queries: int = option(0, "queries held out of training; 0: a tenth, at least 300")

    def __post_init__(self) -> None:
        if self.dev_queries < 0:
            raise InputError(f"--dev_queries is {self.dev_queries}; a number of queries is needed, or 0: a tenth")
        if self.max_passages < 2 or self.max_zero_shot_passages < 1:
            raise InputError("--max_passages must be at least 2 and --max_zero_shot_passages at least 1")


@dataclass(frozen=True)
class Pair:
    """A docstring: `place` is the file and line where it stands, from the library's name down."""

    library: str
    place: str
    query: str
    passage: str


@dataclass
class Collection:
    """Distinct passages, the library and place where each stood first, and each distinct query's passages."""

    library_of: dict[str, str] = field(default_factory=dict)
    place_of: dict[str, str] = field(default_factory=dict)
    positives: dict[str, list[str]] = field(default_factory=dict)


def find_library(name: str) -> Path:
    """The folder of an installed package, found without importing it, or of the standard library."""
    if name == STANDARD_LIBRARY:
        return Path(sysconfig.get_paths()["stdlib"])
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"the package {name} is not installed here; install requirements.txt (commands/install.sh)")
    return Path(next(iter(spec.submodule_search_locations)))


def collect_pairs(roots: Mapping[str, Path]) -> list[Pair]:
    """The pairs of every library (name → folder), files in sorted order. Files that do not parse are counted."""
    files = [(library, root, path) for library, root in roots.items() for path in _source_files(root)]
    pairs, unreadable = [], 0
    with ProcessPoolExecutor() as pool:
        parsed = pool.map(_pairs_of_file, *zip(*files, strict=True), chunksize=16) if files else ()
        for found in progress(parsed, total=len(files), unit="files", label="docstrings"):
            unreadable += found is None
            pairs += found or ()
    if unreadable:
        say(f"{unreadable} of {len(files):,} source files skipped: this Python cannot parse them")
    return pairs


def _source_files(root: Path) -> list[Path]:
    paths = [path for path in root.rglob("*.py") if not SKIPPED_FOLDERS.intersection(path.relative_to(root).parts)]
    return sorted(paths, key=lambda path: path.relative_to(root).parts)


def _pairs_of_file(library: str, root: Path, path: Path) -> list[Pair] | None:
    """The pairs of one source file; None where it cannot be parsed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError, OSError):
        return None
    pairs = []
    for node in _public_definitions(tree):
        texts = split_docstring(ast.get_docstring(node) or "")
        if texts:
            place = f"{library}/{path.relative_to(root).as_posix()}:{node.lineno}"
            pairs.append(Pair(library, place, *texts))
    return pairs


def _public_definitions(tree: ast.AST) -> Iterator[ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """Classes, functions and methods without a leading underscore, nor inside anything that has one."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if not node.name.startswith("_"):
                yield node
                if isinstance(node, ast.ClassDef):
                    yield from _public_definitions(node)
        elif isinstance(node, ast.stmt | ast.ExceptHandler):  # definitions under if, try and with
            yield from _public_definitions(node)


def split_docstring(docstring: str) -> tuple[str, str] | None:
    """(summary, body) of a docstring, white space collapsed; None where it is no question with an answer.

    The summary is the first paragraph that is not the function's signature. Left out are summaries that are a
    heading, a parameter, markup or too long for a question, notices of deprecation, bodies of a few words, and bodies
    that repeat the whole summary. Underlines of headings go: they cost a token a character and say nothing.
    """
    paragraphs = re.split(r"\n\s*\n", docstring.strip())
    while paragraphs and SIGNATURE.fullmatch(paragraphs[0].strip()):
        del paragraphs[0]
    if len(paragraphs) < 2 or UNDERLINE.search(paragraphs[0]):
        return None
    if any(unwanted.match(paragraphs[0]) for unwanted in (PARAMETER, HEADING, MARKUP)):
        return None
    summary = collapse(paragraphs[0])
    body = collapse(UNDERLINE.sub("", "\n\n".join(paragraphs[1:])))
    if len(summary.split()) not in SUMMARY_WORDS or len(body.split()) < LEAST_BODY_WORDS:
        return None
    if summary.endswith(":") or "deprecated" in f"{summary} {body[:80]}".lower():
        return None
    if summary.rstrip(".").lower() in body.lower() or not _is_writable(summary + body):
        return None
    return summary, body


def collapse(text: str) -> str:
    """The text with one blank for every stretch of white space, tabs and line breaks included."""
    return " ".join(text.split())


def _is_writable(text: str) -> bool:
    """Whether UTF-8 has it: a docstring may hold half a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def merge(pairs: list[Pair]) -> Collection:
    """One passage a text and one query a text; boilerplate, with more than MOST_PARTNERS, is left out."""
    distinct = dict.fromkeys((pair.query, pair.passage) for pair in pairs)
    passages_of = Counter(query for query, _ in distinct)
    queries_of = Counter(passage for _, passage in distinct)
    collection = Collection()
    for pair in pairs:
        if max(passages_of[pair.query], queries_of[pair.passage]) > MOST_PARTNERS:
            continue
        collection.library_of.setdefault(pair.passage, pair.library)
        collection.place_of.setdefault(pair.passage, pair.place)
        positives = collection.positives.setdefault(pair.query, [])
        if pair.passage not in positives:
            positives.append(pair.passage)
    return collection


def text_hash(text: str) -> bytes:
    """What the random choices are made by: SHA-256, alike on every machine and in every run."""
    return hashlib.sha256(text.encode()).digest()


def choose(collection: Collection, most: int) -> Collection:
    """At most `most` passages, as evenly from each library as they have them, in their first order."""
    by_library: dict[str, list[str]] = {}
    for passage, library in collection.library_of.items():
        by_library.setdefault(library, []).append(passage)
    chosen: set[str] = set()
    # The smallest library first: what it cannot give, the others share.
    for left, passages in zip(range(len(by_library), 0, -1), sorted(by_library.values(), key=len), strict=True):
        chosen.update(sorted(passages, key=text_hash)[: (most - len(chosen)) // left])
    positives = {
        query: [passage for passage in passages if passage in chosen]
        for query, passages in collection.positives.items()
    }
    return Collection(
        {passage: library for passage, library in collection.library_of.items() if passage in chosen},
        {passage: place for passage, place in collection.place_of.items() if passage in chosen},
        {query: passages for query, passages in positives.items() if passages},
    )


def split_queries(queries: list[str], dev_queries: int = 0) -> tuple[list[str], list[str]]:
    """(train, dev) in the given order; dev are so many, or 0: a tenth, or LEAST_DEV_QUERIES, and never above a half.

    What is dev of fewer is so of more. `InputError` where more than half of the queries are asked for.
    """
    if dev_queries > len(queries) // 2:
        raise InputError(f"--dev_queries is {dev_queries}, and half of the {len(queries):,} queries must be left")
    count = dev_queries or min(max(int(DEV_SHARE * len(queries)), LEAST_DEV_QUERIES), len(queries) // 2)
    dev = set(sorted(queries, key=text_hash)[:count])
    return [query for query in queries if query not in dev], [query for query in queries if query in dev]


def write_msmarco(collection: Collection, folder: Path, dev_queries: int = 0) -> tuple[int, int]:
    """Writes the collection in MS MARCO's layout, numbers as ids, and returns its train and dev query counts."""
    last = folder / "qrels.dev.small.tsv"  # a folder with this file is whole
    last.unlink(missing_ok=True)
    passage_ids = {passage: number for number, passage in enumerate(collection.library_of)}
    query_ids = {query: number for number, query in enumerate(collection.positives)}
    with atomic_file(folder / "collection.tsv") as handle:
        handle.writelines(f"{number}\t{passage}\n" for passage, number in passage_ids.items())
    train, dev = split_queries(list(query_ids), dev_queries)
    for name, queries in (("train", train), ("dev.small", dev)):
        with atomic_file(folder / f"queries.{name}.tsv") as handle:
            handle.writelines(f"{query_ids[query]}\t{query}\n" for query in queries)
        with atomic_file(folder / f"qrels.{name}.tsv") as handle:
            handle.writelines(
                f"{query_ids[query]}\t0\t{passage_ids[passage]}\t1\n"
                for query in queries
                for passage in collection.positives[query]
            )
    return len(train), len(dev)


def write_beir(collection: Collection, folder: Path) -> None:
    """Writes the collection in BEIR's layout; a passage's id is the file and line where it stands."""
    last = folder / "qrels" / "test.tsv"
    last.unlink(missing_ok=True)
    query_ids = {query: f"q{number}" for number, query in enumerate(collection.positives)}
    with atomic_file(folder / "corpus.jsonl") as handle:
        for passage, place in collection.place_of.items():
            handle.write(json.dumps({"_id": place, "title": "", "text": passage}, ensure_ascii=False) + "\n")
    with atomic_file(folder / "queries.jsonl") as handle:
        for query, query_id in query_ids.items():
            handle.write(json.dumps({"_id": query_id, "text": query}, ensure_ascii=False) + "\n")
    with atomic_file(last) as handle:
        handle.write("query-id\tcorpus-id\tscore\n")
        for query, passages in collection.positives.items():
            handle.writelines(f"{query_ids[query]}\t{collection.place_of[passage]}\t1\n" for passage in passages)


def build(
    training_roots: Mapping[str, Path],
    zero_shot_roots: Mapping[str, Path],
    msmarco_dir: Path,
    beir_dir: Path,
    max_passages: int,
    max_zero_shot_passages: int,
    dev_queries: int = 0,
) -> None:
    """Reads the libraries (name → folder) and writes both collections, the zero-shot one without training's texts."""
    pairs = collect_pairs({**training_roots, **zero_shot_roots})
    training_pairs = [pair for pair in pairs if pair.library in training_roots]
    seen = set(chain.from_iterable((pair.query, pair.passage) for pair in training_pairs))
    zero_shot_pairs = [
        pair
        for pair in pairs
        if pair.library in zero_shot_roots and pair.query not in seen and pair.passage not in seen
    ]
    training = choose(merge(training_pairs), max_passages)
    zero_shot = choose(merge(zero_shot_pairs), max_zero_shot_passages)
    if len(training.positives) < 2 or not zero_shot.positives:
        raise InputError("the libraries hold too few docstrings with a summary and a body to make a collection")
    train, dev = write_msmarco(training, msmarco_dir, dev_queries)
    _say_counts("training", training, f"{train:,} train and {dev:,} dev queries", msmarco_dir)
    write_beir(zero_shot, beir_dir)
    _say_counts("zero-shot", zero_shot, f"{len(zero_shot.positives):,} queries", beir_dir)


def _say_counts(name: str, collection: Collection, queries: str, folder: Path) -> None:
    libraries = Counter(collection.library_of.values())
    shares = ", ".join(f"{library} {count:,}" for library, count in libraries.items())
    say(f"{name} collection: {len(collection.library_of):,} passages ({shares}), {queries}, in {folder}")


def main() -> None:
    args = parse(Arguments, __doc__)
    build(
        {name: find_library(name) for name in TRAINING_LIBRARIES},
        {name: find_library(name) for name in ZERO_SHOT_LIBRARIES},
        Path(args.msmarco_dir),
        Path(args.beir_dir),
        args.max_passages,
        args.max_zero_shot_passages,
        args.dev_queries,
    )


if __name__ == "__main__":
    run(main)
