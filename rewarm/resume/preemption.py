"""Being told to go: signals become a flag that the ranks agree on at the end of a batch."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType

__all__ = ['EXIT_PREEMPTED', 'StopRequest']

EXIT_PREEMPTED = 75
"""Exit code for 'start me again': EX_TEMPFAIL of sysexits.h."""

SAME_REQUEST_SECONDS = 5
"""A signal to a whole process group reaches a rank twice, from the sender and passed on by the launcher."""


class StopRequest:
    """Remembers the first signal; a later one ends the process at once.

    Args:
        signals (Sequence[str]): Names such as ``'SIGTERM'``; SIGINT is always among them.
    """

    def __init__(self, signals: Sequence[str]) -> None:
        self.signals = tuple(dict.fromkeys([*signals, 'SIGINT']))
        self.received: str | None = None
        self.agreed = False
        self._received_at = 0.0

    def install(self) -> None:
        """Takes over the signals. After ``import composer``, which installs handlers that exit without saving."""
        for name in self.signals:
            signal.signal(signal.Signals[name], self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self.received is not None and now - self._received_at < SAME_REQUEST_SECONDS:
            return
        if self.received is not None:
            # Also right in the middle of a save: a checkpoint is visible only when whole.
            os.write(sys.stderr.fileno(), f'\n{name} again: leaving at once, without saving.\n'.encode())
            os._exit(EXIT_PREEMPTED)
        self.received, self._received_at = name, now
        os.write(sys.stderr.fileno(), f'\n{name}: saving after this batch, then exit {EXIT_PREEMPTED}.\n'.encode())
