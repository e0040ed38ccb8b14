"""Disks that turn read-only or have no room for curves. Full ones under every stage: test_stages.py."""

from pathlib import Path

import pytest

from tests.faults.disks import small_disk
from tests.faults.kills import VICTIMS
from utils.runtime.errors import InputError
from utils.stores.checkpoint import newest_checkpoint
from utils.stores.lock import hold_lock
from utils.stores.training_log import TrainingLog

pytestmark = pytest.mark.pipeline


def draw_curves(folder: Path) -> None:
    log = TrainingLog(folder)
    for step in range(100_000):
        log.scalars(step, {"loss": 1.0})


def test_a_disk_without_room_for_a_lock_is_told(tmp_path):
    with small_disk(tmp_path / "run", 8192) as disk:
        (disk.folder / "all").write_bytes(bytes(8192))
        with pytest.raises(InputError, match=r"\.lock: cannot be written: the disk is full; free some space"):
            hold_lock(disk.folder)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own thread
def test_curves_that_find_no_room_are_told_too(tmp_path):
    with (
        small_disk(tmp_path / "logs", 40_960),
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
