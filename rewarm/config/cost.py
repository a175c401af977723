"""What a run takes: hours, money, and the share of the time that trains when machines vanish."""

import math
from dataclasses import dataclass

from rewarm.config.duration import Duration
from rewarm.config.goodput import Conditions, Losses, expected_goodput, recommend_interval

BYTES_PER_PARAMETER = 12
"""Of a checkpoint: fp32 weight and AdamW's two fp32 moments."""

HOPELESS = 0.01
"""Below this goodput, hours and money are not estimated: nothing would be trained."""


@dataclass(frozen=True)
class Cost:
    """Time and money.

    Args:
        hours (float | None): Wall-clock hours, those of evaluations and lost ones included; None when the speed is not known, or nothing would be trained.
        cost (float | None): In the unit of the price; None when hours or price are not known.
        goodput (float | None): Share of the time whose batches are kept, in [0, 1], at the configured save interval; None
            without a rate of preemptions or a save interval in time.
        recommended_interval (Duration | None): The save interval that keeps most; None without a rate of kills.
        recommended_goodput (float | None): What it would keep.
        needs (tuple[str, ...]): Options without which hours or cost are not estimated.
    """

    hours: float | None = None
    cost: float | None = None
    goodput: float | None = None
    recommended_interval: Duration | None = None
    recommended_goodput: float | None = None
    needs: tuple[str, ...] = ()


def seconds_per_batch(tokens_per_batch: int, gpus: int | None, conditions: Conditions) -> float | None:
    """The time of a global batch.

    Args:
        tokens_per_batch (int): Tokens in it.
        gpus (int | None): GPUs at once; 1 when not given.
        conditions (Conditions): The speed of one.

    Returns:
        float | None: Seconds; None when the speed is not known.
    """
    speed = conditions.tokens_per_second
    return tokens_per_batch / (speed * (gpus or 1)) if speed else None


def estimate_cost(
    batches: int,
    batch_seconds: float | None,
    interval_seconds: float | None,
    losses: Losses,
    *,
    gpus: int | None = None,
    price: float | None = None,
    evaluation_seconds: float = 0.0,
) -> Cost:
    """Estimates hours, money and goodput.

    Args:
        batches (int): Batches to train.
        batch_seconds (float | None): Of one; None when the speed is not known.
        interval_seconds (float | None): Between two saves; None when it is in batches and the speed is not known.
        losses (Losses): What takes time from training; hours without a rate of preemptions are those of the batches alone.
        gpus (int | None): GPUs at once; 1 when not given.
        price (float | None): Price of *one* GPU for an hour, in any unit of money.
        evaluation_seconds (float): Of all evaluations together.

    Returns:
        Cost: The estimates that what was given allows.
    """
    goodput = recommended = recommended_goodput = None
    if losses.preemptions_per_day is not None and interval_seconds is not None:
        goodput = expected_goodput(interval_seconds, losses)
    if math.isfinite(losses.seconds_between_kills):
        recommended = recommend_interval(losses, batch_seconds or 0.0)
        recommended_goodput = expected_goodput(recommended.seconds, losses)
    hours = None
    if batch_seconds is not None and (goodput is None or goodput >= HOPELESS):
        hours = (batches * batch_seconds + evaluation_seconds) / 3600 / (goodput or 1.0)
    cost = None if hours is None or price is None else hours * (gpus or 1) * price
    given = {'--tokens-per-second': batch_seconds, '--price': price}
    needs = tuple(option for option, value in given.items() if value is None)
    return Cost(hours, cost, goodput, recommended, recommended_goodput, needs)
