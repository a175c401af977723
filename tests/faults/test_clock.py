"""A wall clock that is set back, between starts or in the middle of one, changes nothing but the times in the records."""

import datetime
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

DAY = 86_400


@pytest.fixture
def clock(tmp_path, monkeypatch):
    """Sets the wall clock of processes started from here on, by seconds; they see each later setting, too."""
    library = tmp_path / 'clock.so'
    source = Path(__file__).with_name('clock.c')
    try:
        subprocess.run(['gcc', '-O1', '-shared', '-fPIC', str(source), '-o', str(library), '-ldl'], check=True)
    except FileNotFoundError:
        pytest.skip('needs gcc')
    shift = tmp_path / 'shift'
    shift.write_bytes(bytes(8))
    monkeypatch.setenv('REWARM_TEST_CLOCK', str(shift))
    monkeypatch.setenv('LD_PRELOAD', str(library))

    def move(seconds):
        with shift.open('r+b') as file:  # the same inode: it is mapped
            file.write(struct.pack('q', seconds))

    return move


def clock_of_a_program():
    words = 'import datetime, time; print(time.time(), datetime.datetime.now().timestamp(), time.monotonic())'
    return [float(word) for word in subprocess.check_output([sys.executable, '-c', words], text=True).split()]


def test_the_shim_moves_the_wall_clock_and_no_other(clock):
    clock(-DAY)
    before = time.time(), time.time(), time.monotonic()
    wall, date, monotonic = clock_of_a_program()
    assert wall == pytest.approx(before[0] - DAY, abs=60)
    assert date == pytest.approx(before[1] - DAY, abs=60)
    assert monotonic == pytest.approx(before[2], abs=60)


def times(run):
    return [datetime.datetime.fromisoformat(event['time']) for event in run.lines('events')]


def test_set_back_between_starts_and_during_one_it_equals_the_unbroken_run(make_run, unbroken, clock):
    run = make_run()
    process = run.start('data.num_workers=2')
    deadline = time.monotonic() + 90
    while not (run.folder.exists() and len(run.lines('metrics')) >= 3):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    clock(-DAY)
    while len(run.lines('metrics')) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    clock(-30 * DAY)
    run.finish('data.num_workers=2')
    clock(0)
    assert run.losses() == unbroken.losses()
    assert run.weights() == unbroken.weights()
    assert sorted(run.evals()) == sorted(unbroken.evals())
    steps = [later - earlier for earlier, later in zip(times(run), times(run)[1:])]
    assert any(step < datetime.timedelta(days=-1) for step in steps), 'the clock was not set back'
    report = run.folder.parent / 'report.html'
    for command in (['report', str(run.folder), '--out', str(report)], ['status', str(run.folder)]):
        shown = subprocess.run(
            [sys.executable, '-W', 'ignore', '-m', 'rewarm', *command], capture_output=True, text=True, timeout=120
        )
        assert shown.returncode == 0, shown.stderr
    assert report.stat().st_size > 0
