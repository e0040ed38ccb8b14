"""How training goes on where it stopped: a training step's state into a checkpoint, and back out of it."""

from pathlib import Path
from typing import Any

import torch

from model.encoders import Encoder
from model.training_step import TrainingStep
from utils.runtime import distributed
from utils.runtime.errors import InputError, first_line
from utils.stores.checkpoint import TrainerState, load_training_state, save_checkpoint


def save(
    training_dir: str | Path,
    encoder: Encoder,
    tokenizer: Any,
    max_seq_length: int,
    max_query_length: int,
    step: TrainingStep,
    state: TrainerState,
) -> Path:
    """Saves a checkpoint of the encoder and of all that training needs to go on; every process must call it.

    SentenceTransformer cuts passages and queries to these lengths (tokens). Returns the folder, checkpoint-STEP.
    """
    state.processes = distributed.world_size()
    state.dro = {name: value.tolist() for name, value in step.objective.state_dict().items()}
    lengths = max_seq_length, max_query_length
    return save_checkpoint(training_dir, encoder, tokenizer, *lengths, step.optimizer, step.scaler, state)


def resume(
    checkpoint: str | Path,
    saved: TrainerState | None,
    step: TrainingStep,
    *,
    round: int,
    optimizer: str,
    objective: str,
    loss: str,
) -> TrainerState:
    """Loads a checkpoint's state into `step`, and returns where training of episode `round` stands.

    `saved` is the checkpoint's own state, None for an initial model, from which the first episode begins. Inside the
    episode training goes on; of an earlier one, the optimizer's moments stay (unlike in the public code) and the rest
    begins anew. Random states count for the same number of processes only. `InputError` where the episode before has
    not ended with this checkpoint, where it was trained with another optimizer, or inside the episode with another
    objective, loss or number of groups.
    """
    if saved is None:
        if round > 0:
            raise InputError(f"no checkpoint of this run, and round {round} goes on from one: train round 0 first")
        return TrainerState(round, optimizer=optimizer, objective=objective, loss=loss)
    inside = saved.round == round
    if not inside and not (saved.round == round - 1 and saved.ended):
        where = "at the end of" if saved.ended else "inside"
        raise InputError(
            f"stands {where} round {saved.round}, and round {round} goes on from the end of the one before: train "
            f"round {round - 1} to its end first",
            checkpoint,
        )
    for flag, asked, found in (
        ("optimizer", optimizer, saved.optimizer),
        (
            "dro_type (with --absent and --normalize_weights)",
            objective if inside else saved.objective,
            saved.objective,
        ),
        ("loss", loss if inside else saved.loss, saved.loss),
    ):
        if asked != found:
            raise InputError(
                f"was trained with {found}, and --{flag} asks for {asked}; go on with {found}", checkpoint
            )
    random_states = inside and saved.processes == distributed.world_size()
    load_training_state(checkpoint, step.optimizer, step.scaler, random_states)
    if inside:
        try:
            step.objective.load_state_dict({name: torch.tensor(value) for name, value in saved.dro.items()})
        except (TypeError, ValueError, RuntimeError, OverflowError) as error:
            raise InputError(
                f"the state of {objective} does not fit ({first_line(error)}); was it trained with another "
                "--n_groups? Give that, or remove this checkpoint, and the one before is used",
                checkpoint,
            ) from None
    else:
        saved.begin(round)
        saved.objective, saved.loss = objective, loss
    return saved
