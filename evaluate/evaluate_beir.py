"""Evaluates a checkpoint on a tokenized collection: BEIR's test split, or the dev split of the training collection.

    python evaluate/evaluate_beir.py --model_type rdot_nll_condenser --model_name_or_path CHECKPOINT \\
        --data_dir PREPROCESSED --out_dir RESULTS
    python -m torch.distributed.launch --nproc_per_node 2 evaluate/evaluate_beir.py …

Writes RESULTS/metrics.json, per_query.json, run.trec and qrels.trec, and prints the metrics in one line. They are
those that `trec_eval -c` gives for the two files (MRR@10 with -M 10), to rounding. Passages are encoded and
searched by the code that mines, so that what is measured is what training used; embeddings that are in
--embedding_dir already (a miner's, say) are not made again.

As in BEIR's own evaluation, a passage with the query's id is left out of the query's ranking, unless it is judged
relevant to it: ArguAna's queries are passages of its collection. This holds for token stores that were made from
BEIR's layout, which their meta.json tells. In MS MARCO a query and a passage of the same number have nothing to do
with each other: its passages all stay, so that the dev split gives the metrics that the miner gives.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from evaluate.metrics_file import RunMetrics, write_evaluation
from model.encoders import load_store_encoder
from model.reading import find_reading
from utils.mining.evaluation import DEPTH, evaluate_collection
from utils.runtime import distributed
from utils.runtime.arguments import ModelArguments, option, parse, required
from utils.runtime.errors import run
from utils.runtime.precision import choose_precision
from utils.stores.embedding_store import check_dtype


@dataclass
class Arguments(ModelArguments):
    data_dir: str = required("token stores, as data/beir_data.py or data/msmarco_data.py writes them")
    out_dir: str = required("where metrics.json, per_query.json, run.trec and qrels.trec go")
    model_name_or_path: str = required("the checkpoint: a folder or a hub name")
    split: str = option("test", "which queries: those of SPLIT-query and SPLIT-qrel.tsv")
    collection: str = option("", "name of the collection in the result (default: the data folder's name)")
    run_name: str = option("", "name of the run in the result (default: the checkpoint's folder)")
    embedding_dir: str = option("", "where embeddings are found or kept (default: out_dir/embeddings)")
    depth: int = option(DEPTH, "passages ranked a query")
    per_gpu_eval_batch_size: int = option(128, "texts a process encodes at once, at most")
    embedding_dtype: str = option("float32", "float32 or float16: the type that embeddings are stored in")

    def __post_init__(self) -> None:
        self.collection = self.collection or Path(self.data_dir).resolve().name
        self.run_name = self.run_name or Path(self.model_name_or_path).name
        self.embedding_dir = self.embedding_dir or str(Path(self.out_dir, "embeddings"))
        check_dtype(self.embedding_dtype)


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda, args.local_rank)
    encoder = load_store_encoder(
        args.model_name_or_path,
        distributed.on_main(lambda: find_reading(args.model_name_or_path, **args.reading)),
        args.cache_dir or None,
        batch_size=args.per_gpu_eval_batch_size,
        device=device,
        precision=choose_precision(args.fp16, device),
        dtype=args.embedding_dtype,
    )
    exchange = Path(args.out_dir, "search")
    result = evaluate_collection(encoder, args.data_dir, args.split, args.embedding_dir, exchange, args.depth)

    def write() -> None:
        labels = args.run_name, args.collection, args.model_name_or_path
        metrics = RunMetrics.of(result.evaluation, *labels, collapsed=result.collapsed)
        write_evaluation(
            *(args.out_dir, metrics, result.evaluation, result.ranking),
            *(result.qrels, result.query_ids, result.passage_ids),
        )
        print(metrics.line(), flush=True)

    distributed.on_main(write)
    distributed.leave()


if __name__ == "__main__":
    run(main)
