"""Being told to go: signals and notices become a flag that the ranks agree on at the end of a batch."""

import os
import signal
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Protocol

__all__ = ['EXIT_PREEMPTED', 'StopRequest']

EXIT_PREEMPTED = 75
"""Exit code for 'start me again': EX_TEMPFAIL of sysexits.h."""

SAME_REQUEST_SECONDS = 5
"""A signal to a whole process group reaches a rank twice, from the sender and passed on by the launcher."""


class Notice(Protocol):
    """A cloud's notice, as far as this module reads it."""

    @property
    def deadline(self) -> float | None:
        """When the machine goes, on the clock of ``time.monotonic``; None if it only may go."""
        ...


class StopRequest:
    """Remembers the first signal or notice; a later signal ends the process at once.

    Args:
        signals (Sequence[str]): Names such as ``'SIGTERM'``; SIGINT is always among them.
        grace_period_seconds (float): From a signal to the kill; before a notice's deadline the run stops this early.
    """

    def __init__(self, signals: Sequence[str], grace_period_seconds: float = 25) -> None:
        self.signals = tuple(dict.fromkeys([*signals, 'SIGINT']))
        self.grace_period_seconds = grace_period_seconds
        self.received: str | None = None
        self.agreed = False
        self._received_at = 0.0
        self._deadline: float | None = None
        self._notice = ''
        self._save_wanted = False

    def install(self) -> None:
        """Takes over the signals. After ``import composer``, which installs handlers that exit without saving."""
        for name in self.signals:
            signal.signal(signal.Signals[name], self._on_signal)

    def on_notice(self, notice: Notice, words: str) -> None:
        """Wants a checkpoint soon, and a stop when the deadline is near; called by the thread that polls.

        Args:
            notice (Notice): What the cloud said.
            words (str): The same for people.
        """
        self._save_wanted = True
        if notice.deadline is not None and (self._deadline is None or notice.deadline < self._deadline):
            self._deadline, self._notice = notice.deadline, words

    def take_save_wish(self) -> bool:
        """Whether a notice wants a checkpoint now; true once for each."""
        wanted, self._save_wanted = self._save_wanted, False
        return wanted

    @property
    def wanted(self) -> bool:
        """Whether this process was told to go, or its machine's deadline is near."""
        near = self._deadline is not None and time.monotonic() >= self._deadline - self.grace_period_seconds
        if near and self.received is None:
            self.received, self._received_at = self._notice, time.monotonic()
        return self.received is not None

    @property
    def seconds_left(self) -> float:
        """Of the grace period; the whole of it before anything was received."""
        if self.received is None:
            return self.grace_period_seconds
        return max(0.0, self._received_at + self.grace_period_seconds - time.monotonic())

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
