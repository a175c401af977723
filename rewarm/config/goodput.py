"""How often to save: the share of the time that trains when machines vanish at random, and the interval that makes it largest."""

import math
from dataclasses import dataclass, fields

from rewarm.config.duration import Duration

COPY_BYTES_PER_SECOND = 10e9
"""Assumed speed at which a GPU's tensors are copied into pinned memory while training stands still. Measure yours."""

SAVE_BYTES_PER_SECOND = 250e6
"""Assumed speed at which a checkpoint is written, hashed and flushed: a cloud's network disk. Measure yours."""

RESTART_SECONDS = 180.0
"""Assumed time from a kill to the first new batch: a machine, an import, a checkpoint loaded. Measure yours."""

TIDY = '1sec 2sec 3sec 5sec 7sec 10sec 15sec 20sec 30sec 45sec 1min 90sec 2min 3min 4min 5min 7min 10min 15min 20min 30min 45min 1h 2h 3h 6h'
"""Intervals that are recommended. Around the best one goodput is so flat that the nearest of these loses next to nothing."""

DAY = 86400


@dataclass(frozen=True)
class Conditions:
    """What is known of the machines of a run, from the command line or measured; ``None`` where nothing is.

    Args:
        tokens_per_second (float | None): Speed of one GPU.
        preemptions_per_day (float | None): Kills of the whole run in 24 hours, with notice and without.
        notice_share (float | None): Share of them that come with a notice long enough to save, in [0, 1].
        save_stall_seconds (float | None): Time that training stands still for a save.
        save_seconds (float | None): Time of a whole save in the background, until it can be resumed from.
        restart_seconds (float | None): From a kill to the first batch after it.
    """

    tokens_per_second: float | None = None
    preemptions_per_day: float | None = None
    notice_share: float | None = None
    save_stall_seconds: float | None = None
    save_seconds: float | None = None
    restart_seconds: float | None = None

    def or_else(self, other: 'Conditions') -> 'Conditions':
        """These, and what ``other`` knows besides."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        return Conditions(**{name: getattr(other, name) if value is None else value for name, value in values.items()})


@dataclass(frozen=True)
class Losses:
    """What takes time from training, as it is reckoned with.

    Args:
        save_stall_seconds (float): Time that training stands still for a save.
        save_seconds (float): Time of a whole save in the background, the stall included.
        restart_seconds (float): From a kill to the first batch after it.
        preemptions_per_day (float | None): Kills of the whole run in 24 hours; None where nobody knows.
        notice_share (float): Share of them that come with a notice: training stops for one more save and loses no batch.
    """

    save_stall_seconds: float
    save_seconds: float
    restart_seconds: float = RESTART_SECONDS
    preemptions_per_day: float | None = None
    notice_share: float = 0.0

    @property
    def seconds_between_kills(self) -> float:
        """Mean time between kills without notice, which are those that lose batches."""
        kills = (self.preemptions_per_day or 0.0) * (1 - self.notice_share)
        return DAY / kills if kills else math.inf


def find_losses(conditions: Conditions, checkpoint_bytes: int) -> Losses:
    """Fills what is not known with the assumptions above.

    Args:
        conditions (Conditions): What is known.
        checkpoint_bytes (int): Size of a checkpoint.

    Returns:
        Losses: What is reckoned with.
    """
    stall, whole, restart = conditions.save_stall_seconds, conditions.save_seconds, conditions.restart_seconds
    stall = checkpoint_bytes / COPY_BYTES_PER_SECOND if stall is None else stall
    return Losses(
        save_stall_seconds=stall,
        save_seconds=max(stall, checkpoint_bytes / SAVE_BYTES_PER_SECOND if whole is None else whole),
        restart_seconds=RESTART_SECONDS if restart is None else restart,
        preemptions_per_day=conditions.preemptions_per_day,
        notice_share=conditions.notice_share or 0.0,
    )


def expected_goodput(interval_seconds: float, losses: Losses) -> float:
    r"""The share of wall-clock time whose batches are kept, in the long run.

    Kills come at random (exponentially, at rate :math:`\lambda`), also during a restart, which then begins again. With
    interval :math:`\tau`, stall :math:`\delta`, whole save :math:`S`, restart :math:`R` and share of notices :math:`n`, a
    kill without notice keeps the saves that were whole by then, one with notice everything for one more save:

    .. math:: \frac{(1 - n)\,\tau\,e^{-\lambda (S - \delta)} / (e^{\lambda (\tau + \delta)} - 1)
              + n\,(1 - e^{-\lambda \tau}) / (\lambda (1 - e^{-\lambda (\tau + \delta)}))}{e^{\lambda R} / \lambda + n S}

    With :math:`n = 0` and :math:`S = \delta` this is the complete cost function of Daly 2006. Evaluations are left out.

    Args:
        interval_seconds (float): Time that is trained between two saves; saves never overlap, so it counts as at least one's.
        losses (Losses): What takes time.

    Returns:
        float: In [0, 1].
    """
    stall, whole, notice = losses.save_stall_seconds, losses.save_seconds, losses.notice_share
    interval = max(interval_seconds, whole - stall)
    period, rate = interval + stall, (losses.preemptions_per_day or 0.0) / DAY
    if rate == 0:
        return interval / period
    survives = -math.expm1(-rate * period)  # 1 - exp(-x); written with falling exponentials, which cannot overflow
    killed = interval * math.exp(-rate * (whole - stall + period)) / survives
    told = -math.expm1(-rate * interval) / rate / survives
    up = math.exp(-rate * losses.restart_seconds) * rate
    return up * ((1 - notice) * killed + notice * told) / (1 + up * notice * whole)


def young_seconds(stall_seconds: float, seconds_between_kills: float) -> float:
    """The best interval to a first order, the square root of twice the stall times the mean time between kills.

    Source: Young 1974, "A first order approximation to the optimum checkpoint interval", doi 10.1145/361147.361115.
    """
    return math.sqrt(2 * stall_seconds * seconds_between_kills)


def daly_seconds(stall_seconds: float, seconds_between_kills: float) -> float:
    r"""The best interval to a higher order, :math:`\sqrt{2 \delta M} (1 + \sqrt{\delta / 2M} / 3 + \delta / 18M) - \delta`.

    It holds for a stall below twice the mean time between kills :math:`M`; beyond, the best interval is :math:`M`.

    Source: Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps",
    doi 10.1016/j.future.2004.11.016.
    """
    if math.isinf(seconds_between_kills):
        return math.inf
    if stall_seconds >= 2 * seconds_between_kills:
        return seconds_between_kills
    ratio = stall_seconds / (2 * seconds_between_kills)
    first = young_seconds(stall_seconds, seconds_between_kills)
    return first * (1 + math.sqrt(ratio) / 3 + ratio / 9) - stall_seconds


def recommend_interval(losses: Losses, seconds_per_batch: float = 0.0) -> Duration:
    """The tidy duration nearest to Daly's interval that is not below the time of a save or of a batch.

    Args:
        losses (Losses): What takes time.
        seconds_per_batch (float): Saves come between batches.

    Returns:
        Duration: For ``checkpoints.interval``.
    """
    least = max(losses.save_seconds, seconds_per_batch)
    wanted = max(least, daly_seconds(losses.save_stall_seconds, losses.seconds_between_kills), 1.0)
    tidy = [Duration.parse(text) for text in TIDY.split()]
    possible = [each for each in tidy if each.seconds >= least] or tidy[-1:]
    return min(possible, key=lambda each: abs(math.log(each.seconds / wanted)))
