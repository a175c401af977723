"""The bare loop around real processes: what each exit code leads to, signals on their way through, and its bound."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from tests.end_to_end.conftest import ROOT, Run

LOOP = ROOT / 'scripts/launch/loop.sh'
# Its n-th start does what the n-th line of `script` says: an exit code, and `save` to publish a checkpoint before.
CHILD = """#!/usr/bin/env bash
date +%s.%N >> starts
line=$(sed -n "$(wc -l < starts)p" script)
case $line in *save*) echo "ba$(wc -l < starts)" > run/checkpoints/latest ;; esac
case $line in
    *KILL*) kill -KILL $$ ;;
    *) exit "${line%% *}" ;;
esac
"""
# Goes when told to, with a code of its choice, and says by which signal.
WAITER = """#!/usr/bin/env bash
trap 'echo SIGTERM >> told; sleep 0.5; exit CODE' TERM
touch ready
for _ in $(seq 300); do sleep 0.1; done
"""


@pytest.fixture
def run(tmp_path: Path):
    (tmp_path / 'run/checkpoints').mkdir(parents=True)

    def start(child: str, script: str = '', **settings: str) -> subprocess.Popen:
        (tmp_path / 'child.sh').write_text(child)
        (tmp_path / 'script').write_text(script)
        command = ['env', *(f'{key}={value}' for key, value in settings.items()), 'bash', str(LOOP), 'run']
        return subprocess.Popen(
            [*command, 'bash', 'child.sh'], cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    return start


def finish(process: subprocess.Popen) -> tuple[int, str]:
    _, words = process.communicate(timeout=30)
    return process.returncode, words


def starts(folder: Path) -> list[float]:
    return [float(line) for line in (folder / 'starts').read_text().split()]


@pytest.mark.parametrize('code', [0, 2, 3, 74, 126, 127])
def test_ends_with_codes_that_another_start_would_not_change(run, tmp_path, code):
    assert finish(run(CHILD, f'{code}\n'))[0] == code
    assert len(starts(tmp_path)) == 1


@pytest.mark.parametrize('code', ['75', '1', '137', '143', '241', '247', '139', 'KILL'])
def test_starts_again(run, tmp_path, code):
    assert finish(run(CHILD, f'{code}\n0\n', BACKOFF_SECONDS='0'))[0] == 0
    assert len(starts(tmp_path)) == 2


def test_goes_on_though_nobody_reads_what_it_says(run, tmp_path):
    process = run(CHILD, '75\n1\n0\n', BACKOFF_SECONDS='0')
    process.stderr.close()
    assert process.wait(30) == 0
    assert len(starts(tmp_path)) == 3


def test_75_starts_again_at_once_and_a_crash_after_a_while(run, tmp_path):
    finish(run(CHILD, '75 save\n1 save\n0\n', BACKOFF_SECONDS='2'))
    first, second, third = starts(tmp_path)
    assert second - first < 1.5
    assert third - second >= 2


def test_waits_longer_each_time_until_something_is_saved(run, tmp_path):
    _, words = finish(run(CHILD, '1\n1\n1 save\n1\n0\n', BACKOFF_SECONDS='1'))
    assert re.findall(r'starting again in (\d+) s', words) == ['1', '2', '1', '2']
    times = starts(tmp_path)
    assert all(after - before >= least for before, after, least in zip(times, times[1:], (1, 2, 1, 2)))


@pytest.mark.parametrize('code', [75, 1, 137])
def test_gives_up_after_starts_that_save_nothing(run, tmp_path, code):
    returncode, words = finish(run(CHILD, f'{code}\n' * 20, BACKOFF_SECONDS='0', RESTARTS='3'))
    assert returncode == code
    assert len(starts(tmp_path)) == 4
    assert 'nothing was saved in the last 4 starts: giving up' in words


def test_never_gives_up_while_something_is_saved(run, tmp_path):
    assert finish(run(CHILD, '1 save\n' * 9 + '0\n', BACKOFF_SECONDS='0', RESTARTS='1'))[0] == 0
    assert len(starts(tmp_path)) == 10


def test_the_run_folder_may_be_a_pattern(tmp_path):
    # As for a run in a bucket, whose folder is only made by the first start.
    (tmp_path / 'child.sh').write_text(
        'mkdir -p "made here/checkpoints"; date +%s%N > "made here/checkpoints/latest"; exit 1'
    )
    command = [
        'env',
        'BACKOFF_SECONDS=0',
        'RESTARTS=2',
        'timeout',
        '3',
        'bash',
        str(LOOP),
        'made *',
        'bash',
        'child.sh',
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False)
    assert 'giving up' not in done.stderr
    assert done.stderr.count('starting again') > 2


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize(('code', 'left_with'), [(75, 75), (1, 75), (0, 0), (2, 2)])
def test_told_to_go_it_tells_its_child_waits_and_leaves(run, tmp_path, number, code, left_with):
    process = run(WAITER.replace('CODE', str(code)))
    wait_for(tmp_path / 'ready')
    process.send_signal(number)  # to the loop alone
    assert finish(process)[0] == left_with
    assert (tmp_path / 'told').read_text() == 'SIGTERM\n'


def test_told_to_go_while_it_waits_for_the_next_start(run, tmp_path):
    process = run(CHILD, '1\n', BACKOFF_SECONDS='20')
    assert 'starting again in 20 s' in process.stderr.readline()
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    assert finish(process)[0] == 75
    assert time.monotonic() - began < 5
    assert len(starts(tmp_path)) == 1


def test_without_a_command_it_says_how_it_is_used(tmp_path):
    done = subprocess.run(['bash', str(LOOP), 'run'], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr.split()[0]) == (2, 'usage:')


@pytest.mark.slow
def test_a_real_run_whose_rank_and_launcher_are_killed(make_run):
    longer = (
        'stages.0.max_duration=50ba',
        'stages.1.max_duration=50ba',
        'checkpoints.interval=5ba',
        'eval.interval=50ba',
    )
    straight, run = make_run('straight'), make_run()
    straight.finish(*longer, ranks=2)
    command = ['bash', str(LOOP), str(run.folder), *run.command(*longer, ranks=2)]
    env = {**os.environ, 'OMP_NUM_THREADS': '1', 'BACKOFF_SECONDS': '1'}
    loop = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        for batch, victim in ((15, 'rank'), (50, 'launcher')):
            end = time.monotonic() + 120
            while number_of_batches(run) < batch:
                assert time.monotonic() < end, batch
                time.sleep(0.05)
            launcher = psutil.Process(loop.pid).children()[0]
            ranks = [child for child in launcher.children() if child.environ().get('RANK')]
            assert len(ranks) == 2
            # Without their launcher nobody would tell the ranks, and they would hold the run: all are killed, as with a container.
            for process in [ranks[1]] if victim == 'rank' else [launcher, *ranks]:
                process.kill()
        output, _ = loop.communicate(timeout=240)
    finally:
        for process in psutil.Process(loop.pid).children(recursive=True) if loop.poll() is None else ():
            process.kill()
        loop.kill()
    assert loop.returncode == 0, output
    assert 'exit code 75: starting again' in output
    assert 'exit code 137: starting again in 1 s' in output
    assert [event['event'] for event in run.lines('events')].count('run_start') == 3
    assert run.losses() == straight.losses()
    assert run.weights() == straight.weights()


def wait_for(path: Path) -> None:
    end = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.05)


def number_of_batches(run: Run) -> int:
    """Lines of metrics so far; the last one may be half written."""
    path = run.folder / 'metrics.jsonl'
    return path.read_bytes().count(b'\n') if path.exists() else 0
