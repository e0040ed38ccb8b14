"""BM25 on the raw texts: the baseline that every dense retriever is read against.

    python evaluate/bm25.py --data_dir BEIR/scifact --out_dir RESULTS
    python evaluate/bm25.py --data_dir MSMARCO --out_dir RESULTS

Reads a folder in BEIR's layout (corpus.jsonl; the queries of qrels/SPLIT.tsv) or in MS MARCO's (collection.tsv or
msmarco-docs.tsv; the dev queries) and writes RESULTS/metrics.json, per_query.json, run.trec and qrels.trec. bm25s
scores all passages at once from a sparse matrix made while indexing, which needs neither Java nor a server: seconds
for BEIR's small sets; for MS MARCO's 8.8 million passages about 15 GB of memory and half an hour. k1 0.9 and b 0.4
are the values that Anserini and BEIR report. Words are lowercased but not stemmed, so figures differ a little from
theirs. In BEIR's layout a passage with the query's own id is left out of the query's ranking, as BEIR's own
evaluation does, unless it is judged relevant.

Words are what stands between blanks and punctuation. In a language that is written without (Chinese, Japanese, Thai)
a query finds hardly anything, which says nothing of BM25: where most queries match no passage, RESULTS/left_out.txt
says so, and there are no metrics.
"""

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import bm25s
import numpy as np
from bm25s.tokenization import Tokenizer

from data.hashed import WantedIds, hashes_of
from data.judgments import Split, judgments_by_row, read_split
from data.layouts.beir import COLLECTION_FILES, read_jsonl
from data.layouts.msmarco import DOCUMENTS, FILES, PASSAGES, read_documents, read_tsv
from data.tokenizing import Text, count_lines, each_once
from evaluate.metrics_file import LEFT_OUT, RunMetrics, write_evaluation, write_left_out
from utils.mining.metrics import evaluate_run
from utils.mining.rankings import final_ranking
from utils.runtime.arguments import check_at_least_one, option, parse, required
from utils.runtime.errors import run
from utils.runtime.logs import progress, say
from utils.stores.files import find_file, has_file
from utils.stores.known_passages import own_passages
from utils.stores.qrels import say_missing


@dataclass
class Arguments:
    data_dir: str = required("folder in BEIR's or MS MARCO's layout, plain or gzipped files")
    out_dir: str = required("where metrics.json, per_query.json, run.trec and qrels.trec go")
    split: str = option("test", "which judgments of a BEIR folder: qrels/SPLIT.tsv (MS MARCO: always dev)")
    collection: str = option("", "name of the collection in the result (default: the data folder's name)")
    run_name: str = option("BM25", "name of the run in the result")
    depth: int = option(1_000, "passages ranked a query at most")
    k1: float = option(0.9, "how soon a word's repetitions stop to count")
    b: float = option(0.4, "how much long passages are discounted, from 0 to 1")

    def __post_init__(self) -> None:
        self.collection = self.collection or Path(self.data_dir).resolve().name
        check_at_least_one(self, "depth")


class Index:
    """A BM25 index (Lucene's formula) of texts, without English stop words; `score` gives every text's score."""

    def __init__(self, texts: Iterable[str], k1: float, b: float) -> None:
        self._tokenizer = Tokenizer(stopwords="english")
        words = list(self._tokenizer.streaming_tokenize(texts, allow_empty=False))
        self._nothing = np.zeros(len(words), dtype=np.float32)
        self._bm25 = bm25s.BM25(k1=k1, b=b, method="lucene")
        if self._tokenizer.word_to_id:
            self._bm25.index((words, self._tokenizer.get_vocab_dict()), show_progress=False)

    def score(self, query: str) -> np.ndarray:
        """The score of every text, float32 (texts,); 0 where it holds none of the query's words."""
        if not self._tokenizer.word_to_id:  # no text has a word
            return self._nothing
        words = next(self._tokenizer.streaming_tokenize([query], update_vocab=False, allow_empty=False))
        return self._bm25.get_scores_from_ids(words)


def top_rows(scores: np.ndarray, depth: int) -> np.ndarray:
    """The rows of the `depth` highest scores above 0 (or fewer), int64; highest first, equal ones by row."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > depth:
        lowest = np.partition(scores[rows], len(rows) - depth)[len(rows) - depth]
        rows = rows[scores[rows] >= lowest]
    return rows[np.argsort(-scores[rows], kind="stable")][:depth]


def rank(index: Index, queries: Sequence[str], depth: int) -> tuple[np.ndarray, np.ndarray]:
    """Passage rows int64 and scores float32 of each query, (queries, depth), padded with -1 and -inf."""
    ranked = np.full((len(queries), depth), -1, dtype=np.int64)
    ranked_scores = np.full((len(queries), depth), -np.inf, dtype=np.float32)
    for i, query in enumerate(progress(queries, unit="queries", label="BM25")):
        scores = index.score(query)
        rows = top_rows(scores, depth)
        ranked[i, : len(rows)], ranked_scores[i, : len(rows)] = rows, scores[rows]
    return ranked, ranked_scores


def read_folder(folder: Path, split: str) -> tuple[Path, Iterator[Text], Split]:
    """The collection's file, its texts (not read yet) and the queries with their judgments."""
    if has_file(folder, *COLLECTION_FILES):
        collection, queries = find_file(folder, *COLLECTION_FILES), find_file(folder, "queries.jsonl")
        qrels = find_file(folder / "qrels", f"{split}.tsv")
        return collection, read_jsonl(collection), read_split(split, partial(read_jsonl, queries), queries, qrels)
    collection = find_file(folder, *(name for kind in (PASSAGES, DOCUMENTS) for name in FILES[kind]["collection"]))
    documents = collection.name.removesuffix(".gz") in FILES[DOCUMENTS]["collection"]
    queries, qrels = (find_file(folder, *names) for names in FILES[DOCUMENTS if documents else PASSAGES]["dev"])
    texts = read_documents(collection, " ", sys.maxsize) if documents else read_tsv(collection)
    return collection, texts, read_split("dev", partial(read_tsv, queries), queries, qrels)


def collect_ids(texts: Iterable[Text], path: Path, ids: list[str]) -> Iterator[str]:
    """Passes on the texts, each id once, and adds it to `ids`; see `each_once`."""
    for _, text_id, text in each_once(texts, path):
        ids.append(text_id)
        yield text


def main() -> None:
    args = parse(Arguments, __doc__)
    collection, texts, split = read_folder(Path(args.data_dir), args.split)
    passage_ids: list[str] = []
    say(f"indexing {collection}")
    index = Index(
        progress(
            collect_ids(texts, collection, passage_ids),
            total=count_lines(collection),
            unit="passages",
            label="index",
        ),
        args.k1,
        args.b,
    )
    _, query_ids, queries = zip(*split.queries(split.judged), strict=True)
    rows, scores = rank(index, queries, args.depth + 1)
    unmatched = int((rows[:, 0] < 0).sum())
    if 2 * unmatched > len(query_ids):
        reason = (
            f"{args.run_name} is left out on {args.collection}: {unmatched:,} of {len(query_ids):,} queries share no "
            "word with any passage. Words are told apart by blanks, and a language may be written without them, like "
            "Chinese, Japanese and Thai"
        )
        write_left_out(args.out_dir, reason)
        say(f"warning: {reason} ({Path(args.out_dir, LEFT_OUT)})")
        return
    judged_passages = WantedIds([split.passage_keys])
    judged_passages.see(passage_ids, 0)
    query_keys = hashes_of(query_ids, len(query_ids))
    qrels, missing_ids = judgments_by_row(split, query_keys, judged_passages, len(passage_ids))
    say_missing(qrels, len(passage_ids), split.qrels_path.name)
    own = own_passages(query_ids, passage_ids, collection.name)
    ranking = final_ranking(
        rows, scores, args.depth, own, qrels, lambda some: [passage_ids[row] for row in some.tolist()]
    )
    evaluation = evaluate_run(ranking.rows, qrels)
    metrics = RunMetrics.of(evaluation, args.run_name, args.collection)
    write_evaluation(args.out_dir, metrics, evaluation, ranking, qrels, query_ids, passage_ids + missing_ids)
    print(metrics.line(), flush=True)


if __name__ == "__main__":
    run(main)
