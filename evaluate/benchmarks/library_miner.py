"""sentence-transformers' own miner as a process of its own: from MS MARCO's files to negatives on the disk.

    python evaluate/benchmarks/library_miner.py --collection_dir MSMARCO --checkpoint CHECKPOINT --out_dir OUT

`mine_hard_negatives` encodes the texts, searches with faiss, takes out all relevant passages of a query, and draws
negatives at random from the best of the rest. Texts are prepared and pooled as the checkpoint's own files say; layers
that follow are left out, and it compares directions: vectors are normalized, whatever the model was trained for. The
result is a data set of lines of a query, one of its positives and its negatives, the smallest of the forms that the
library has; a query that has too few has no line.
"""

import random
import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from datasets import Dataset
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from sentence_transformers.util import mine_hard_negatives

from data.judgments import iter_judgments
from data.layouts.msmarco import read_tsv
from model.families import find_family
from model.reading import AUTO, Reading, find_reading
from utils.runtime import distributed
from utils.runtime.arguments import DeviceArguments, option, parse, required
from utils.runtime.errors import run
from utils.runtime.precision import choose_precision
from utils.stores.pretrained import pretrained_config


@dataclass
class Arguments(DeviceArguments):
    collection_dir: str = required("collection.tsv, queries.train.tsv and qrels.train.tsv")
    checkpoint: str = required("the checkpoint that mines: a folder or a hub name")
    out_dir: str = required("where the data set goes")
    max_length: int = option(128, "tokens of a text; the library has one length for passages and queries")
    topk: int = option(200, "passages ranked a query, without its relevant ones, from which negatives are drawn")
    negatives: int = option(30, "negatives drawn a query")
    batch_size: int = option(128, "texts encoded at once")
    seed: int = option(42, "seed of the negatives")


def read_pairs(folder: Path, reading: Reading) -> tuple[dict[str, list[str]], list[str]]:
    """Each query with each of its relevant passages, as two columns of texts, and the texts of all passages."""
    passages, queries = (
        {text_id: text for _, text_id, text in read_tsv(folder / name, prepare)}
        for name, prepare in (("collection.tsv", reading.passages), ("queries.train.tsv", reading.queries))
    )
    pairs = [
        (queries[query], passages[passage])
        for _, query, passage, grade in iter_judgments(folder / "qrels.train.tsv")
        if grade > 0 and query in queries and passage in passages
    ]
    return {"query": [query for query, _ in pairs], "positive": [text for _, text in pairs]}, list(passages.values())


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda)
    random.seed(args.seed)
    reading, family = find_reading(args.checkpoint, AUTO), find_family(pretrained_config(args.checkpoint))
    texts = Transformer(args.checkpoint, max_seq_length=args.max_length, model_kwargs=family.options)
    pooling = Pooling(texts.get_embedding_dimension(), pooling_mode=reading.pooling)
    model = SentenceTransformer(modules=[texts, pooling], device=str(device))
    pairs, passages = read_pairs(Path(args.collection_dir), reading)
    with choose_precision(args.fp16, device).autocast():
        mined = mine_hard_negatives(
            Dataset.from_dict(pairs),
            model,
            corpus=passages,
            range_max=args.topk,
            num_negatives=args.negatives,
            sampling_strategy="random",
            output_format="n-tuple",
            batch_size=args.batch_size,
            use_faiss=True,
            verbose=False,
        )
    mined.save_to_disk(args.out_dir)


if __name__ == "__main__":
    run(main)
