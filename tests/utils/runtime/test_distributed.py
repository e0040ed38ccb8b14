"""Waiting for another process: as long as it gives signs of life, and no longer."""

import time
from datetime import timedelta

import pytest
import torch.distributed as dist

from tests.processes import run_processes
from utils.runtime import distributed
from utils.runtime.errors import InputError

SECONDS = 2.0


def wait_for_the_other(beats: bool) -> str:
    """Rank 0 waits for rank 1, at work twice as long as rank 0 has patience, which gives signs of life or not."""
    distributed.COLLECTIVE_TIMEOUT = timedelta(seconds=SECONDS)
    began = time.monotonic()

    def is_over() -> bool:
        return time.monotonic() - began > 2 * SECONDS

    if distributed.rank() == 1:
        while not is_over():
            time.sleep(0.1)
            if beats:
                distributed.beat()
        return ""
    try:
        distributed.wait_until(is_over, seconds_between=0.1)
    except InputError as error:
        return str(error)
    return "waited"


@pytest.mark.parametrize(
    ("beats", "says"),
    [(True, "waited"), (False, "rank 1 of 2 is dead or hangs: it takes no part (others wait at most 2 s")],
)
def test_a_process_is_waited_for_while_it_gives_signs_of_life_and_named_when_it_gives_none(beats, says):
    assert run_processes(wait_for_the_other, 2, beats)[0].startswith(says)


class GoneStore:
    """A store whose host has ended."""

    def _fail(self, *_):
        raise dist.DistNetworkError("Connection reset by peer")

    set = get = check = _fail


def test_a_store_that_is_gone_is_told_as_that_and_no_process_blamed(monkeypatch):
    monkeypatch.setattr(distributed, "_store", GoneStore())
    monkeypatch.setattr(distributed, "_last_beat", 0.0)
    with pytest.raises(InputError, match=r"the process where all meet .* is dead"):
        distributed.wait_until(lambda: False)
    assert distributed._lost_peers(RuntimeError("Connection closed by peer")) == distributed.STORE_IS_GONE
    assert distributed._lost_peers(RuntimeError("something else")) is None
    assert distributed._lost_peers(BrokenPipeError(32, "Broken pipe")) is None  # of whoever read what was printed


def test_a_process_alone_waits_without_a_store():
    seen = iter([False, True])
    distributed.wait_until(lambda: next(seen), seconds_between=0)
    distributed.beat()
