"""The arithmetic of a global batch that is divided among ranks in whole microbatches."""

import math
from collections.abc import Sequence

from rewarm.config.schema import RunConfig

MOST_SPELLED = 40


def find_world_sizes(config: RunConfig) -> list[int]:
    """The numbers of ranks that can run the global batch in whole microbatches.

    Args:
        config (RunConfig): The settings.

    Returns:
        list[int]: In order.
    """
    count, rest = divmod(config.global_train_batch_size, config.device_train_microbatch_size)
    return [] if rest else _divisors(count)


def nearest_batches(config: RunConfig, ranks: int) -> list[int]:
    """The global batches nearest to the configured one that a number of ranks can run.

    Args:
        config (RunConfig): The settings.
        ranks (int): Ranks that do not divide the configured batch.

    Returns:
        list[int]: The next lower, if there is one, and the next higher, in sequences.
    """
    batch, step = config.global_train_batch_size, config.device_train_microbatch_size * ranks
    below, above = batch // step * step, -(-batch // step) * step
    return [below, above] if below else [above]


def fitting_microbatch(config: RunConfig, ranks: int) -> int | None:
    """The largest microbatch, up to the configured one, with which a number of ranks can run the configured batch.

    Args:
        config (RunConfig): The settings.
        ranks (int): Number of ranks.

    Returns:
        int | None: Sequences; None where the batch does not divide among the ranks at all.
    """
    share, rest = divmod(config.global_train_batch_size, ranks)
    if rest or not share:
        return None
    return max(size for size in _divisors(share) if size <= config.device_train_microbatch_size)


def spell_sizes(sizes: Sequence[int]) -> str:
    """Numbers of ranks in words; of many the smallest, which are the ones in use."""
    text = ', '.join(map(str, sizes[:MOST_SPELLED]))
    return f'{text}, ... {sizes[-1]}' if len(sizes) > MOST_SPELLED else text


def _divisors(number: int) -> list[int]:
    below = [each for each in range(1, math.isqrt(number) + 1) if number % each == 0]
    return below + [number // each for each in reversed(below) if each * each != number]
