"""A run as one arm of a comparison: its last stage, the loss on the old data it should keep and on the data it trains."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rewarm.config.old_and_new import Told
from rewarm.report.forgetting import Change, SetChanges, set_changes, set_curve
from rewarm.report.outcome import Curve, Outcome, outcome
from rewarm.report.run_folder import Run, Stage
from rewarm.report.stories import find_stories
from rewarm.report.traits import Traits, find_traits

__all__ = ['Arm', 'first_lead', 'last_stage_arm', 'pareto_front']


@dataclass(frozen=True)
class Arm:
    """A run seen through its last evaluated stage, as one arm of a comparison.

    The new side is the data that the stage trains for its own sake: new, or in a stage with nothing new (an anneal) what
    it goes on with. The old side is the other old data; where there is none (the same data again), all that is old. Curves
    are means over the sets of a side, at the positions where all of them were evaluated; a set that was added within the
    stage is left out.
    """

    run: Run
    stage: Stage
    old_sets: tuple[str, ...]
    new_sets: tuple[str, ...]
    old_curve: tuple[tuple[int, float], ...]
    new_curve: tuple[tuple[int, float], ...]
    old: Outcome | None
    """On the old side; ``None`` if there is none."""
    new: Outcome | None
    """On the new side; ``None`` if there is none."""
    changes: tuple[SetChanges, ...]
    """Each set's."""
    traits: Traits
    """What the stage is, by which runs are compared."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name

    @property
    def part(self) -> str | None:
        """What the run is to the paper's findings, from its files: one of :data:`rewarm.report.traits.PARTS`, or ``None``."""
        return self.traits.part

    def measure(self, names: Sequence[str]) -> tuple[Curve, Outcome | None]:
        """The mean curve of some of its sets, and its outcome; both empty where none was evaluated."""
        _, curve = _mean_curve(self.run, self.stage, names)
        return curve, _outcome(self.run, self.stage, curve)

    @property
    def since_trained(self) -> float | None:
        """Forgetting of the old side since its data was last trained: the mean over its sets; ``None`` if one is not known."""
        return self._forgetting([each.since_trained for each in self.changes if each.set in self.old_sets])

    @property
    def since_began(self) -> float | None:
        """Forgetting of the old side since the run began, over the sets that were old then; ``None`` if one is not known."""
        return self._forgetting(
            [
                each.since_began
                for each in self.changes
                if each.set in self.old_sets and each.old_in(self.run.stages[0].name)
            ]
        )

    def _forgetting(self, changes: Sequence[Change | None]) -> float | None:
        values = [each.forgetting for each in changes if each is not None and each.forgetting is not None]
        return sum(values) / len(values) if values and len(values) == len(changes) else None


def last_stage_arm(run: Run) -> Arm | None:
    """The run's last evaluated stage as an arm of a comparison; ``None`` if nothing was evaluated yet."""
    stage = next((stage for stage in reversed(run.stages) if run.stage_evaluations(stage.name)), None)
    if stage is None:
        return None
    stories, untrained = find_stories(run), stage.index == 0 and run.from_scratch
    told = {name: stories.told(name, stage.name) for name in stories.sets}
    old = _old_side(run, told, untrained=untrained)
    new = [name for name, each in told.items() if name not in old and (each.kind == 'new' or each.trained == 'main')]
    old_sets, old_curve = _mean_curve(run, stage, old)
    new_sets, new_curve = _mean_curve(run, stage, new)

    return Arm(
        run=run,
        stage=stage,
        old_sets=old_sets,
        new_sets=new_sets,
        old_curve=old_curve,
        new_curve=new_curve,
        old=_outcome(run, stage, old_curve),
        new=_outcome(run, stage, new_curve),
        changes=tuple(set_changes(run)),
        traits=find_traits(run, stage),
    )


def _outcome(run: Run, stage: Stage, curve: Curve) -> Outcome | None:
    untrained = stage.index == 0 and run.from_scratch
    return outcome(curve, stage_tokens=stage.planned_tokens, untrained=untrained) if curve else None


def _old_side(run: Run, told: dict[str, Told], *, untrained: bool) -> list[str]:
    if untrained:  # it has learned nothing, and other runs' old data is worth seeing beside theirs
        upstream = {line.set for line in run.evaluations if line.role == 'upstream'}
        return [name for name, each in told.items() if name in upstream and each.trained == 'no']
    old = [name for name, each in told.items() if each.kind == 'old']
    return [name for name in old if told[name].trained != 'main'] or old


def _mean_curve(run: Run, stage: Stage, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[tuple[int, float], ...]]:
    curves = {name: dict(curve) for name in names if (curve := set_curve(run, stage, name))}
    first = min((min(curve) for curve in curves.values()), default=0)
    sets = tuple(sorted(name for name, curve in curves.items() if first in curve))
    positions = sorted(set[int]().union(*(curves[name] for name in sets)))
    mean = tuple(
        (tokens, sum(curves[name][tokens] for name in sets) / len(sets))
        for tokens in positions
        if all(tokens in curves[name] for name in sets)
    )
    return sets, mean


def first_lead(leader: Curve, other: Curve) -> int | None:
    """The position from which ``leader`` stays below ``other`` to the end.

    Args:
        leader (Curve): The curve that may end below.
        other (Curve): The curve it is compared with, at the positions that both have.

    Returns:
        int | None: Tokens of the stage; ``None`` if it does not end below, or no position is common.
    """
    below = dict(other)
    position = None
    for tokens, loss in leader:
        if tokens not in below:
            continue
        if loss < below[tokens]:
            position = tokens if position is None else position
        else:
            position = None
    return position


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats on both losses, sorted by the first loss.

    Args:
        points (Sequence[tuple[float, float]]): (loss on old data, loss on new data); lower is better.
    """
    order = sorted(
        (index for index, point in enumerate(points) if all(map(math.isfinite, point))),
        key=lambda index: points[index],
    )
    front: list[int] = []
    for index in order:
        if not front or points[index][1] < points[front[-1]][1]:
            front.append(index)
    return front
