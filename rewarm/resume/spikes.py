"""Whether a batch's loss is a number and no spike, and what is then to be done: plain arithmetic on the losses before it.

    baseline  = max(median of the stage's last 128 losses, median of its last 16)
    threshold = baseline + max(sigma_factor * sigma, min_rise)
    sigma     = 1.4826 / sqrt 2 * median |loss - loss of the batch before| of the 128

Medians, because a spike must not move what it is measured by; differences, because a slope is no scatter. The short median
follows a rise that takes tens of batches, as re-warming makes them (0.05 to 0.5 nat): such a rise moves the baseline,
and only a jump from one batch to the next few stands out. Other data have another level, so a stage's first batches are not judged and nothing comes along from the
stage before.

All of it is a function of what ``metrics.jsonl`` and ``events.jsonl`` hold, and nothing of it is saved: a run that was
killed and resumed decides as one that never was, and every rank decides alike.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Literal

__all__ = ['WINDOW', 'Baseline', 'Spike', 'SpikePolicy', 'Verdict']

WINDOW = 128
"""Batches whose losses make a baseline; OLMo-core's ``rolling_interval_length``."""
RECENT = 16
"""Batches of the short median."""
FEWEST = 32
"""Batches of a stage before a loss is called a spike."""
SIGMA_OF_DIFFERENCE = 1.4826 / math.sqrt(2)
"""Of normal numbers: standard deviation over the median absolute difference of two."""

MOST_ROLLBACKS = 3
ROLLBACK_SPAN = 1000
"""More batches than that rolled back to within so many: no passing fault, and going back does not help."""
MOST_SKIPS = 16
"""More batches than that skipped in a row: nothing is learned any more."""

Action = Literal['train', 'log', 'skip', 'rollback', 'stop']


@dataclass(frozen=True)
class Spike:
    """A loss above its threshold, in nats.

    Args:
        loss (float): The batch's.
        baseline (float): What the batches before it lead to expect.
        threshold (float): The largest loss that is none.
    """

    loss: float
    baseline: float
    threshold: float


@dataclass(frozen=True)
class Verdict:
    """What is to be done with a batch before the optimizer's step.

    Args:
        action (Action): ``train`` and ``log`` let it be trained on.
        reason (str): Why not, in words; empty for ``train``.
        spike (Spike | None): If the loss is a number, and a spike.
    """

    action: Action
    reason: str = ''
    spike: Spike | None = None


class Baseline:
    """Robust running statistics of one stage's losses.

    Args:
        sigma_factor (float): Standard deviations of the stage's own losses that are no spike.
        min_rise (float): Nats above the baseline that are no spike, however little the losses scatter.
    """

    def __init__(self, *, sigma_factor: float, min_rise: float) -> None:
        self.sigma_factor = sigma_factor
        self.min_rise = min_rise
        self._losses: deque[float] = deque(maxlen=WINDOW)

    def add(self, loss: float | None) -> None:
        """Adds a batch's loss, a spike's too: if the level has changed for good, the baseline follows."""
        if loss is not None and math.isfinite(loss):
            self._losses.append(loss)

    def find_spike(self, loss: float) -> Spike | None:
        """Compares the next batch's loss with those before it."""
        if len(self._losses) < FEWEST:
            return None
        losses = list(self._losses)
        sigma = SIGMA_OF_DIFFERENCE * median(abs(after - before) for before, after in pairwise(losses))
        baseline = max(median(losses), median(losses[-RECENT:]))
        threshold = baseline + max(self.sigma_factor * sigma, self.min_rise)
        return Spike(loss, baseline, threshold) if loss > threshold else None


class SpikePolicy:
    """Decides about batches of one stage, by its settings and its past.

    Args:
        on_nan (str): ``rollback``, ``skip`` or ``stop``.
        on_spike (str): ``log``, ``skip`` or ``rollback``.
        sigma_factor (float): See :class:`Baseline`.
        min_rise (float): See :class:`Baseline`.
        history (Iterable): Loss (``None`` if it was no number) of each of the stage's last :data:`WINDOW` batches, and
            whether it was skipped; oldest first, as ``metrics.jsonl`` has them.
        rollbacks (Collection[int]): Batches that the run has been rolled back for, as ``events.jsonl`` has them.
    """

    def __init__(
        self,
        *,
        on_nan: str,
        on_spike: str,
        sigma_factor: float,
        min_rise: float,
        history: Iterable[tuple[float | None, bool]] = (),
        rollbacks: Collection[int] = (),
    ) -> None:
        self.on_nan = on_nan
        self.on_spike = on_spike
        self.baseline = Baseline(sigma_factor=sigma_factor, min_rise=min_rise)
        self.rollbacks = set(rollbacks)
        self._skips_in_a_row = 0
        for loss, skipped in history:
            self.note(loss, skipped=skipped)

    def note(self, loss: float | None, *, skipped: bool) -> None:
        """Takes a batch that is behind into account."""
        self.baseline.add(loss)
        self._skips_in_a_row = self._skips_in_a_row + 1 if skipped else 0

    def judge(self, batch: int, *, loss: float, grad_norm: float) -> Verdict:
        """Says what to do with a batch.

        A batch that the run was rolled back for and that offends again is skipped: the fault is in it, and not in
        the machine.

        Args:
            batch (int): Its number, as in ``metrics.jsonl``: the first of the run is 1.
            loss (float): Its mean over all ranks.
            grad_norm (float): The norm of its gradients before clipping, over all ranks.

        Returns:
            Verdict: The action and its reason.
        """
        spike = None
        if not math.isfinite(loss):
            key, wanted, reason = 'on_nan', self.on_nan, f'the loss is {loss}'
        elif not math.isfinite(grad_norm):
            key, wanted, reason = (
                'on_nan',
                self.on_nan,
                f'the loss is {loss:.4f} and the norm of the gradients {grad_norm}',
            )
        elif (spike := self.baseline.find_spike(loss)) is not None:
            key, wanted = 'on_spike', self.on_spike
            reason = f'the loss is {loss:.4f}, after {spike.baseline:.4f} (a spike is above {spike.threshold:.4f})'
        else:
            return Verdict('train')
        if wanted == 'rollback' and batch in self.rollbacks:
            wanted, reason = 'skip', f'{reason}, again after a rollback'
        if (obstacle := self._obstacle(wanted, batch)) is not None:
            return Verdict('stop', f'{reason}, {obstacle}', spike)
        if wanted == 'stop':
            return Verdict('stop', f'{reason}, and `spikes.{key}` is `stop`', spike)
        return Verdict(wanted, reason, spike)  # pyright: ignore[reportArgumentType]

    def _obstacle(self, wanted: str, batch: int) -> str | None:
        """Why a rollback or a skip would help no more, in words."""
        near = sorted(each for each in self.rollbacks if abs(batch - each) < ROLLBACK_SPAN)
        if wanted == 'rollback' and len(near) >= MOST_ROLLBACKS:
            return f'after rollbacks for the batches {", ".join(f"{each:,}" for each in near)} near it'
        if wanted == 'skip' and self._skips_in_a_row >= MOST_SKIPS:
            return f'and the {self._skips_in_a_row} batches before it were skipped'
        return None
