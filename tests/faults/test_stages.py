"""Every stage, killed at random moments and on disks that are too small: the same command ends with the same files.

The same to the bit as those of a run that nobody disturbed; so does a whole run.
"""

import os
import re
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.faults.disks import small_disk
from tests.faults.kills import VICTIMS, WHOLE_RUN, Victim, clear, contents, kill_and_go_on, undisturbed
from tests.workplace import Workplace

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(14_400)]

# commands/run_fault_tests.sh asks for more.
KILLS, DISKS = (int(os.environ.get(name, "1")) for name in ("ANCE_KILLS", "ANCE_DISKS"))
PAGE = 4096


class Stage(NamedTuple):
    """A script, where it works, and what it makes when nobody disturbs it: in how many seconds, in how many bytes."""

    name: str
    place: Workplace
    victim: Victim
    expected: dict[str, str]
    seconds: float
    room: int


def begin(mined: Workplace, folder: Path, name: str, victim: Victim) -> Stage:
    place = Workplace(shutil.copytree(mined.folder, folder / "work"))
    return Stage(name, place, victim, *undisturbed(place, victim), room(place.folder / victim.makes[0]))


def room(folder: Path) -> int:
    """The bytes that a folder's files take, in pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module", params=VICTIMS)
def stage(mined, tmp_path_factory, request) -> Stage:
    return begin(mined, tmp_path_factory.mktemp(request.param), request.param, VICTIMS[request.param])


def kill(stage: Stage, capsys) -> None:
    killed, finished = kill_and_go_on(stage.place, stage.victim, stage.expected, stage.seconds, KILLS, seed=KILLS)
    with capsys.disabled():
        print(f"\n{stage.name}: {killed} kills survived, {finished} runs finished as if there had been none")
    assert killed == KILLS
    assert finished


def test_a_killed_script_ends_with_the_files_of_an_undisturbed_one(stage, capsys):
    kill(stage, capsys)


@pytest.mark.skipif(KILLS == 1, reason="takes minutes; commands/run_fault_tests.sh runs it")
def test_a_run_that_is_killed_or_asked_to_stop_ends_with_the_files_of_an_undisturbed_one(mined, tmp_path, capsys):
    kill(begin(mined, tmp_path, "run_ance.sh", WHOLE_RUN), capsys)


def test_a_full_disk_is_told_and_with_more_room_a_script_ends_as_if_there_had_always_been_enough(stage, capsys):
    _, place, victim, expected, _, needed = stage
    folder = place.folder / victim.makes[0]
    for share in [(1 + i) / (1 + DISKS) for i in range(DISKS)]:
        clear(place, victim)
        with small_disk(folder, int(share * needed)) as disk:
            process = victim.start(place)
            _, stderr = process.communicate()
            assert process.returncode != 0, f"{share:.2f} of {needed} bytes were enough"
            told = rf"error( \(rank \d\))?: {folder}/.*: cannot be written: .*the disk (is )?full"
            assert re.search(told, stderr), stderr
            disk.remount(f"size={4 * needed}")
            process = victim.start(place)
            output = process.communicate()
            assert process.returncode == 0, output
            assert contents(place, victim) == expected
    with capsys.disabled():
        print(f"\n{stage.name}: {DISKS} full disks survived")
