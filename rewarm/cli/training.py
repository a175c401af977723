"""``rewarm train``: what surrounds a run, from the first signal to the exit code."""

import atexit
import gc
import os
import threading
import time
from typing import NoReturn

from rewarm import signals, terminal
from rewarm.cli.arguments import Overrides, RunFile
from rewarm.cli.failure import is_first_of_node, tell
from rewarm.config.errors import UserError, disk_error

__all__ = ['train']

EXIT_PREEMPTED = 75

LAST_WORDS_SECONDS = 0.5
"""For what was written before a signal in the first seconds to reach the terminal."""

CLEARING_UP_SECONDS = 20.0
"""For what libraries do at a process's end."""

TEE_SECONDS = 0.2
"""A Ctrl-C that reaches this process also ends the `tee` that its output goes to; it is to be seen gone."""

LATE_START_SECONDS = 10
"""By how much a rank may begin after another."""


def train(run: RunFile, overrides: Overrides = None) -> None:
    """Trains a run, or goes on with it. On several GPUs: composer -n 8 -m rewarm train RUN.yaml [KEY=VALUE]..."""
    terminal.never_wait()
    signals.answer_early(_start_again)
    from rewarm.config.load import load

    try:
        config = load(run, overrides or [])
    except UserError:
        if not is_first_of_node():
            time.sleep(LATE_START_SECONDS)  # a launcher ends all with the first that leaves: the one that tells
        raise
    gc.disable()  # collecting while all of torch and Composer is imported costs 1.2 s and frees nothing
    from rewarm.train import run as run_training

    gc.enable()
    try:
        code = run_training(config, [*_launcher(), 'train', str(run), *(overrides or [])])
    except UserError as error:
        code = tell(error)
    except OSError as error:
        if (words := disk_error(error, config.run_folder)) is None:
            raise
        code = tell(words)
    _leave(code)


def _launcher() -> list[str]:
    """What starts this program here, as far as it can be told."""
    ranks = os.environ.get('LOCAL_WORLD_SIZE', '1')
    return ['rewarm'] if ranks == '1' else ['composer', '-n', ranks, '-m', 'rewarm']


def _start_again() -> NoReturn:
    time.sleep(TEE_SECONDS)
    terminal.drain(LAST_WORDS_SECONDS)
    os._exit(EXIT_PREEMPTED)


def _leave(code: int) -> NoReturn:
    """Ends a process that trained with its own code, whatever the launcher does once another rank is gone.

    Python would go on to clear up, and a SIGTERM ends it then: its handlers are gone. So can a thread of gloo's that
    lets go of a tensor late (SIGABRT).
    """
    signals.ignore()
    too_long = threading.Timer(CLEARING_UP_SECONDS, os._exit, (code,))
    too_long.daemon = True
    too_long.start()  # a logger's client may wait for a network that is away
    try:
        atexit._run_exitfuncs()
        terminal.drain()
    finally:
        os._exit(code)
