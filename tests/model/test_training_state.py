"""A training step's state: into a checkpoint, and back out of it, or refused with the reason."""

import pytest
import torch

from model.dro import make_objective
from model.retriever import Retriever
from model.training_state import resume, save
from model.training_step import TrainingStep
from tests.tiny_models import load_encoder
from tests.tiny_run import save_tiny_checkpoint
from utils.runtime.errors import InputError
from utils.runtime.precision import Precision
from utils.stores.checkpoint import TrainerState, read_trainer_state

NAMES = {"optimizer": "adamW", "objective": "dro-greedy", "loss": "pairwise"}


def make_step(encoder, n_groups: int) -> TrainingStep:
    objective = make_objective("dro-greedy", n_groups, alpha=0.25, ema=0.1, rho=0.05, eps=0.01)
    optimizer = torch.optim.AdamW(encoder.parameters())
    return TrainingStep(
        Retriever(encoder), objective, optimizer, Precision("cpu", torch.float32), 1.0, torch.device("cpu")
    )


@pytest.fixture
def saved(tmp_path):
    """An encoder, and a checkpoint of a step on 4 groups that has learnt something."""
    encoder, tokenizer = load_encoder(
        "rdot_nll_condenser", str(save_tiny_checkpoint(tmp_path / "initial", "rdot_nll_condenser"))
    )
    step = make_step(encoder, 4)
    step.objective.update(torch.rand(4), torch.tensor([1, 0, 2, 1]))
    state = TrainerState(global_step=7, episode_step=7, ended=True, **NAMES)
    checkpoint = save(tmp_path / "models", encoder, tokenizer, 48, 12, step, state)
    return encoder, step, checkpoint


def test_inside_an_episode_the_objective_goes_on_and_in_the_next_one_it_begins_anew(saved):
    encoder, step, checkpoint = saved
    for round, goes_on in ((0, True), (1, False)):
        fresh = make_step(encoder, 4)
        state = resume(checkpoint, read_trainer_state(checkpoint), fresh, round=round, **NAMES)
        assert state.round == round
        found, expected = fresh.objective.state_dict(), step.objective.state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items()) == goes_on


@pytest.mark.parametrize(("round", "ended"), [(1, False), (2, True)])
def test_a_round_goes_on_only_from_the_end_of_the_one_before(saved, round, ended):
    encoder, _, checkpoint = saved
    state = read_trainer_state(checkpoint)
    state.ended = ended
    with pytest.raises(InputError, match=f"checkpoint-7: stands .* round 0, and round {round} goes on from the end"):
        resume(checkpoint, state, make_step(encoder, 4), round=round, **NAMES)


def test_another_number_of_groups_or_a_damaged_state_is_refused(saved):
    encoder, _, checkpoint = saved
    with pytest.raises(InputError, match=r"checkpoint-7: the state of dro-greedy does not fit.*--n_groups"):
        resume(checkpoint, read_trainer_state(checkpoint), make_step(encoder, 5), round=0, **NAMES)
    for damaged in ({}, {"weights": "x"}, {"weights": [10**400] * 4}, {"weights": [[]], "more": [1]}):
        state = read_trainer_state(checkpoint)
        state.dro = damaged if "more" in damaged or not damaged else state.dro | damaged
        with pytest.raises(InputError, match="does not fit"):
            resume(checkpoint, state, make_step(encoder, 4), round=0, **NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_another_optimizer_or_objective_inside_an_episode_is_refused(saved, name):
    encoder, _, checkpoint = saved
    with pytest.raises(InputError, match=f"was trained with {NAMES[name]}, and .* asks for erm; go on with"):
        resume(checkpoint, read_trainer_state(checkpoint), make_step(encoder, 4), round=0, **NAMES | {name: "erm"})


def test_an_option_more_is_another_objective_and_the_flags_are_named(saved):
    encoder, _, checkpoint = saved
    asked = NAMES | {"objective": "dro-greedy+normalized"}
    told = (
        r"trained with dro-greedy, and --dro_type \(with --absent and --normalize_weights\) asks for "
        r"dro-greedy\+normalized; go on with dro-greedy$"
    )
    with pytest.raises(InputError, match=told):
        resume(checkpoint, read_trainer_state(checkpoint), make_step(encoder, 4), round=0, **asked)
