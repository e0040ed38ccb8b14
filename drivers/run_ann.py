"""Trains one episode on mined negatives, from the newest checkpoint of --training_dir.

    python drivers/run_ann.py --round 0 --model_type rdot_nll_condenser --init_model_dir CHECKPOINT \\
        --training_dir OUT/saved_models --data_dir OUT/preprocessed --ann_dir OUT/ann_data --result_dir OUT/results \\
        --max_steps 1000
    python -m torch.distributed.launch --nproc_per_node 8 drivers/run_ann.py …

An episode is a run of its own because its data are: the mined file of the episode is fixed while it lasts. Started
again, it goes on from the newest checkpoint, inside the episode too; an episode that is done is left alone.

With --round -1 it trains beside a miner that never stops (--end_output_num -1): on the newest episode that is mined,
and when a newer one is there, from the next logging step on, on that one; until --total_training_steps.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from model.dro import ERM, make_objective, watched_layers
from model.encoders import Encoder, find_model_type, load_encoder
from model.group_gradients import GroupGradients
from model.optimizers import LearningRate, make_optimizer
from model.training_state import resume, save
from model.training_step import TrainingStep
from model.triplets import TripletModel
from utils import distributed
from utils.arguments import check_at_least_one, option, parse, required
from utils.batching import StepBatches, step_batches
from utils.checkpoint import TrainerState, newest_or_initial
from utils.encoding import open_sequences
from utils.episode import Episode, newest_ready, open_episode, read_result
from utils.errors import InputError, run
from utils.logs import TrainingLog, progress, say
from utils.memory import keep_freed_memory
from utils.precision import choose_precision


@dataclass
class Arguments:
    data_dir: str = required("token stores, as data/msmarco_data.py writes them")
    ann_dir: str = required("mined files, as drivers/run_ann_data_gen.py writes them")
    training_dir: str = option("", "checkpoints; the newest valid one is gone on from (default: output_dir)")
    output_dir: str = option("", "where checkpoints are saved (default: training_dir)")
    result_dir: str = option("", "ann_ndcg_N files of the mined episodes (default: ann_dir)")
    init_model_dir: str = option("", "checkpoint to begin with where training_dir holds none")
    model_name_or_path: str = option("", "the same, as a hub name or folder; used where init_model_dir is not given")
    model_type: str = option("rdot_nll", "rdot_nll, rdot_nll_multi_chunk or rdot_nll_condenser")
    model_size: str = option("base", "base or large: iDRO compares gradients over the last 3 or 2 layers")
    task_name: str = option("MSMarco", "name of the run in its log")
    triplet: bool = option(True, "train on (query, positive, negative) triplets, the only form of mined files")
    round: int = option(0, "the episode, from 0; -1: the newest that is mined, while another process mines on")
    max_steps: int = option(0, "optimizer steps of one episode; 0: one pass over its mined file (not with round -1)")
    max_seq_length: int = option(128, "tokens of a passage, as in the token store")
    max_query_length: int = option(64, "tokens of a query, as in the token store")
    per_gpu_train_batch_size: int = option(16, "triplets a process and backward pass")
    per_gpu_eval_batch_size: int = option(128, "taken for the miner's sake; training does not evaluate")
    gradient_accumulation_steps: int = option(1, "backward passes an optimizer step")
    optimizer: str = option("lamb", "lamb or adamW")
    learning_rate: float = option(5e-6, "peak learning rate of the first episode")
    weight_decay: float = option(0.0, "weight decay of matrices")
    adam_epsilon: float = option(1e-8, "epsilon in the optimizer's denominator")
    max_grad_norm: float = option(1.0, "gradients are clipped to this norm; 0: never")
    warmup_steps: int = option(0, "steps of linear warm-up")
    num_training_steps: int = option(0, "steps of the decay to 0; 0: max_steps, or with single_warmup all")
    total_training_steps: int = option(0, "steps of all episodes, over which their peaks sink; 0: peaks stay")
    single_warmup: bool = option(False, "warm up and decay once a run rather than once an episode")
    fp16: bool = option(False, "mixed precision: bfloat16 where the hardware has it, float16 on an older GPU")
    group: int = option(0, "1: use the clusters of the mined file; 0: plain ERM")
    n_groups: int = option(50, "clusters, as many as were mined with")
    dro_type: str = option("idro", "idro or dro-greedy, in upper or lower case")
    alpha: float = option(0.25, "iDRO: power of the losses; DRO-greedy: share of the data that weighs most")
    ema: float = option(0.1, "iDRO: power of the old weights; DRO-greedy: decay of the running means")
    rho: float = option(0.05, "iDRO: step size of the weights")
    eps: float = option(0.01, "the least weight of a cluster")
    idro_layers: int = option(0, "last layers that gradients are compared over; 0: by --model_size")
    idro_sketch_dim: int = option(0, "numbers a cluster's gradient is projected to before exchange; 0: exact")
    logging_steps: int = option(10, "steps between log entries")
    gradient_checkpointing: bool = option(False, "compute layers twice rather than keep their activations")
    save_steps: int = option(0, "steps between checkpoints; 0: only at the end of the episode")
    log_dir: str = option("", "TensorBoard folder (default: output_dir/logs)")
    cache_dir: str = option("", "where models from the hub are kept")
    seed: int = option(42, "seed of dropout")
    no_cuda: bool = option(False, "stay on the CPU")
    local_rank: int = option(-1, "set by torch.distributed.launch")

    def __post_init__(self) -> None:
        self.training_dir = self.training_dir or self.output_dir
        self.output_dir = self.output_dir or self.training_dir
        self.result_dir = self.result_dir or self.ann_dir
        self.init_model_dir = self.init_model_dir or self.model_name_or_path
        self.log_dir = self.log_dir or str(Path(self.output_dir, "logs"))
        self.objective = self.dro_type.lower() if self.group else "erm"
        self.follow = self.round == -1
        if self.round < -1:
            raise InputError(f"--round is {self.round}; an episode counts from 0, and -1 follows the newest")
        wanted = self.total_training_steps and self.save_steps and self.single_warmup
        if self.follow and (self.max_steps or not wanted):
            raise InputError(
                "--round -1 wants --total_training_steps, where it ends, --save_steps, without which there is "
                "nothing new to mine with, and --single_warmup, but no --max_steps: an episode has no set length"
            )
        if self.single_warmup and not (self.num_training_steps or self.total_training_steps):
            raise InputError("--single_warmup wants --num_training_steps or --total_training_steps: the run's length")
        if not self.training_dir:
            raise InputError("give --training_dir or --output_dir: where checkpoints are and go")
        if not self.triplet:
            raise InputError("--triplet false: mined files hold triplets only")
        check_at_least_one(
            self, "per_gpu_train_batch_size", "gradient_accumulation_steps", "logging_steps", "n_groups"
        )


def is_trained(args: Arguments, saved: TrainerState) -> bool:
    """Whether the episode, or with --round -1 the run, had ended when this state was saved."""
    if args.follow:
        return saved.global_step >= args.total_training_steps
    return saved.has_finished(args.round, args.max_steps)


def new_objective(args: Arguments) -> ERM:
    """The objective as every episode begins with it."""
    n_groups = args.n_groups if args.group else 1
    return make_objective(args.objective, n_groups, alpha=args.alpha, ema=args.ema, rho=args.rho, eps=args.eps)


def make_step(args: Arguments, encoder: Encoder, device: torch.device) -> TrainingStep:
    """The training step of this objective on this encoder, which is moved to the device and put in training mode."""
    objective = new_objective(args)
    encoder = encoder.to(device).train()
    encoder.base_model.gradient_checkpointing = args.gradient_checkpointing
    watch = None
    if objective.needs_gradient_products:
        layers = watched_layers(encoder, args.model_size, args.idro_layers)
        watch = GroupGradients(layers, args.n_groups, sketch_dim=args.idro_sketch_dim or None, seed=args.seed)
    model = TripletModel(encoder, watch)
    optimizer = make_optimizer(args.optimizer, model, args.learning_rate, args.weight_decay, args.adam_epsilon)
    precision = choose_precision(args.fp16, device)
    return TrainingStep(model, objective, optimizer, precision, args.max_grad_norm, device, watch)


def make_rate(args: Arguments, first: int, last: int) -> LearningRate:
    """The learning rate of steps `first` … `last` - 1, which are an episode, or with --round -1 the run."""
    steps = args.total_training_steps if args.single_warmup else last - first
    return LearningRate(
        args.learning_rate,
        episode_start=first,
        warmup_steps=args.warmup_steps,
        num_training_steps=args.num_training_steps or steps,
        total_training_steps=args.total_training_steps,
        single_warmup=args.single_warmup,
    )


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda, args.local_rank)
    if device.type == "cpu":
        keep_freed_memory()
    checkpoint, saved = newest_or_initial([args.training_dir, args.output_dir], args.init_model_dir)
    if saved and is_trained(args, saved):
        say(f"{args.task_name} round {args.round} is trained already: {checkpoint}")
        distributed.leave()
        return

    encoder, tokenizer = load_encoder(args.model_type, checkpoint, args.cache_dir or None)
    chunk_length = find_model_type(args.model_type).chunk_length
    stores = Path(args.data_dir, "train-query"), Path(args.data_dir, "passages")
    queries = open_sequences(stores[0], tokenizer, encoder.config, args.max_query_length)
    passages = open_sequences(stores[1], tokenizer, encoder.config, args.max_seq_length, chunk_length)
    step = make_step(args, encoder, device)
    number = args.round
    if args.follow:
        number = saved.round if saved else newest_ready(args.result_dir)
    torch.manual_seed(args.seed + 1_000_000 * (saved.global_step if saved else 0) + distributed.rank())
    state = resume(checkpoint, saved, step, round=number, optimizer=args.optimizer, objective=args.objective)
    log = TrainingLog(args.log_dir, first_step=state.global_step)

    def open_round() -> tuple[Episode, StepBatches]:
        """The episode where training stands, and its batches from there on."""
        n_groups = args.n_groups if args.group else None
        counts = queries.row_count, passages.row_count
        episode = open_episode(args.ann_dir, args.result_dir, state.round, *counts, n_groups)
        log.metrics(state.episode_start, read_result(args.result_dir, state.round))
        sizes = args.per_gpu_train_batch_size, args.gradient_accumulation_steps
        return episode, step_batches(episode, state.position, *sizes, queries, passages, device)

    episode, steps = open_round()
    step_size = args.per_gpu_train_batch_size * args.gradient_accumulation_steps * distributed.world_size()
    first, last = 0, args.total_training_steps
    if not args.follow:
        first = state.episode_start
        last = first + (args.max_steps or -(-episode.triplets // step_size))
    rate = make_rate(args, first, last)
    say(
        f"{args.task_name} round {number}: steps {state.global_step - first} to {last - first} of {step_size} "
        f"triplets ({episode.triplets:,} mined) from {checkpoint}, {args.objective}, "
        f"{distributed.world_size()} processes on {device.type}, {step.precision.dtype}"
    )
    with progress(total=last - first, initial=state.global_step - first, unit="steps", label="train") as bar:
        while state.global_step < last:
            learning_rate, weights = rate.at(state.global_step), step.objective.weights.clone()
            batches, following = next(steps)
            result = step(batches, learning_rate)
            state.advance(following)
            done, at_end = state.global_step - first, state.global_step == last
            bar.update()
            if result.skipped:
                say(f"warning: step {state.global_step} is skipped, its gradient is not finite")
            if at_end or (args.save_steps and done % args.save_steps == 0):
                folder = save(args.output_dir, encoder, tokenizer, args.max_seq_length, step, state)
                say(f"step {state.global_step}: loss {float(result.loss):.4f}, saved {folder}")
            if at_end or done % args.logging_steps == 0:
                log.step(state.global_step, result, weights, learning_rate)
                bar.set_postfix(loss=f"{float(result.loss):.4f}")
                if args.follow and not at_end and (newest := newest_ready(args.result_dir)) > state.round:
                    steps.close()
                    state.begin(newest)
                    step.objective = new_objective(args).to(device)
                    episode, steps = open_round()
                    say(f"step {state.global_step}: on to round {newest}, {episode.triplets:,} triplets")
    steps.close()
    log.close()
    distributed.leave()


if __name__ == "__main__":
    run(main)
