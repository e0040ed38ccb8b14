"""Where training ends, which flags name an objective, and what attention drops."""

from types import SimpleNamespace

import pytest
import torch

from drivers.run_ann import last_step
from drivers.training_arguments import Arguments
from drivers.training_parts import make_step
from tests.tiny_models import tiny_bert
from utils.runtime.errors import InputError
from utils.samples import Triplets
from utils.stores.checkpoint import TrainerState


@pytest.mark.parametrize("triplets", [240, 245])
@pytest.mark.parametrize(("before", "now"), [(8, 8), (8, 16), (16, 8), (7, 3)])
def test_one_pass_ends_with_the_mined_file_also_where_the_steps_have_another_size_than_before(triplets, before, now):
    args = SimpleNamespace(follow=False, max_steps=0, batch_sizes=(now, 1))
    state, left = TrainerState(global_step=10, episode_step=10, position=before * 10), triplets - before * 10
    steps = 0
    while left > 0:
        left -= now
        steps += 1
    assert last_step(args, state, Triplets(SimpleNamespace(triplets=triplets))) == 10 + steps


def test_an_episode_ends_after_its_own_steps_and_a_run_after_all():
    state = TrainerState(global_step=110, episode_step=10)
    assert last_step(SimpleNamespace(follow=False, max_steps=100), state, None) == 200
    assert last_step(SimpleNamespace(follow=True, total_training_steps=500), state, None) == 500


def test_a_checkpoint_that_is_longer_than_what_is_asked_for_ends_where_it_is():
    state = TrainerState(global_step=110, episode_step=10, position=0)
    for shorter in (10, 9, 0):  # steps; 0: one pass, which has just ended
        assert last_step(SimpleNamespace(follow=False, max_steps=shorter), state, None) == 110
    assert last_step(SimpleNamespace(follow=True, total_training_steps=50), state, None) == 110


def arguments(**flags) -> Arguments:
    return Arguments(data_dir="data", ann_dir="mined", output_dir="models", **flags)


def test_an_objective_is_named_by_its_flags():
    assert arguments().objective == arguments(dro_type="none", group=0).objective == "erm"
    assert arguments(group=1).objective == "idro"
    assert arguments(group=1, dro_type="Balanced").objective == "balanced"
    assert arguments(group=1, dro_type="dro-greedy", normalize_weights=True).objective == "dro-greedy+normalized"
    assert arguments(group=1, absent="keep", normalize_weights=True).objective == "idro+keep+normalized"


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (
            {"group": 1, "dro_type": "vrex"},
            "--dro_type vrex: the objective 'vrex' is unknown; there are erm, balanced",
        ),
        ({"group": 1, "absent": "stay"}, "--absent is 'stay'; it can be drop or keep"),
        ({"absent": "keep"}, "--group 0 --absent keep: erm takes no weight from a cluster for its absence"),
        (
            {"group": 1, "dro_type": "dro-greedy", "absent": "keep"},
            "--dro_type dro-greedy --absent keep: dro-greedy tak",
        ),
        (
            {"group": 1, "dro_type": "balanced", "normalize_weights": True},
            "--normalize_weights: the coefficients of bal",
        ),
        ({"group": 1, "eps": 0.0, "n_groups": 0}, "^--eps is 0; iDRO needs a weight above 0"),
        ({"group": 1, "dro_type": "dro-greedy", "alpha": 2.0}, "^--alpha is 2; DRO-greedy needs a share"),
        ({"normalize_weights": True}, "--group 0 --normalize_weights: the coefficients of erm sum to 1"),
    ],
)
def test_options_that_an_objective_has_no_use_for_are_refused(flags, reason):
    with pytest.raises(InputError, match=reason):
        arguments(**flags)


def test_attention_drops_the_checkpoints_own_share_or_the_one_that_is_asked_for():
    for flags, expected in (({}, 0.2), ({"attention_dropout": 0.0}, 0.0), ({"attention_dropout": 0.3}, 0.3)):
        encoder = tiny_bert(dropout=0.2)
        make_step(arguments(**flags), encoder, torch.device("cpu"))
        layers = encoder.model.encoder.layer
        assert [layer.attention.self.dropout.p for layer in layers] == [expected] * 2
        assert [layer.attention.output.dropout.p for layer in layers] == [0.2] * 2, "others stay"
    for share in (-0.1, 1.0):
        with pytest.raises(InputError, match=rf"--attention_dropout is {share}; a share from 0 to below 1 is needed"):
            arguments(attention_dropout=share)
