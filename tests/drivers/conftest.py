"""Drivers that run in the tests' own process."""

import signal
from collections.abc import Iterator

import pytest

from utils.runtime.stopping import SIGNALS


@pytest.fixture
def own_signals() -> Iterator[None]:
    """Gives the tests back their handlers of signals, which training replaces."""
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
