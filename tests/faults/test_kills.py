"""SIGKILL at random moments of every stage: the same command ends with the same files, to the bit."""

import pytest

from tests.faults.kills import KILLS, VICTIMS, kill_and_go_on

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(7_200)]


@pytest.mark.parametrize("name", VICTIMS)
def test_a_killed_script_ends_with_the_files_of_an_undisturbed_one(place, name, capsys):
    killed, finished = kill_and_go_on(place, VICTIMS[name], KILLS, seed=KILLS)
    with capsys.disabled():
        print(f"\n{name}: {killed} kills survived, {finished} runs finished as if there had been none")
    assert killed == KILLS
    assert finished
