"""A polite end: a signal asks a script to save and leave.

SIGTERM comes from a cluster that wants its machine back, SIGINT from Ctrl-C, SIGHUP from a terminal that is closed
(under nohup it is none).

Every entry script ends so, by `utils.runtime.errors.run`: the signal raises `Stopped` wherever it finds the script,
files that are not whole vanish, encoding makes a mark, and the process ends with `EXIT_CODE`. While it trains
(drivers/run_ann.py), the signal is only noted; the step in hand ends, all processes agree in its reduction
(model/training_step.py), and a checkpoint is saved first.
"""

import os
import signal
import time

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not done, and the same command goes on
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Within this time a second signal is the first one, which a launcher or a shell passes on to processes that have it
# already; later it ends the process at once.
SAME_SECONDS = 3


class Stopped(BaseException):
    """The script was asked to stop; its text is the signal's name."""


class StopRequest:
    """Whether this process was asked to stop, from when it is made; `name` is the signal's.

    It takes the place of an earlier request. One that `raises` ends what the process is at by `Stopped`.
    """

    def __init__(self, raises: bool = False) -> None:
        self.name, self._raises, self._since = "", raises, 0.0
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return bool(self.name)

    def _note(self, number: int, _frame: object) -> None:
        if not self.name:
            self.name, self._since = signal.Signals(number).name, time.monotonic()
            if self._raises:
                raise Stopped(self.name)
        elif time.monotonic() - self._since > SAME_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
