"""The command line, a file for each group of commands, which import what they need when they run.

So ``rewarm plan`` answers at once. Comes in: arguments. Goes out: an exit code, 2 for wrong input. Read :mod:`rewarm.cli.commands` first.
"""

from rewarm.cli.commands import app, main

__all__ = ['app', 'main']
