"""How long a start took, and how much memory training takes: told once, after the first batch of each start."""

import os
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch
from composer import Callback, Logger, State

from rewarm.report.records import Events

__all__ = ['FirstBatch', 'seconds_since_process_start']


class FirstBatch(Callback):
    """Records the event ``first_batch`` and says the same in words.

    Args:
        events (Events): ``events.jsonl``.
        say (Callable[[str], None]): Prints a line, on rank 0.
    """

    def __init__(self, events: Events, say: Callable[[str], None]) -> None:
        self.events = events
        self.say = say
        self._told = False

    def batch_end(self, state: State, logger: Logger) -> None:
        """Tells it, once."""
        if self._told:
            return
        self._told = True
        seconds, peak = seconds_since_process_start(), _peak_memory_bytes(state.device.name)
        self.events.record('first_batch', seconds=round(seconds, 3), peak_memory_bytes=peak)
        kind = 'GPU memory' if state.device.name == 'gpu' else 'memory'
        self.say(f'The first batch is done {seconds:,.1f} s after the start; peak {kind} {peak / 1e9:,.2f} GB.')


def seconds_since_process_start() -> float:
    """Age of this process, imports included, in seconds.

    Source: proc(5): field 22 of ``/proc/self/stat`` is the start in clock ticks after boot.
    """
    after_name = Path('/proc/self/stat').read_text().rpartition(')')[2].split()
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(after_name[19]) / os.sysconf('SC_CLK_TCK')


def _peak_memory_bytes(device: str) -> int:
    if device == 'gpu':
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
