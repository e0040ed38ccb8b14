"""What a checkpoint reaches on a tokenized collection: encode it, search it exactly, measure the ranking.

The miner measures the zero-shot collections of a run with it, and evaluate/evaluate_beir.py everything else, so that
both say the same of one checkpoint.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from utils.mining.encoding import StoreEncoder
from utils.mining.metrics import Evaluation, evaluate_run
from utils.mining.rankings import Ranking, final_ranking
from utils.mining.search import search_rows
from utils.runtime import distributed
from utils.runtime.errors import InputError
from utils.stores.known_passages import own_passages
from utils.stores.qrels import Qrels, read_missing_ids, read_qrels, say_missing
from utils.stores.token_store import TokenStore

DEPTH = 1_000  # passages ranked a query, for recall@1000


@dataclass(frozen=True)
class CollectionResult:
    """`ranking` of all queries, their judgments, the ids of both, and the metrics.

    `passage_ids` are those of the collection and, from its number of passages on, those of judged ones that it lacks.
    `collapsed` says that the metrics mean nothing, see `utils.mining.collapse`.
    """

    query_ids: list[str]
    passage_ids: list[str]
    qrels: Qrels
    ranking: Ranking
    evaluation: Evaluation
    collapsed: bool = False


def evaluate_collection(
    encoder: StoreEncoder,
    folder: str | Path,
    split: str,
    embedding_dir: str | Path,
    exchange: Path,
    depth: int = DEPTH,
) -> CollectionResult | None:
    """Evaluates on the queries of `folder`/SPLIT-query; all processes must call it, and the main one gets the result.

    `folder` holds token stores and judgments as data/beir_data.py or data/msmarco_data.py writes them. Embeddings are
    found in `embedding_dir` or made there, and may be shared between runs. What the processes exchange lies for a
    while in `exchange`, a folder of this run's own.
    """
    queries = encoder.open_queries(Path(folder, f"{split}-query"))
    passages = encoder.open_passages(Path(folder, "passages"))
    qrel_path = Path(folder, f"{split}-qrel.tsv")
    qrels = read_qrels(qrel_path, len(queries.store), len(passages.store))
    embeddings = [encoder.encode(sequences, embedding_dir) for sequences in (queries, passages)]
    collapsed = any(matrix.collapsed for matrix in embeddings)
    found = gather_rankings(search_rows(*embeddings, passages, depth + 1, encoder.device, exchange))
    result: list[CollectionResult] = []

    def evaluate() -> None:
        ranking, evaluation = measure(*found, queries.store, passages.store, qrels, depth)
        passage_ids = passages.store.ids + read_missing_ids(qrel_path)
        result.append(CollectionResult(queries.store.ids, passage_ids, qrels, ranking, evaluation, collapsed))

    distributed.on_main(evaluate)
    return result[0] if result else None


def gather_rankings(found: Iterable[tuple[int, np.ndarray, np.ndarray]]) -> tuple[np.ndarray, np.ndarray]:
    """Rows int64 and scores float32 of what `search_rows` found: of all queries on the main process."""
    _, scores, rows = zip(*found, strict=True)
    return distributed.gather_rows(np.concatenate(rows)), distributed.gather_rows(np.concatenate(scores))


def measure(
    rows: np.ndarray, scores: np.ndarray, queries: TokenStore, passages: TokenStore, qrels: Qrels, depth: int
) -> tuple[Ranking, Evaluation]:
    """The final ranking and the metrics of what was found, `rows` and `scores` (queries, k), k > `depth`."""
    say_missing(qrels, len(passages), queries.folder.name)
    own = own_passages(queries.ids, passages.iter_ids(), passages.meta.source_file)
    ranking = final_ranking(rows, scores, depth, own, qrels, passages.ids_of)
    return ranking, evaluate_run(ranking.rows, qrels)


def check_names(folders: Sequence[str | Path]) -> None:
    """`InputError` where two collections' folders have the same name."""
    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise InputError(f"two collections' folders have the same name: {', '.join(sorted(names))}; rename one")


def evaluate_collections(
    encoder: StoreEncoder, folders: Sequence[str | Path], split: str, embedding_dir: Path, exchange: Path
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """The means of every measure by each collection's name; the names of those on which the encoder has collapsed.

    On other processes than the main one both are empty. Embeddings are in a folder of `embedding_dir` with the
    collection's name.
    """
    means, collapsed = {}, []
    for folder in folders:
        name = Path(folder).resolve().name
        if result := evaluate_collection(encoder, folder, split, embedding_dir / name, exchange):
            means[name] = result.evaluation.means
            if result.collapsed:
                collapsed.append(name)
    return means, collapsed
