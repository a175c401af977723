"""What a run takes: disk, hours, money, and the share of the time that trains when machines vanish."""

from dataclasses import dataclass

from rewarm.config.duration import Duration

BYTES_PER_PARAMETER = 12
"""Of a checkpoint: fp32 weight and AdamW's two fp32 moments."""

RESTART_SECONDS = 180
"""Assumed time from a kill to the first new batch: a machine, an import, a checkpoint loaded. Measure yours."""


@dataclass(frozen=True)
class Cost:
    """Time and money.

    Args:
        hours (float | None): Wall-clock hours, lost ones included; None when the speed is not known, or nothing would be trained.
        cost (float | None): In the unit of the price; None when hours or price are not known.
        goodput (float | None): Share of the time that trains, in [0, 1]; None without a rate of preemptions or a save interval in time.
    """

    hours: float | None = None
    cost: float | None = None
    goodput: float | None = None


def estimate_cost(
    tokens: int,
    interval: Duration,
    tokens_per_batch: int,
    *,
    gpus: int | None = None,
    tokens_per_second: float | None = None,
    price: float | None = None,
    preemptions_per_day: float | None = None,
) -> Cost:
    r"""Estimates hours, money and goodput.

    A kill without notice loses half a save interval on average, and a restart takes ``RESTART_SECONDS``, so at :math:`R` kills a day

    .. math:: goodput = 1 - R / 86400 \cdot (interval / 2 + restart), \quad hours = tokens / (speed \cdot GPUs) / 3600 / goodput

    It leaves out the time of saving itself and kills during a restart, so it is only good while it is near 1.

    Args:
        tokens (int): Tokens to train.
        interval (Duration): Between two saves.
        tokens_per_batch (int): Tokens in a global batch.
        gpus (int | None): GPUs at once; 1 when not given.
        tokens_per_second (float | None): Speed of *one* GPU.
        price (float | None): Price of *one* GPU for an hour, in any unit of money.
        preemptions_per_day (float | None): Kills of the whole run in 24 hours.

    Returns:
        Cost: The estimates that what was given allows.
    """
    count = gpus or 1
    speed = tokens_per_second * count if tokens_per_second else None
    seconds = interval.seconds if interval.is_time else None
    if seconds is None and speed is not None:
        seconds = interval.batches(tokens_per_batch) * tokens_per_batch / speed
    goodput = None
    if preemptions_per_day is not None and seconds is not None:
        goodput = max(0.0, 1 - preemptions_per_day / 86400 * (seconds / 2 + RESTART_SECONDS))
    if speed is None or goodput == 0:
        return Cost(goodput=goodput)
    hours = tokens / speed / 3600 / (goodput or 1.0)
    return Cost(hours, None if price is None else hours * count * price, goodput)
