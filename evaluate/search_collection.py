"""Answers questions from a collection with a checkpoint: rank, score, id and text of the best passages.

    python evaluate/search_collection.py --run_dir runs/demo --query "how do I sort a list"
    python evaluate/search_collection.py --run_dir runs/demo --collection python-docs
    python evaluate/search_collection.py --model_name_or_path CHECKPOINT --collection PREPROCESSED --data_dir RAW

A run gives its newest checkpoint, its collections and the embeddings that mining or evaluation made of them, in
whichever precision. Passages that nobody has encoded yet are encoded once, into a folder of their own: the run's are
never replaced. Search is exact, and a question is tokenized as the collection's own queries were, so that a query of
the test set gets the ranking that its metrics were measured on (to rounding, where passages are in half precision:
a question is always encoded in float32). What is shown are the lines of the collection's own file, which must be the
one that was tokenized: a token store holds no text.

Without --query, questions are asked for until an empty line; where stdin is no terminal, each of its lines is one.
"""

import shutil
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from data.source_texts import Texts
from model.encoders import load_store_encoder
from model.reading import AUTO, find_reading
from utils.batching import PackedTokens
from utils.mining.evaluation import DEPTH
from utils.mining.rankings import Ranking, in_trec_order
from utils.mining.search import best_chunks, search
from utils.runtime import distributed
from utils.runtime.arguments import ReadingArguments, check_at_least_one, option, parse
from utils.runtime.errors import InputError, run
from utils.runtime.plain_text import printable
from utils.runtime.precision import choose_precision
from utils.stores.checkpoint import checkpoint_step
from utils.stores.embedding_store import check_dtype
from utils.stores.pretrained import longest_sequence
from utils.stores.run_folder import RunFolder
from utils.stores.token_store import TokenStore

TRAINING = "training"  # what the training collection is called where its embeddings are kept


@dataclass
class Arguments(ReadingArguments):
    run_dir: str = option("", "a run of commands/run_ance.sh, which knows what is not given below")
    collection: str = option(
        "", "a zero-shot collection of the run, by name, or any folder of token stores (default: the training one)"
    )
    data_dir: str = option("", "folder with the collection's own files (default: the run's)")
    model_name_or_path: str = option("", "the checkpoint: a folder or a hub name (default: the run's newest)")
    model_type: str = option(
        "", "auto: as the checkpoint's own files say; or a published type (default: of the run's checkpoints its own)"
    )
    embedding_dir: str = option("", "where the passages' embeddings are found or kept (default: see above)")
    query: str = option("", "the question (default: questions are read from stdin)")
    depth: int = option(10, "passages shown a question")
    text_lines: int = option(6, "lines shown of a passage; 0: all of it")
    max_query_length: int = option(0, "tokens of a question at most; 0: as the collection's own queries")
    per_gpu_eval_batch_size: int = option(128, "passages encoded at once, at most")
    embedding_dtype: str = option("float32", "float32 or float16: the type that new embeddings are stored in")
    fp16: bool = option(False, "mixed precision for passages that are encoded here")
    no_cuda: bool = option(False, "stay on the CPU")

    def __post_init__(self) -> None:
        check_at_least_one(self, "depth", "per_gpu_eval_batch_size")
        for name in ("text_lines", "max_query_length"):
            if getattr(self, name) < 0:
                raise InputError(f"--{name} is {getattr(self, name)}; a number from 0 on is needed")
        check_dtype(self.embedding_dtype)


@dataclass(frozen=True)
class Collection:
    """Where a collection lies: token stores, its own files (if known), embeddings that may be there, and new ones."""

    tokens: Path
    data_dir: Path | None
    made: list[Path]
    kept: Path


class Hit(NamedTuple):
    score: float
    id: str
    text: str


def find_collection(run: RunFolder | None, name: str, step: int) -> Collection:
    """The collection of this name (none: the training collection), with the embeddings of checkpoint `step`."""
    if run and not name:
        made = run.path / "ann_data" / f"embeddings-{step}" if step else run.initial_embeddings
        return Collection(run.tokens, run.data_dir, [made], run.path / "search" / TRAINING)
    if run and name in run.zero_shot():
        tokens = run.path / "zero_shot" / name
        kept, mined = (run.path / part / name for part in ("search/zero_shot", f"ann_data/embeddings-{step}"))
        return Collection(tokens, run.zero_shot_data_dir(name), [tokens / f"embeddings-{step}", mined], kept)
    folder = Path(name)
    if name and (folder / "passages").is_dir():
        name = folder.resolve().name
        return Collection(folder, None, [folder.parent / "embeddings"], folder.parent / "search" / name)
    known = f"; the run's are {', '.join(run.zero_shot()) or 'none'}" if run else ""
    raise InputError(
        f"--collection {name!r} is neither a zero-shot collection of a run nor a folder with passages/ inside{known}"
    )


def question_length(tokens: Path, asked: int) -> int:
    """Tokens that a question may have: those asked for, else as the query stores beside the passages have it."""
    if asked:
        return asked
    lengths = [TokenStore(path.parent).meta.max_length for path in sorted(tokens.glob("*-query/meta.json"))]
    if not lengths:
        raise InputError("holds no queries to take their length from; give --max_query_length", tokens)
    return max(lengths)


def reading_settings(args: Arguments, run: RunFolder | None, checkpoint: str) -> dict[str, Any]:
    """What `find_reading` takes: flags, then the run's settings, where the checkpoint is the run's.

    Those do not count where a model type is given.
    """
    flags = {name: value for name, value in args.reading.items() if value is not None}
    if args.model_type:
        return flags
    own = run.reading if run and run.owns(checkpoint) else {"model_type": AUTO}
    return own | flags | {"model_type": own["model_type"]}


class Searcher:
    """A checkpoint and the embeddings of a collection; called with a question, it gives the best passages."""

    def __init__(self, args: Arguments) -> None:
        run = RunFolder(Path(args.run_dir)) if args.run_dir else None
        if not run and not (args.model_name_or_path and args.collection):
            raise InputError("give --run_dir, or both of --model_name_or_path and --collection")
        checkpoint = args.model_name_or_path or str(run.newest_checkpoint())
        collection = find_collection(run, args.collection, checkpoint_step(checkpoint, run.models) if run else 0)
        store = TokenStore(collection.tokens / "passages")
        source = printable(store.meta.source_file)
        print(
            f"loading {printable(checkpoint)} and {len(store):,} passages of {source} …", file=sys.stderr, flush=True
        )

        self._device = distributed.set_up(args.no_cuda)
        self._texts = Texts(store, Path(args.data_dir) if args.data_dir else collection.data_dir)
        self._depth = min(args.depth, len(store))
        self._reading = find_reading(checkpoint, **reading_settings(args, run, checkpoint))
        loaded = load_store_encoder(
            checkpoint,
            self._reading,
            args.cache_dir or None,
            batch_size=args.per_gpu_eval_batch_size,
            device=self._device,
            precision=choose_precision(False, self._device),
            dtype=args.embedding_dtype,
        )
        self._encoder, self._tokenizer = loaded.encoder, loaded.tokenizer.backend_tokenizer
        self._sequences = loaded.open_passages(store.folder)
        self._tokenizer.no_padding()
        length = question_length(collection.tokens, args.max_query_length)
        specials = len(self._tokenizer.encode(self._reading.queries("")))
        if not specials < length <= longest_sequence(loaded.encoder.config):
            raise InputError(
                f"--max_query_length {length}: a question has {specials} tokens beside its own (special ones and "
                f"the prompt's), and the encoder has positions for {longest_sequence(loaded.encoder.config)}"
            )
        self._tokenizer.enable_truncation(length)

        kept = Path(args.embedding_dir or collection.kept)
        found = next(
            filter(None, (loaded.find(self._sequences, folder) for folder in (*collection.made, kept))), None
        )
        precise = choose_precision(args.fp16 and not found, self._device)
        self._passages = found or replace(loaded, precision=precise).encode(self._sequences, kept)

    @torch.inference_mode()
    def __call__(self, question: str) -> list[Hit]:
        """The best passages, best first."""
        ids = torch.tensor(self._tokenizer.encode(self._reading.queries(question)).ids)
        tokens = PackedTokens(ids, torch.arange(len(ids)), torch.tensor([0]), [len(ids)])
        vector = self._encoder(tokens.to(self._device)).float().cpu().numpy()
        counts = np.diff(self._sequences.row_starts)
        most = int(counts.max(initial=1))  # k · most sequences hold at least k rows
        k = min(max(self._depth, DEPTH), len(counts))  # equal scores are then cut where the evaluation cuts them
        found = search(vector, self._passages, 0, len(self._passages), k * most, self._device)
        scores, rows = found if most == 1 else best_chunks(*found, self._sequences.rows, k)
        ranking = in_trec_order(Ranking(rows, scores), self._texts.ids_of)
        ranked = ranking.rows[0][: self._depth]
        passages = self._texts.read(ranked[ranked >= 0].tolist())
        scores = ranking.scores[0].tolist()
        return [Hit(score, passage.id, passage.whole) for score, passage in zip(scores, passages, strict=False)]


def show(hits: list[Hit], width: int, lines: int) -> str:
    """The hits for a screen of `width` columns, at most `lines` lines of a text (0: all), nothing in them hidden."""
    ranks, scores = [str(rank) for rank in range(1, len(hits) + 1)], [f"{hit.score:.4f}" for hit in hits]
    rank_width, score_width = max(map(len, ranks), default=0), max(map(len, scores), default=0)
    indent = " " * (rank_width + 2)
    shown = []
    for rank, score, hit in zip(ranks, scores, hits, strict=True):
        shown.append(f"{rank:>{rank_width}}  {score:>{score_width}}  {printable(hit.id)}")
        text = textwrap.wrap(
            printable(hit.text),
            max(width, len(indent) + 20),
            initial_indent=indent,
            subsequent_indent=indent,
            max_lines=lines or None,
            placeholder=" …",
        )
        shown += text
    return "\n".join(shown)


def questions(query: str) -> Iterator[str]:
    """The question given, or those of stdin: asked for one by one at a terminal, else a line each."""
    if query:
        yield query
    elif sys.stdin.isatty():
        with suppress(ImportError):
            import_module("readline")  # input() then edits lines
        try:
            while question := input("\nquestion: ").strip():
                yield question
        except (EOFError, KeyboardInterrupt):
            print()
    else:
        yield from filter(None, map(str.strip, sys.stdin))


def main() -> None:
    args = parse(Arguments, __doc__)
    sys.stdin.reconfigure(errors="replace")
    sys.stdout.reconfigure(errors="backslashreplace")  # a terminal may lack letters that a collection has
    searcher = Searcher(args)
    for question in questions(args.query):
        hits = searcher(question)
        if not args.query and not sys.stdin.isatty():
            print(f"\n{printable(question)}")
        print(show(hits, shutil.get_terminal_size().columns, args.text_lines), flush=True)


if __name__ == "__main__":
    run(main)
