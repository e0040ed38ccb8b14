"""Disks that are full or read-only, by the real scripts: told with the cure, and with more room the same files."""

import os
import re
from pathlib import Path

import pytest

from tests.faults.disks import small_disk
from tests.faults.kills import VICTIMS, clear, contents, undisturbed
from utils.checkpoint import newest_checkpoint
from utils.errors import InputError
from utils.logs import TrainingLog

pytestmark = [pytest.mark.pipeline, pytest.mark.timeout(3_600)]

# Shares of the room that a script needs; commands/run_fault_tests.sh asks for more of them.
SHARES = [(1 + i) / (1 + n) for n in [int(os.environ.get("ANCE_DISKS", "1"))] for i in range(n)]
PAGE = 4096


def room(folder: Path) -> int:
    """The bytes that a folder's files take, in pages."""
    return sum(-(-path.stat().st_size // PAGE) * PAGE for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("name", VICTIMS)
def test_a_full_disk_is_told_and_with_more_room_the_script_ends_as_if_there_had_always_been_enough(
    place, name, capsys
):
    victim = VICTIMS[name]
    expected, _ = undisturbed(place, victim)
    folder = place.folder / victim.makes[0]
    needed = room(folder)
    for share in SHARES:
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
        print(f"\n{name}: {len(SHARES)} full disks survived")


def draw_curves(folder: Path) -> None:
    log = TrainingLog(folder)
    for step in range(100_000):
        log.scalars(step, {"loss": 1.0})


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_curves_that_find_no_room_are_told_too(tmp_path):
    with (
        small_disk(tmp_path / "logs", 10 * PAGE),
        pytest.raises(InputError, match="logs: cannot be written: the disk is full; free some space"),
    ):
        draw_curves(tmp_path / "logs")


def test_training_on_a_disk_that_turned_read_only_says_so_and_the_checkpoint_stays_good(place):
    victim = VICTIMS["training"]
    with small_disk(place.folder / "models", 2**26) as disk:
        place.train(0, "--max_steps", 2, "--save_steps", 2, launcher="none")
        disk.remount("ro")
        failed = victim.start(place)
        _, stderr = failed.communicate()
        assert failed.returncode != 0
        assert "cannot be written: the disk is read-only; choose another folder" in stderr
        assert newest_checkpoint(place.folder / "models").name == "checkpoint-2"
