"""Trains one episode on mined negatives, from the newest checkpoint of --training_dir.

    python drivers/run_ann.py --round 0 --model_type rdot_nll_condenser --init_model_dir CHECKPOINT \\
        --training_dir OUT/saved_models --data_dir OUT/preprocessed --ann_dir OUT/ann_data --result_dir OUT/results \\
        --max_steps 1000
    python -m torch.distributed.launch --nproc_per_node 8 drivers/run_ann.py …

An episode is a run of its own because its data are: the mined file of the episode is fixed while it lasts. Started
again, it goes on from the newest checkpoint, inside the episode too; an episode that is done is left alone. At
SIGTERM, SIGINT or SIGHUP it saves a checkpoint after the step in hand and leaves with exit code 75. The learning rate
warms up and decays anew in each episode; the optimizer's moments stay, where the public code begins with fresh ones.

With --round -1 it trains beside a miner that never stops (--end_output_num -1): on the newest episode that is mined,
and when a newer one is there, from the next logging step on, on that one; until --total_training_steps.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

from drivers.training_arguments import Arguments
from drivers.training_notes import note_few_clusters, note_room_left, note_skipped
from drivers.training_parts import make_step, new_objective, read_known
from model.encoders import load_encoder
from model.losses import LOSSES
from model.optimizers import LearningRate
from model.reading import find_reading
from model.training_state import resume, save
from utils.mining.encoding import open_sequences
from utils.runtime import distributed
from utils.runtime.arguments import parse
from utils.runtime.errors import run
from utils.runtime.logs import progress, say
from utils.runtime.memory import keep_freed_memory
from utils.runtime.stopping import EXIT_CODE, StopRequest
from utils.samples import Samples, Steps, step_batches
from utils.stores.checkpoint import TrainerState, newest_or_initial, remove_old_checkpoints
from utils.stores.episode import mined_clusters, mined_file, newest_ready, open_episode, read_result
from utils.stores.lock import hold_lock
from utils.stores.training_log import TrainingLog


def is_trained(args: Arguments, saved: TrainerState) -> bool:
    """Whether the episode, or with --round -1 the run, has ended with this state or before it."""
    if args.follow:
        return saved.ended and saved.global_step >= args.total_training_steps
    return saved.has_finished(args.round, args.max_steps) and (saved.ended or saved.round > args.round)


def last_step(args: Arguments, state: TrainerState, samples: Samples) -> int:
    """The step that training goes on to: the episode's last, or with --round -1 the run's.

    That is the step in hand where a checkpoint inside the episode is as long as the episode is now asked to be.
    """
    if args.follow:
        return max(args.total_training_steps, state.global_step)
    if state.has_finished(state.round, args.max_steps):
        return state.global_step
    if args.max_steps:
        return state.episode_start + args.max_steps
    return state.global_step + samples.steps_left(state.position, *args.batch_sizes)  # one pass


def main() -> None:
    args = parse(Arguments, __doc__)
    device = distributed.set_up(args.no_cuda, args.local_rank)
    if device.type == "cpu":
        keep_freed_memory()
    distributed.on_main(lambda: hold_lock(args.output_dir))
    checkpoint, saved = newest_or_initial([args.training_dir, args.output_dir], args.init_model_dir)
    if saved and is_trained(args, saved):
        say(f"{args.task_name} round {args.round} is trained already: {checkpoint}")
        distributed.leave()
        return

    reading = distributed.on_main(lambda: find_reading(checkpoint, **args.reading))
    encoder, tokenizer = load_encoder(checkpoint, reading, args.cache_dir or None)
    stores, reads = [Path(args.data_dir, name) for name in ("train-query", "passages")], (tokenizer, encoder.config)
    queries = open_sequences(stores[0], *reads, args.max_query_length, prepared=reading.queries)
    passages = open_sequences(stores[1], *reads, args.max_seq_length, reading.chunk_length, reading.passages)
    lengths = args.max_seq_length, args.max_query_length
    number = args.round
    if args.follow:
        number = saved.round if saved else newest_ready(args.result_dir)
    if args.group and not args.n_groups:
        args.n_groups = distributed.on_main(lambda: mined_clusters(args.result_dir, number))
    step = make_step(args, encoder, device)
    torch.manual_seed(args.seed + 1_000_000 * (saved.global_step if saved else 0) + distributed.rank())
    state = resume(
        checkpoint, saved, step, round=number, optimizer=args.optimizer, objective=args.objective, loss=args.loss
    )
    log = TrainingLog(args.log_dir, first_step=state.global_step)
    log.unlogged.load(state.unlogged, len(step.objective.weights))
    known = read_known(args, queries, passages)

    def open_round() -> tuple[Samples, Steps]:
        """The samples of the episode where training stands, and its batches from there on."""
        n_groups = args.n_groups if args.group else None
        counts = queries.row_count, passages.row_count
        episode = open_episode(args.ann_dir, args.result_dir, state.round, *counts, n_groups)
        state.enter(mined_file(args.ann_dir, state.round))
        log.metrics(state.episode_start, read_result(args.result_dir, state.round))
        samples = LOSSES[args.loss].samples(episode, *known)
        return samples, step_batches(samples, state.position, *args.batch_sizes, queries, passages, device)

    samples, steps = open_round()
    most = samples.most(args.per_gpu_train_batch_size)
    step_size = most * args.gradient_accumulation_steps * distributed.world_size()
    first, last = 0 if args.follow else state.episode_start, last_step(args, state, samples)
    schedule = args.warmup_steps, args.num_training_steps, args.total_training_steps
    rate = LearningRate(args.learning_rate, first, *schedule)
    say(
        f"{args.task_name} round {number}: steps {state.global_step - first} to {last - first} of up "
        f"to {step_size} {samples.unit} ({len(samples):,} mined) from {checkpoint}, {args.objective}, {args.loss} "
        f"loss, {distributed.world_size()} processes on {device.type}, {step.precision.dtype}"
    )
    note_room_left(samples, args.per_gpu_train_batch_size)
    if last - first > args.num_training_steps:
        say(f"warning: beyond step {args.num_training_steps} (--num_training_steps) the learning rate is 0")
    if state.global_step == last:  # a checkpoint inside the episode, which is now asked to be no longer
        state.ended = True
        folder = save(Path(checkpoint).parent, encoder, tokenizer, *lengths, step, state)
        say(f"step {last}: the episode ends here, noted in {folder}")
    asked, stopped = StopRequest(), False
    with progress(total=last - first, initial=state.global_step - first, unit="steps", label="train") as bar:
        while state.global_step < last and not stopped:
            learning_rate, (taken, following) = rate.at(state.global_step), next(steps)
            result = step(taken.batches, learning_rate, bool(asked), taken.clusters)
            state.advance(following, result.skipped)
            stopped = result.stop
            done, at_end = state.global_step - first, state.global_step == last or stopped
            if result.skipped:
                note_skipped(state, args.max_skipped_steps, args.output_dir, args.init_model_dir)
            state.ended = state.global_step == last
            entry = at_end or done % args.logging_steps == 0
            held = log.step(state.global_step, result, learning_rate, entry)
            if held and held.steps == done:  # the first entry, also of steps before an interruption
                note_few_clusters(step.objective, held, read_result(args.result_dir, state.round))
            if at_end or (args.save_steps and done % args.save_steps == 0):
                state.unlogged = log.unlogged.state()
                log.flush()
                folder = save(args.output_dir, encoder, tokenizer, *lengths, step, state)
                say(f"step {state.global_step}: loss {log.loss:.4f}, saved {folder}")
                if args.save_total_limit and not state.skipped_in_a_row and distributed.is_main():
                    remove_old_checkpoints(args.output_dir, args.save_total_limit, state.episode_start)
            bar.update()
            if entry:
                bar.set_postfix(loss=f"{log.loss:.4f}")
                if args.follow and not at_end and (newest := newest_ready(args.result_dir)) > state.round:
                    steps.close()
                    state.begin(newest)
                    step.objective = new_objective(args).to(device)
                    samples, steps = open_round()
                    say(f"step {state.global_step}: on to round {newest}, {len(samples):,} {samples.unit}")
    steps.close()
    log.close()
    if stopped and state.global_step < last:
        say(f"stopped by {asked.name or 'a signal'} after step {state.global_step}; the same command goes on there")
        distributed.leave(EXIT_CODE)
    distributed.leave()


if __name__ == "__main__":
    run(main)
