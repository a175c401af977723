"""Runs many inputs, each from a seed of its own, and tells which ended in anything but an answer.

``make fuzz COUNT=20000 SEED=7`` runs more of them than the suite does; a failure's message has the seed of its input.
"""

import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random

COUNT = int(os.environ.get('REWARM_FUZZ_COUNT', '0'))
"""Inputs of each kind; 0: as many as the suite has time for."""

SEED = int(os.environ.get('REWARM_FUZZ_SEED', '1'))

LONGEST_SECONDS = 20
"""One input takes milliseconds; what takes this long on a busy machine hangs."""


class Hang(BaseException):
    """An input took too long; no ``except Exception`` may swallow it."""


def run_inputs(attempt: Callable[[Random], str], count: int) -> None:
    """Calls ``attempt`` with one random source after the other.

    Args:
        attempt (Callable[[Random], str]): Makes an input and uses it; returns what it was. Raises if anything but a right
            value or an error in words comes of it.
        count (int): How often in the suite.

    Raises:
        AssertionError: With each kind of failure once, and the seed that shows it.
    """
    failures: dict[str, tuple[int, str]] = {}
    for number in range(COUNT or count):
        seed = f'{SEED}-{number}'
        try:
            with _within(LONGEST_SECONDS):
                attempt(Random(seed))
        except (Exception, Hang) as error:
            kind = f'{type(error).__name__} {_place(error)}'
            times = failures.get(kind, (0, ''))[0] + 1
            failures[kind] = (times, failures.get(kind, (0, f'{seed}: {str(error)[:300]}'))[1])
    words = [f'{times} x {kind}: first with {first}' for kind, (times, first) in failures.items()]
    assert not failures, '\n'.join(words)


def _place(error: BaseException) -> str:
    """Where in the project it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if '/rewarm/' in frame.filename] or frames
    return f'{Path(ours[-1].filename).name}:{ours[-1].lineno}'


@contextmanager
def _within(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise Hang(f'still busy after {seconds} s')

    before = signal.signal(signal.SIGALRM, stop)
    began = time.monotonic()
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert time.monotonic() - began < seconds
