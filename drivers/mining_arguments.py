"""What drivers/run_ann_data_gen.py can be asked for: one field a flag, and what cannot be asked for together."""

from dataclasses import dataclass, field
from math import ceil

from utils.mining.evaluation import check_names
from utils.mining.filters import FILTERS, make_filters
from utils.runtime.arguments import (
    LengthArguments,
    ModelArguments,
    check_at_least_one,
    check_at_least_zero,
    option,
    required,
)
from utils.runtime.errors import InputError
from utils.stores.embedding_store import check_dtype


@dataclass
class Arguments(ModelArguments, LengthArguments):
    data_dir: str = required("token stores, as data/beir_data.py or data/msmarco_data.py writes them")
    output_dir: str = required("where mined files, clusters and embeddings go")
    training_dir: str = required("checkpoints of the run; the newest valid one mines")
    result_dir: str = option("", "where ann_ndcg_N files go (default: output_dir)")
    init_model_dir: str = option("", "checkpoint to begin with where training_dir holds none: a folder or a hub name")
    zero_shot_dirs: list[str] = field(default_factory=list, metadata={"help": "tokenized collections to evaluate on"})
    public_ann_data_dir: str = option("", "embeddings of the initial checkpoint, shared between experiments")
    per_gpu_eval_batch_size: int = option(128, "texts a process encodes at once, at most")
    embedding_dtype: str = option("float32", "float32 or float16: the type that embeddings are stored in")
    topk_training: int = option(200, "passages ranked a training query, from which negatives are drawn")
    negative_sample: int = option(30, "negatives drawn a query")
    given_negatives: bool = option(
        False,
        "episode 0: draw from the passages that are judged not relevant (grade 0 or below), where a query has some",
    )
    skip_ranks: int | None = option(None, "drop so many of a query's best-ranked candidates (docs/inside.md#filters)")
    max_relative_score: float | None = option(
        None,
        "drop candidates that score above this share, like 0.95, of the query's positive (of several, the one that "
        "scores lowest): for vectors of length 1",
    )
    min_margin: float | None = option(
        None,
        "drop candidates that score less than this below that positive, in standard deviations of the scores of the "
        "passages ranked for the query: for vectors of any length",
    )
    index_factory: str = option("Flat", "Flat: exact search; else an approximate index, by faiss's factory string")
    index_parameters: str = option("", "of an approximate index's search, like nprobe=64 or efSearch=128")
    ann_chunk_factor: int = option(5, "passes over the queries that the negatives are dealt into")
    negatives_a_query: int = option(
        0, "negatives of a query in a pass, at most, and as many passes as all take; 0: by ann_chunk_factor"
    )
    queries_together: int = option(
        0,
        "queries of a cluster that stand together in a block, for --loss contrastive; 0: in no blocks, as published",
    )
    end_output_num: int = option(
        0, "from 0: mine one episode, the next, whatever the number; -1: whenever a newer checkpoint appears"
    )
    group: int = option(0, "1: training will use clusters, so --cluster_query must be set")
    cluster_query: bool = option(False, "cluster the training queries, and write each line's cluster")
    cluster_centroids: int = option(50, "clusters of the training queries; not used with groups_file")
    groups_file: str = option(
        "",
        "groups by name in the place of clusters: a TSV of query id and group name (.gz too); implies cluster_query",
    )
    inference: bool = option(False, "encode only, with the newest checkpoint, and mine nothing")
    seed: int = option(42, "seed of the clusters and of the negatives")

    def __post_init__(self) -> None:
        self.result_dir = self.result_dir or self.output_dir
        self.cluster_query = self.cluster_query or bool(self.groups_file)
        self.endless = self.end_output_num == -1
        if self.end_output_num < -1:
            raise InputError(f"--end_output_num is {self.end_output_num}; from 0: one episode, and -1 never ends")
        if self.group and not self.cluster_query:
            raise InputError("--group 1 trains on clusters, and --cluster_query is not set, nor --groups_file")
        if self.index_factory == "Flat" and self.index_parameters:
            raise InputError("--index_parameters are of an approximate index; --index_factory Flat searches exactly")
        check_names(self.zero_shot_dirs)
        check_at_least_one(self, "per_gpu_eval_batch_size", "topk_training", "negative_sample", "ann_chunk_factor")
        check_at_least_zero(self, "negatives_a_query", "queries_together")
        check_dtype(self.embedding_dtype)
        self.filters = make_filters({name: getattr(self, name) for name in FILTERS})
        if self.skip_ranks is not None and self.skip_ranks >= self.topk_training:
            raise InputError(
                f"--skip_ranks is {self.skip_ranks}, and only {self.topk_training} passages are ranked; give "
                "fewer, or rank more (--topk_training)"
            )

    @property
    def passes(self) -> int:
        """Over the queries, in a mined file."""
        if self.negatives_a_query:
            return ceil(self.negative_sample / self.negatives_a_query)
        return self.ann_chunk_factor
