"""Evaluates a checkpoint on a tokenized collection: BEIR's test split, or the dev split of the training collection.

    python evaluate/evaluate_beir.py --model_type rdot_nll_condenser --model_name_or_path CHECKPOINT \\
        --data_dir PREPROCESSED --out_dir RESULTS
    python -m torch.distributed.launch --nproc_per_node 2 evaluate/evaluate_beir.py …

Writes RESULTS/metrics.json and RESULTS/run.trec, and prints the metrics in one line. Passages are encoded and
searched by the code that mines, so that what is measured is what training used; embeddings that are in
--embedding_dir already (a miner's, say) are not made again.

As in BEIR's own evaluation, a passage with the query's id is left out of the query's ranking: ArguAna's queries are
passages of its collection. This holds for token stores that were made from BEIR's layout, which their meta.json
tells. In MS MARCO a query and a passage of the same number have nothing to do with each other: its passages all stay,
so that the dev split gives the metrics that the miner gives.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from evaluate.metrics_file import RunMetrics, write_metrics
from evaluate.rankings import cut_at, leave_out_self_matches, queries_may_be_passages
from model.encoders import find_model_type, load_encoder
from utils import distributed
from utils.arguments import option, parse, required
from utils.checkpoint import fingerprint_of_weights
from utils.embedding_store import check_dtype
from utils.encoding import encode_store, open_sequences
from utils.errors import run
from utils.metrics import evaluate_run, write_trec_run
from utils.precision import choose_precision
from utils.qrels import read_qrels
from utils.search import search_rows


@dataclass
class Arguments:
    data_dir: str = required("token stores, as data/beir_data.py or data/msmarco_data.py writes them")
    out_dir: str = required("where metrics.json and run.trec go")
    model_name_or_path: str = required("the checkpoint: a folder or a hub name")
    model_type: str = option("rdot_nll", "rdot_nll, rdot_nll_multi_chunk or rdot_nll_condenser")
    split: str = option("test", "which queries: those of SPLIT-query and SPLIT-qrel.tsv")
    collection: str = option("", "name of the collection in the result (default: the data folder's name)")
    run_name: str = option("", "name of the run in the result (default: the checkpoint's folder)")
    embedding_dir: str = option("", "where embeddings are found or kept (default: out_dir/embeddings)")
    depth: int = option(1_000, "passages ranked a query")
    per_gpu_eval_batch_size: int = option(128, "texts a process encodes at once, at most")
    embedding_dtype: str = option("float32", "float32 or float16: the type that embeddings are stored in")
    fp16: bool = option(False, "mixed precision: bfloat16 where the hardware has it, float16 on an older GPU")
    cache_dir: str = option("", "where models from the hub are kept")
    no_cuda: bool = option(False, "stay on the CPU")
    local_rank: int = option(-1, "set by torch.distributed.launch")

    def __post_init__(self) -> None:
        self.collection = self.collection or Path(self.data_dir).resolve().name
        self.run_name = self.run_name or Path(self.model_name_or_path).name
        self.embedding_dir = self.embedding_dir or str(Path(self.out_dir, "embeddings"))
        check_dtype(self.embedding_dtype)


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda, args.local_rank)
    encoder, tokenizer = load_encoder(args.model_type, args.model_name_or_path, args.cache_dir or None)
    weights = fingerprint_of_weights(args.model_name_or_path, encoder)
    encoder = encoder.to(device).eval()
    precision = choose_precision(args.fp16, device)

    sequences, embeddings = {}, {}
    for name, chunk_length in (
        (f"{args.split}-query", None),
        ("passages", find_model_type(args.model_type).chunk_length),
    ):
        sequences[name] = open_sequences(Path(args.data_dir, name), tokenizer, encoder.config, None, chunk_length)
        embeddings[name] = encode_store(
            encoder,
            sequences[name],
            name,
            args.embedding_dir,
            weights,
            batch_size=args.per_gpu_eval_batch_size,
            device=device,
            precision=precision,
            dtype=args.embedding_dtype,
        )
    queries, passages = (one.store for one in sequences.values())
    qrels = read_qrels(Path(args.data_dir, f"{args.split}-qrel.tsv"), len(queries), len(passages))
    exchange = Path(args.out_dir, "search")
    found = search_rows(*embeddings.values(), sequences["passages"], args.depth + 1, device, exchange)
    _, scores, rows = zip(*found, strict=True)
    scores, ranking = (distributed.gather_rows(np.concatenate(of_windows)) for of_windows in (scores, rows))

    def write() -> None:
        if queries_may_be_passages(passages.meta.source_file):
            kept = leave_out_self_matches(ranking, scores, queries.ids, passages.ids, args.depth)
        else:
            kept = cut_at(ranking, scores, args.depth)
        metrics = RunMetrics.of(
            evaluate_run(kept.rows, qrels), args.run_name, args.collection, args.model_name_or_path
        )
        run_file = Path(args.out_dir, "run.trec")
        write_trec_run(run_file, queries.ids, passages.ids, kept.rows, kept.scores, args.run_name)
        write_metrics(Path(args.out_dir, "metrics.json"), metrics)
        print(metrics.line(), flush=True)

    distributed.on_main(write)
    distributed.leave()


if __name__ == "__main__":
    run(main)
