"""What a run folder tells about its machines, for the plan of the next run on them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from pathlib import Path

from rewarm.config.goodput import DAY, Conditions
from rewarm.report.interruptions import interruptions
from rewarm.report.run_folder import Run, read_run
from rewarm.report.starts import stall_seconds
from rewarm.report.timeline import find_timeline

__all__ = ['measure']

SLOWEST = 1e-3
"""Tokens per second; with less no hours can be reckoned, and nothing was measured."""


def measure(folder: str | Path) -> Conditions:
    """Takes speed, preemptions and saves from a run's own records, finished or not.

    Medians, since the first batch and the first save of a process are slower. The rate of preemptions is their count over
    the time that a process was there to be killed. Of ``n`` preemptions of which ``k`` came with notice, the share is
    ``(k + 1) / (n + 2)``: three notices in a row do not promise the fourth.

    Args:
        folder (str | Path): A run folder.

    Returns:
        Conditions: ``None`` for what did not happen in this run.

    Raises:
        UserError: If it is no run folder.
    """
    run = read_run(folder)
    saves = [event for event in run.events if event.event == 'save']
    stops = [stop for stop in interruptions(run.events) if stop.kind != 'rolled back']  # which no machine caused
    timeline = find_timeline(run)
    alive = timeline.wall_seconds - timeline.seconds['stopped'] - timeline.seconds['waiting']
    noticed = sum(stop.kind == 'preempted' for stop in stops)
    return Conditions(
        tokens_per_second=_speed_of_one(run),
        preemptions_per_day=len(stops) / alive * DAY if stops and alive > 0 else None,
        notice_share=(noticed + 1) / (len(stops) + 2) if stops else None,
        save_stall_seconds=_median(map(stall_seconds, saves)),
        save_seconds=_median(event.fields.get('seconds') for event in saves),
        restart_seconds=_median(
            (after.running - before.ended).total_seconds()
            for before, after in zip(timeline.lives, timeline.lives[1:], strict=False)
            if before.start.end not in ('finished', 'rolled back') and after.start.training is not None
        ),
    )


def _speed_of_one(run: Run) -> float | None:
    speed = _median(line.tokens_per_second for line in run.batches)
    return None if speed is None or speed < SLOWEST else speed / (run.environment.world_size or 1)


def _median(values: Iterable[object]) -> float | None:
    known = [float(value) for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return statistics.median(known) if known else None
