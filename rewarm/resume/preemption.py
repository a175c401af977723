"""Being told to go: signals and notices become a flag that the ranks agree on at the end of a batch."""

import os
import signal
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from rewarm import signals, terminal
from rewarm.resume.clouds import Notice

__all__ = ['EXIT_PREEMPTED', 'StopRequest']

EXIT_PREEMPTED = 75
"""Exit code for 'start me again': EX_TEMPFAIL of sysexits.h."""

LAST_WORDS_SECONDS = 0.5
"""For the words of a second signal to reach the terminal."""

SAME_REQUEST_SECONDS = 5
"""A signal to a whole process group reaches a rank twice, from the sender and passed on by the launcher."""

FAREWELL_SECONDS, LEAST_SECONDS = 30.0, 2.0
"""For what is worth a wait at the end of a process: at most, and at least even in a grace period that is nearly over."""


class StopRequest:
    """Remembers signals and notices. The second signal ends the process at once; a signal after a notice is the first.

    Args:
        signals (Sequence[str]): Names such as ``'SIGTERM'``; SIGINT and SIGHUP, which come from a terminal, are
            always among them; a SIGHUP that `nohup` has switched off stays off.
        grace_period_seconds (float): From a signal to the kill; before a notice's deadline the run stops this early.

    Attributes:
        received (str | None): The first signal of this process.
        agreed (str | None): Why all ranks stop, once they have agreed on it.
    """

    def __init__(self, signals: Sequence[str], grace_period_seconds: float = 25) -> None:
        self.signals = tuple(dict.fromkeys([*signals, 'SIGINT', 'SIGHUP']))
        self.grace_period_seconds = grace_period_seconds
        self.received: str | None = None
        self.agreed: str | None = None
        self._received_at = 0.0
        self._nearest: Notice | None = None
        self._news: list[Notice] = []

    def install(self) -> None:
        """Takes over the signals. After ``import composer``, which installs handlers that exit without saving."""
        signals.listen(self.signals, self._on_signal)

    def on_notice(self, notice: Notice) -> None:
        """Wants a checkpoint soon, and a stop when the deadline is near; called by the thread that polls."""
        dated = [each for each in (self._nearest, notice) if each is not None and each.deadline is not None]
        self._nearest = min(dated, key=lambda each: each.deadline or 0, default=None)
        self._news.append(notice)

    @property
    def has_news(self) -> bool:
        """Whether a notice has not been told of yet."""
        return bool(self._news)

    def take_news(self) -> list[dict[str, Any]]:
        """The notices since the last call, as ``events.jsonl`` records them."""
        news, self._news = self._news, []
        return [{'cloud': n.cloud, 'what': n.what, 'deadline_seconds': n.seconds_left} for n in news]

    @property
    def reason(self) -> str | None:
        """Why this process is to go now: a signal it received, or a notice whose deadline is near."""
        if self.received is None and self._nearest is not None and self.seconds_left <= self.grace_period_seconds:
            return self._nearest.what
        return self.received

    @property
    def seconds_left(self) -> float:
        """Until the machine or the process is taken away, as far as is known; the whole grace period before that."""
        if self.received is not None:
            return max(0.0, self._received_at + self.grace_period_seconds - time.monotonic())
        left = None if self._nearest is None else self._nearest.seconds_left
        return self.grace_period_seconds if left is None else left

    def seconds_to_leave(self) -> float:
        """For what is worth a wait and no more: half a minute, or what is left of the grace period with a little to spare."""
        asked = self.received is not None or self.agreed is not None
        return (
            max(LEAST_SECONDS, min(FAREWELL_SECONDS, self.seconds_left - LEAST_SECONDS)) if asked else FAREWELL_SECONDS
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        now = time.monotonic()
        if self.received is not None and now - self._received_at < SAME_REQUEST_SECONDS:
            return
        if self.received is not None:
            # Also right in the middle of a save: a checkpoint is visible only when whole.
            terminal.say(f'{name} again: leaving at once, without saving.')
            terminal.drain(LAST_WORDS_SECONDS)
            os._exit(EXIT_PREEMPTED)
        self.received, self._received_at = name, now
        terminal.say(f'{name}: saving after this batch, then exit {EXIT_PREEMPTED}.')
