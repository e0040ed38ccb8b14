import pytest
import torch

from evaluate.benchmarks.contenders import Processes, make_encoder, make_step
from model.dro import OBJECTIVES
from utils.runtime.errors import InputError


def count(first: int, wait, give) -> None:
    for number in range(first, first + 2):
        wait()
        give(number)
    wait()
    raise ValueError("this is how it fails")


def test_processes_work_when_it_is_their_turn_and_one_that_fails_ends_the_others(capfd):
    with Processes({"one": (count, 1), "other": (count, 5)}) as processes:
        assert processes.take_turns() == {"one": 1, "other": 5}
        assert list(processes.take_turns(first=3).items()) == [("other", 6), ("one", 2)]
        with pytest.raises(InputError, match="the contender other has failed"):
            processes.take_turns(first=1)
    assert "this is how it fails" in capfd.readouterr().err


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_is_a_contender_by_its_name(name):
    step = make_step(name, make_encoder("tiny", vocabulary=50), 4, False, torch.device("cpu"))
    assert step.objective.name == name
    assert (step.watch is not None) == name.startswith("idro")
