"""Mines an episode: encodes the collection with the newest checkpoint and draws hard negatives from what ranks high.

    python drivers/run_ann_data_gen.py --model_type rdot_nll_condenser --init_model_dir CHECKPOINT \\
        --training_dir OUT/saved_models --data_dir OUT/preprocessed --output_dir OUT/ann_data \\
        --result_dir OUT/results --cluster_query --cluster_centroids 50 --end_output_num 0
    python -m torch.distributed.launch --nproc_per_node 8 drivers/run_ann_data_gen.py …

A call mines one episode, the one after the newest. Where no checkpoint is newer than the one that mined that, or
training stands inside its round, it says so and ends with exit code 0.

Writes the mined file, its scores, examples of it and of what filters dropped, the query clusters (with --groups_file,
groups by name in their place) and, last of all, the dev metrics of the checkpoint, whose file makes the episode
ready. Embeddings stay on disk: what a crash interrupts, and what the evaluation needs of the same checkpoint, is not
encoded twice.

With --end_output_num -1 it mines beside training (drivers/run_ann.py --round -1), an episode whenever there is a
newer checkpoint, until it is stopped, by SIGKILL too: the next miner goes on from what is complete. So that they do
not fill the disk, the embeddings of a checkpoint are then removed once a newer one has mined.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from drivers.mining_arguments import Arguments
from drivers.mining_parts import embedding_dir, encode_all, load, open_stores, search
from utils.mining.clustering import Clusters, cluster, evaluate_clusters
from utils.mining.drawing import Drawn
from utils.mining.evaluation import DEPTH, evaluate_collections, measure
from utils.mining.named_groups import NamedGroups, read_named_groups
from utils.mining.negatives import check_given, deal_passes
from utils.runtime import distributed
from utils.runtime.arguments import parse
from utils.runtime.errors import run
from utils.runtime.logs import say
from utils.stores.checkpoint import checkpoint_to_mine, newest_or_initial
from utils.stores.embedding_store import remove_earlier_embeddings
from utils.stores.episode import mined_file, newest_episode, scores_file, write_mined_file, write_result
from utils.stores.files import sha256_of_file
from utils.stores.lock import hold_lock
from utils.stores.mined_examples import write_examples
from utils.stores.qrels import Qrels, read_train_and_dev_qrels


def deal(
    args: Arguments,
    number: int,
    drawn: Drawn,
    train_qrels: Qrels,
    clusters: Clusters | NamedGroups | None,
) -> int:
    """Deals the negatives into the mined file, with their scores beside it; returns the number of triplets."""
    drawn.check(args.topk_training)
    drawn.say_filtered(number)
    short = int(((drawn.rows >= 0).sum(1) < args.negative_sample).sum())
    if short:
        say(f"episode {number}: {short:,} queries have fewer than {args.negative_sample} candidates")
    rows, of_row = np.arange(len(drawn.rows)), clusters and clusters.assignment
    dealing = {"seed": args.seed, "episode": number, "scores": (drawn.scores, drawn.positive_scores)}
    dealing["queries_together"] = args.queries_together
    passes = deal_passes(rows, drawn.rows, train_qrels, of_row, args.passes, **dealing)
    return write_mined_file(mined_file(args.output_dir, number), passes, scores_file(args.output_dir, number))


def mine(args: Arguments, number: int, checkpoint: str, step: int, device: torch.device) -> None:
    """Mines episode `number` with the checkpoint of this step."""
    say(f"episode {number}: mining with {checkpoint}, {distributed.world_size()} processes on {device.type}")
    train_qrels, dev_qrels = read_train_and_dev_qrels(args.data_dir)
    if args.given_negatives and number == 0:
        check_given(train_qrels)  # before anything is encoded, which may take hours
    groups = []  # on the main process: by name, and the group of each dev query
    if args.groups_file:
        queries = open_stores(args, "train-query", "dev-query")
        distributed.on_main(lambda: groups.extend(read_named_groups(args.groups_file, *queries)))
    encoder, folder = load(args, checkpoint, device), embedding_dir(args, checkpoint)
    embeddings = encode_all(args, encoder, folder)
    exchange = Path(args.output_dir, "search-zero-shot")
    zero_shot, collapsed = evaluate_collections(encoder, args.zero_shot_dirs, "test", folder, exchange)
    chunk_length = encoder.encoder.reading.chunk_length
    del encoder  # searching wants the GPU's memory
    found, drawn = search(args, number, embeddings, chunk_length, train_qrels, device)
    say(f"episode {number}: {len(found[0]) + len(drawn.rows):,} queries searched, and negatives drawn")

    def write() -> None:
        _, dev = measure(*found, *open_stores(args, "dev-query", "passages"), dev_qrels, DEPTH)
        result = {"checkpoint": checkpoint, "step": step, "episode": number}
        result |= {"ndcg": dev.means["ndcg@10"], **dev.means}
        if names := [name for name, matrix in embeddings.items() if matrix.collapsed] + collapsed:
            result["collapsed"] = names
        if zero_shot:
            result["zero_shot"] = zero_shot
        clusters = None
        if args.cluster_query:
            of_queries = embeddings["train-query"], embeddings["dev-query"]
            clusters, dev_clusters = groups or cluster(*of_queries, args.cluster_centroids, args.seed, device)
            clusters.save(Path(args.output_dir, f"clusters_{number}"), dev_clusters)
            result |= evaluate_clusters(clusters, dev_clusters, dev.values["mrr@10"])
        result["triplets"] = deal(args, number, drawn, train_qrels, clusters)
        result["mined_sha256"] = sha256_of_file(mined_file(args.output_dir, number))
        result["scores_sha256"] = sha256_of_file(scores_file(args.output_dir, number))
        result["examples_sha256"] = write_examples(args.output_dir, number, drawn.examples(train_qrels))
        result |= drawn.filtered
        write_result(args.result_dir, number, result)
        metrics = f"dev MRR@10 {result['mrr@10']:.4f}, nDCG@10 {result['ndcg']:.4f}"
        metrics += "".join(f", {name} {means['ndcg@10']:.4f}" for name, means in zero_shot.items())
        say(f"episode {number}: {result['triplets']:,} triplets; {metrics}")

    distributed.on_main(write)


def mine_episodes(args: Arguments, device: torch.device) -> None:
    """Mines the next episode if there is a checkpoint for it; with --end_output_num -1 every one until stopped."""
    number = distributed.on_main(lambda: newest_episode(args.result_dir)) + 1
    models = args.training_dir, args.init_model_dir
    while found := checkpoint_to_mine(number, args.result_dir, *models, waits=args.endless):
        checkpoint, step = found
        mine(args, number, checkpoint, step, device)
        if not args.endless:
            return
        if distributed.is_main():
            remove_earlier_embeddings(args.output_dir, step, args.public_ann_data_dir)
        number += 1


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda, args.local_rank)
    distributed.on_main(lambda: hold_lock(args.output_dir))
    if args.inference:
        checkpoint, _ = newest_or_initial([args.training_dir], args.init_model_dir)
        encode_all(args, load(args, checkpoint, device), embedding_dir(args, checkpoint))
    else:
        mine_episodes(args, device)
    distributed.leave()


if __name__ == "__main__":
    run(main)
