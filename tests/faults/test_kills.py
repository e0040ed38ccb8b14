"""Kills at random moments, of stages and of a whole run: the same command ends with the same files, to the bit."""

import pytest

from tests.faults.kills import KILLS, VICTIMS, WHOLE_RUN, Victim, kill_and_go_on
from tests.workplace import Workplace

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(7_200)]


@pytest.mark.parametrize("name", VICTIMS)
def test_a_killed_script_ends_with_the_files_of_an_undisturbed_one(place, name, capsys):
    go_on(place, VICTIMS[name], name, capsys)


@pytest.mark.skipif(KILLS == 1, reason="minutes; commands/run_fault_tests.sh runs it")
def test_a_run_that_is_killed_or_asked_to_stop_ends_with_the_files_of_an_undisturbed_one(place, capsys):
    go_on(place, WHOLE_RUN, "run_ance.sh", capsys)


def go_on(place: Workplace, victim: Victim, name: str, capsys) -> None:
    killed, finished = kill_and_go_on(place, victim, KILLS, seed=KILLS)
    with capsys.disabled():
        print(f"\n{name}: {killed} kills survived, {finished} runs finished as if there had been none")
    assert killed == KILLS
    assert finished
