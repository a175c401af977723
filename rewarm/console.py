"""Tables on standard output: coloured on a terminal, and without any escape sequence where that is not wanted."""

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ['is_plain', 'open_console']

PIPED_WIDTH = 120
"""Columns of what no terminal shows."""


def is_plain() -> bool:
    """Whether standard output gets text alone: it is no terminal or a dumb one, or ``NO_COLOR`` is set."""
    return not sys.stdout.isatty() or _is_colourless()


def open_console() -> 'Console':
    """For tables on standard output, as wide as the terminal; where that gets text alone, with no escape sequence."""
    from rich.console import Console

    class Steady(Console):
        """One that leaves the cursor as it is: a process that is killed could not bring it back."""

        def show_cursor(self, show: bool = True) -> bool:
            return False

    # rich knows the width of a terminal, and COLUMNS; a pipe has none.
    width = None if sys.stdout.isatty() or 'COLUMNS' in os.environ else PIPED_WIDTH
    return Steady(width=width, highlight=False, color_system=None if _is_colourless() else 'auto')


def _is_colourless() -> bool:
    return bool(os.environ.get('NO_COLOR')) or os.environ.get('TERM') in ('dumb', 'unknown')
