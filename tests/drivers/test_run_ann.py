"""Where training ends."""

from types import SimpleNamespace

import pytest

from drivers.run_ann import last_step
from utils.stores.checkpoint import TrainerState


@pytest.mark.parametrize("triplets", [240, 245])
@pytest.mark.parametrize(("before", "now"), [(8, 8), (8, 16), (16, 8), (7, 3)])
def test_one_pass_ends_with_the_mined_file_also_where_the_steps_have_another_size_than_before(triplets, before, now):
    args, episode = SimpleNamespace(follow=False, max_steps=0), SimpleNamespace(triplets=triplets)
    state, left = TrainerState(global_step=10, episode_step=10, position=before * 10), triplets - before * 10
    steps = 0
    while left > 0:
        left -= now
        steps += 1
    assert last_step(args, state, episode, now) == 10 + steps


def test_an_episode_ends_after_its_own_steps_and_a_run_after_all():
    state = TrainerState(global_step=110, episode_step=10)
    assert last_step(SimpleNamespace(follow=False, max_steps=100), state, None, 8) == 200
    assert last_step(SimpleNamespace(follow=True, total_training_steps=500), state, None, 8) == 500


def test_a_checkpoint_that_is_longer_than_what_is_asked_for_ends_where_it_is():
    state = TrainerState(global_step=110, episode_step=10, position=0)
    for shorter in (10, 9, 0):  # steps; 0: one pass, which has just ended
        assert last_step(SimpleNamespace(follow=False, max_steps=shorter), state, None, 8) == 110
    assert last_step(SimpleNamespace(follow=True, total_training_steps=50), state, None, 8) == 110
