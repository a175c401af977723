"""Forcing what was written to the disk."""

import os
from pathlib import Path

__all__ = ['flush']


def flush(path: Path) -> None:
    """Returns when a file's content, or the names in a folder, would survive a loss of power.

    Raises:
        OSError: If the disk fails.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
