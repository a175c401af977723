"""Forgetting, recovery and adaptation: what a stage did to the loss on old and on new data.

Pure arithmetic over validation curves. A curve is a list of (tokens since the stage began, loss in nats per token),
one point an evaluation, so every position below is only as fine as the evaluation interval.

Source of the terms: Gupta et al. 2023, sections 3 and 4, https://arxiv.org/abs/2308.04014.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rewarm.report.run_folder import Evaluation, Run, Stage

__all__ = [
    'Arm',
    'Outcome',
    'SetOutcome',
    'by_set',
    'first_lead',
    'last_stage_arm',
    'outcome',
    'pareto_front',
    'set_outcomes',
]

Curve = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Outcome:
    """What one stage did to one validation loss. Losses are in nats per token, positions in tokens of the stage."""

    before: float | None
    """Loss before the stage's first batch; ``None`` if it was not evaluated there."""
    peak: float
    """The highest loss from the start of the stage on."""
    peak_tokens: int
    peak_share: float
    """``peak_tokens`` over the stage's budget."""
    end: float
    """Loss at the last evaluation of the stage."""
    end_tokens: int
    recovery_tokens: int | None
    """Position of the evaluation from which the loss stays at or below ``before``; 0 if it was never above it;
    ``None`` if it ended above it or ``before`` is not known."""
    untrained: bool
    """The stage began with untrained weights: there was nothing to forget."""

    @property
    def rise(self) -> float | None:
        """Peak minus before."""
        return None if self.before is None else self.peak - self.before

    @property
    def forgetting(self) -> float | None:
        """End minus before: positive if the data of the set was forgotten. ``None`` for untrained weights."""
        return None if self.before is None or self.untrained else self.end - self.before

    @property
    def adaptation(self) -> float | None:
        """Before minus end: positive if the data of the set was learned."""
        return None if self.before is None else self.before - self.end

    @property
    def recovered_share(self) -> float | None:
        """Share of the rise that was recovered by the end, in 0..1 or above; ``None`` where nothing rose."""
        return (self.peak - self.end) / self.rise if self.rise else None


@dataclass(frozen=True)
class SetOutcome:
    """The outcome of one stage for one evaluation set, with the evaluations at its start and end."""

    stage: Stage
    set: str
    role: str
    outcome: Outcome
    first: Evaluation
    last: Evaluation


@dataclass(frozen=True)
class Arm:
    """A run seen through its last stage, as one arm of a comparison.

    Curves are means over the sets of a role, at the positions where all of them were evaluated.
    """

    run: Run
    stage: Stage
    old_sets: tuple[str, ...]
    new_sets: tuple[str, ...]
    old_curve: tuple[tuple[int, float], ...]
    new_curve: tuple[tuple[int, float], ...]
    old: Outcome | None
    """On upstream sets; ``None`` if there are none."""
    new: Outcome | None
    """On downstream sets; ``None`` if there are none."""

    @property
    def name(self) -> str:
        """The run's name."""
        return self.run.name


def outcome(curve: Curve, *, stage_tokens: int, untrained: bool = False) -> Outcome:
    """Measures one validation curve of one stage.

    Args:
        curve (Curve): (tokens since the stage began, loss) in order; a point at 0 is the loss before the stage.
        stage_tokens (int): Budget of the stage in tokens, for the peak's position as a share.
        untrained (bool): Whether the stage began with untrained weights.

    Returns:
        Outcome: Losses and positions. Points that are not finite never count as the peak.

    Raises:
        ValueError: If the curve is empty.
    """
    if not curve:
        raise ValueError('an outcome needs at least one evaluation')
    before = curve[0][1] if curve[0][0] == 0 else None
    finite = [point for point in curve if math.isfinite(point[1])] or [(curve[0][0], math.nan)]
    peak_tokens, peak = max(finite, key=lambda point: point[1])
    end_tokens, end = curve[-1]
    return Outcome(
        before=before,
        peak=peak,
        peak_tokens=peak_tokens,
        peak_share=peak_tokens / stage_tokens if stage_tokens else 0.0,
        end=end,
        end_tokens=end_tokens,
        recovery_tokens=_recovery(curve, before),
        untrained=untrained,
    )


def _recovery(curve: Curve, before: float | None) -> int | None:
    if before is None:
        return None
    position = 0
    for index, (_, loss) in enumerate(curve):
        if not loss <= before:  # NaN counts as above
            if index + 1 == len(curve):
                return None
            position = curve[index + 1][0]
    return position


def by_set(evaluations: Iterable[Evaluation]) -> dict[tuple[str, str], list[Evaluation]]:
    """Evaluations by role and name of their set, old sets first."""
    found: dict[tuple[str, str], list[Evaluation]] = {}
    for line in evaluations:
        found.setdefault((line.role, line.set), []).append(line)
    return dict(sorted(found.items(), key=lambda item: (item[0][0] != 'upstream', *item[0])))


def set_outcomes(run: Run) -> list[SetOutcome]:
    """The outcome of every stage and evaluation set of a run, old sets first within a stage."""
    results = []
    for stage in run.stages:
        evaluations = run.stage_evaluations(stage.name)
        for (role, name), mine in by_set(evaluations).items():
            measured = outcome(
                [(line.stage_tokens, line.loss) for line in mine],
                stage_tokens=stage.planned_tokens,
                untrained=_untrained(run, stage),
            )
            results.append(SetOutcome(stage, name, role, measured, first=mine[0], last=mine[-1]))
    return results


def last_stage_arm(run: Run) -> Arm | None:
    """The run's last evaluated stage as an arm of a comparison; ``None`` if nothing was evaluated yet."""
    stages = [stage for stage in run.stages if run.stage_evaluations(stage.name)]
    if not stages:
        return None
    stage = stages[-1]
    old_sets, old_curve = _role_curve(run, stage, 'upstream')
    new_sets, new_curve = _role_curve(run, stage, 'downstream')
    untrained = _untrained(run, stage)

    def measure(curve: Curve) -> Outcome | None:
        return outcome(curve, stage_tokens=stage.planned_tokens, untrained=untrained) if curve else None

    return Arm(run, stage, old_sets, new_sets, old_curve, new_curve, measure(old_curve), measure(new_curve))


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


def _untrained(run: Run, stage: Stage) -> bool:
    return stage.index == 0 and run.from_scratch


def _role_curve(run: Run, stage: Stage, role: str) -> tuple[tuple[str, ...], tuple[tuple[int, float], ...]]:
    by_position: dict[int, dict[str, float]] = {}
    for line in run.stage_evaluations(stage.name):
        if line.role == role:
            by_position.setdefault(line.stage_tokens, {})[line.set] = line.loss
    sets = tuple(sorted({name for losses in by_position.values() for name in losses}))
    curve = tuple(
        (tokens, sum(losses.values()) / len(sets))
        for tokens, losses in sorted(by_position.items())
        if len(losses) == len(sets)
    )
    return sets, curve
