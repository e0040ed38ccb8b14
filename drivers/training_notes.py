"""What drivers/run_ann.py tells about steps that go wrong, or that cannot do what they are meant to."""

from collections.abc import Mapping

from model.dro import ERM
from utils.runtime.errors import InputError
from utils.runtime.logs import say
from utils.samples import Samples
from utils.stores.checkpoint import TrainerState, newest_checkpoint
from utils.stores.training_log import StepClusters

FEW = 0.5  # a step holds few clusters where it holds a smaller share of them


def note_skipped(state: TrainerState, most_in_a_row: int, training_dir: str, init_model_dir: str) -> None:
    """Says that a step was skipped; `InputError` with the checkpoint to go on from where too many were in a row."""
    say(f"warning: step {state.global_step} is skipped, its gradient is not finite ({state.skipped_steps} so far)")
    if state.skipped_in_a_row >= most_in_a_row:
        good = newest_checkpoint(training_dir, lambda saved: saved.skipped_in_a_row == 0)
        raise InputError(
            f"{state.skipped_in_a_row} steps in a row had a gradient that is not finite; go on with a lower "
            "--learning_rate or without --fp16 in another --training_dir (run_ance.sh: --out_dir), from the last "
            f"good checkpoint: {good or init_model_dir}"
        )


def note_room_left(samples: Samples, batch_size: int) -> None:
    """Says so where whole blocks leave room in a batch of `batch_size`, and steps are smaller therefore."""
    most = samples.most(batch_size)
    if most < batch_size:
        say(
            f"warning: --per_gpu_train_batch_size is {batch_size}, of which whole blocks fill {most} {samples.unit}; "
            "give a multiple of a block's (--queries_together), or steps are smaller than asked for"
        )


def note_few_clusters(objective: ERM, held: StepClusters, mined: Mapping[str, object]) -> None:
    """Says so where steps hold few of the clusters, and the objective lets those that are absent fall.

    `mined` is what `read_result` says of the episode: whether they are groups by name.
    """
    clusters, kind, fewer = len(objective.weights), "clusters", "fewer clusters (mining's --cluster_centroids)"
    if "cluster_names" in mined:
        kind, fewer = "groups", "fewer and larger groups (mining's --groups_file)"
    if objective.drops_absent and held.present < FEW * clusters:
        say(
            f"warning: a step holds {held.present:.1f} of {clusters} {kind} in the mean. By {objective.name} one "
            f"that is absent falls to the least weight, {objective.eps:g}, so that chance decides much of the "
            f"weights. What helps: more --gradient_accumulation_steps, {fewer}, --absent keep"
        )
