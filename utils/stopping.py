"""A polite end: SIGTERM (a cluster that wants its machine back) or SIGINT (Ctrl-C) asks training to save and leave.

The handler only takes note; the step in hand ends, all processes agree in its reduction (model/training_step.py), a
checkpoint is saved, and the process ends with `EXIT_CODE`. A second signal ends it at once.
"""

import signal

EXIT_CODE = 75  # EX_TEMPFAIL of sysexits.h: not done, and the same command goes on


class StopRequest:
    """Whether this process was asked to stop, from when it is made; `name` is the signal's."""

    def __init__(self) -> None:
        self.name = ""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def __bool__(self) -> bool:
        return bool(self.name)

    def _note(self, number: int, _frame: object) -> None:
        self.name = signal.Signals(number).name
        for again in (signal.SIGTERM, signal.SIGINT):
            signal.signal(again, signal.SIG_DFL)
