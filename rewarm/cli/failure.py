"""How the command line says that the user's input is wrong."""

import os
import sys

from rewarm import terminal
from rewarm.config.errors import RankError
from rewarm.config.secrets import without_secrets

__all__ = ['EXIT_USER_ERROR', 'is_first_of_node', 'tell']

EXIT_USER_ERROR = 2


def tell(error: Exception) -> int:
    """Prints what the user has to know, once on each node; returns the exit code."""
    if is_first_of_node() or isinstance(error, RankError):
        print(terminal.printable(without_secrets(str(error))), file=sys.stderr)
    return EXIT_USER_ERROR


def is_first_of_node() -> bool:
    """Whether this process is alone, or the first of its machine: the one that speaks."""
    return os.environ.get('LOCAL_RANK', '0') == '0'
