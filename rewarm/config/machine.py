"""What this machine has, as far as a default depends on it."""

import os

__all__ = ['default_workers']

MOST_WORKERS = 4
"""More read no faster than one GPU trains."""


def default_workers() -> int:
    """Loader processes of each rank where the run file names none: the cores that its ranks have, within 1 to 4."""
    text = os.environ.get('LOCAL_WORLD_SIZE', '1')
    ranks = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 1
    return min(MOST_WORKERS, max(1, len(os.sched_getaffinity(0)) // max(1, ranks)))
