"""What one stage did to one validation curve: peak, rise, recovery, end.

Pure arithmetic. A curve is a list of (tokens since the stage began, loss in nats per token), one point an evaluation, so
every position below is only as fine as the evaluation interval.

Source of the terms: Gupta et al. 2023, sections 3 and 4, https://arxiv.org/abs/2308.04014.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ['Curve', 'Outcome', 'outcome']

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
