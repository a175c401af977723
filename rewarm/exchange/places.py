"""Words for what cannot be written."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from rewarm.config.errors import UserError

__all__ = ['told']


@contextlib.contextmanager
def told(folder: Path) -> Iterator[None]:
    """What a disk refuses, in words.

    Raises:
        UserError: Instead of an ``OSError``.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f'{error.filename or folder}: cannot be written ({error.strerror or error})') from error
