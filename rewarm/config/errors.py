"""Errors that are the user's to fix: they end the command with exit code 2 and print no traceback."""

import errno
import os
from collections.abc import Iterable

from rewarm.config.secrets import without_secrets
from rewarm.terminal import printable

LONGEST_LINE = 1000
"""Characters of a problem; what a file holds may be a million, and the advice is at the end."""

_DISK_TROUBLE = {
    errno.ENOSPC: 'Free some space, or keep less (`checkpoints.keep`)',
    errno.EDQUOT: 'Free some space, or keep less (`checkpoints.keep`)',
    errno.EROFS: 'Make it writable, or name another `run_folder`',
    errno.EACCES: 'Give this user the right to write there, or name another `run_folder`',
    errno.EPERM: 'Give this user the right to write there, or name another `run_folder`',
    errno.EIO: 'The device or its file server fails: see the system log, or move the folder to a sound one',
}


class UserError(ValueError):
    """Something the user gave is wrong; the message says what, where and what to write instead."""


class RankError(UserError):
    """What one rank found alone; the others do not know of it, so that rank prints it."""


class DamagedFile(UserError):
    """A file from outside is not what its format says; callers with something to fall back on catch it.

    Args:
        where (object): The file, or ``file:line``.
        place (str): Where in it, such as ``shards.3.bytes``; empty for the whole file.
        what (str): What is wrong there.
    """

    def __init__(self, where: object, *, place: str = '', what: str) -> None:
        self.where, self.place, self.what = str(where), place, what
        super().__init__(f'{where}: damaged: {place + ": " if place else ""}{what}')

    def __reduce__(self) -> tuple[type[UserError], tuple[str]]:
        return UserError, (str(self),)  # between processes only the words count


class ConfigError(UserError):
    """One or more problems in a run file or on the command line, all found at once.

    Args:
        problems (Iterable[str]): One line for each problem, such as ``run.yaml:12: unknown key ...``.
    """

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems: tuple[str, ...] = tuple(map(_as_line, problems))
        super().__init__('\n'.join(self.problems))


def _as_line(problem: str) -> str:
    """One line that can be shown: keys and values in it are whatever the file holds."""
    line = printable(without_secrets(problem)).replace('\n', '\\n').replace('\t', '\\t')
    return line if len(line) <= LONGEST_LINE else f'{line[: LONGEST_LINE - 300]} ... {line[-250:]}'


def disk_error(error: OSError, folder: str) -> RankError | None:
    """What to do about a disk that is full, read-only or failing.

    Args:
        error (OSError): As it came, perhaps without the file's name.
        folder (str): The folder it is about if it does not say.

    Returns:
        RankError | None: ``None`` if the disk is not to blame.
    """
    if error.errno not in _DISK_TROUBLE:
        return None
    return RankError(
        f'{error.filename or folder}: {os.strerror(error.errno)}. {_DISK_TROUBLE[error.errno]}. '
        'Then start the same command again: it goes on from the newest whole checkpoint'
    )
