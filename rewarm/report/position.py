"""Where a number of batches is in a run's plan: in which stage, and how far in it."""

from __future__ import annotations

from dataclasses import dataclass

from rewarm.formats.run_files import PlanFile

__all__ = ['Position', 'find_position']


@dataclass(frozen=True)
class Position:
    """Where a number of batches of the run is."""

    stage: str | None
    """``None`` where no plan tells."""
    batch: int
    """Batches of the run behind it."""
    stage_batch: int | None
    """Batches of the stage behind it; ``None`` where no plan tells."""
    stage_batches: int | None
    """Batches of the whole stage."""


def find_position(plan: PlanFile, batch: int, stage: str | None = None) -> Position:
    """Finds the stage, and the batch inside it.

    Args:
        plan (PlanFile): The plan; of an old run it may be empty.
        batch (int): Batches of the run.
        stage (str | None): The stage, if it is known. Default: the one that trained this batch.
    """
    begun = 0
    for each in plan.stages:
        if each.batches is None:
            break
        if each.name == stage or (stage is None and batch <= begun + each.batches):
            return Position(each.name, batch, max(0, batch - begun), each.batches)
        begun += each.batches
    return Position(stage, batch, None, None)
