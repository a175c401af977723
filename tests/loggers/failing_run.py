"""Starts a run with a logger that cannot be had: refused while it has not trained, and no more than told afterwards.

Called as: failing_run.py DATA FOLDER. A script, for its forks.
"""

import os
import signal
import sys
from pathlib import Path

from rewarm.report.page import write_page
from rewarm.report.show_status import status_lines, to_json
from rewarm.report.status import find_status
from tests.end_to_end.conftest import Run
from tests.end_to_end.forked import Ranks

BAD = 'loggers.tensorboard.log_dir=/dev/null/logs'  # no folder can be made there


def start(run: Run, log: Path, *overrides: str, ranks: int = 1, until: int = 100) -> dict[int, int]:
    """Starts the run, to its end or until so many batches are trained; returns the exit codes."""
    started = Ranks(run.file, list(overrides), count=ranks, log=log)
    started.wait_while_it_moves(lambda: len(run.lines('metrics')), 60, until=lambda: len(run.lines('metrics')) >= until)
    for rank in started.running():
        started.send(rank, signal.SIGKILL)
    started.wait(60)
    return started.codes


def main(data: Path, folder: Path) -> None:
    """Starts it four times."""
    os.environ['OMP_NUM_THREADS'] = '1'
    run = Run(folder, data)
    log = folder / 'refused'
    assert start(run, log, BAD) == {0: 2}, log.read_text()
    assert 'rank 0: loggers.tensorboard: ' in log.read_text()
    assert '/dev/null' in log.read_text()
    assert not run.lines('metrics')

    start(run, folder / 'killed', until=3)
    log = folder / 'one'
    start(run, log, BAD, until=5)
    assert log.read_text().count('Logger tensorboard fails: ') == 1, log.read_text()
    log = folder / 'two'
    assert start(run, log, BAD, 'loggers.file={}', ranks=2) == {0: 0, 1: 0}, log.read_text()
    assert [line['batch'] for line in run.lines('metrics')] == list(range(1, 13))
    failed = [event for event in run.lines('events') if event['event'] == 'logger_failed']
    assert [event['logger'] for event in failed] == ['tensorboard', 'tensorboard']
    status = find_status(run.folder)
    told = to_json(status)['loggers']['tensorboard']
    assert (told['fails'], told['lost_calls'] >= 6) == (True, True), told
    assert status_lines(status)['loggers'].startswith('tensorboard fails since '), status_lines(status)
    assert 'calls failed or were dropped' in write_page([run.folder], folder / 'page.html').read_text()
    assert len(list((run.folder / 'file').glob('ba*-rank1.txt'))) == 1
    print('told and trained')


if __name__ == '__main__':
    main(Path(sys.argv[1]), Path(sys.argv[2]))
