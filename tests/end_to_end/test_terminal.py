"""A run outlives whoever reads what it prints, on a real terminal and with a real tee."""

import functools
import os
import pty
import select
import shlex
import signal
import subprocess
import time

import pytest

from rewarm.signals import STOP_SIGNALS
from tests.end_to_end.waiting import wait_for, wait_until_free

LONG = ('stages.0.max_duration=2000ba', 'checkpoints.interval=10000ba', 'eval.interval=10000ba', 'data.num_workers=1')


def start_on_terminal(command):
    """Starts a command as the leader of a terminal of its own; returns its process id and our end of the terminal."""
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ['OMP_NUM_THREADS'] = '1'
        os.execvp(command[0], command)
    return pid, terminal


def wait_on_terminal(terminal, condition, seconds=120):
    """Shows what is printed, as a terminal does, until something holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, 'timed out'
        if select.select([terminal], [], [], 0.05)[0]:
            try:
                os.read(terminal, 65536)
            except OSError:  # nobody writes there any more
                time.sleep(0.05)


def check_saved_at_once(run, number):
    events = run.lines('events')
    assert [event['signal'] for event in events if event['event'] == 'preempted'] == [number.name]
    (saved,) = run.checkpoints()
    assert int(saved[2:]) == len(run.lines('metrics')) < 1000
    return events


@pytest.mark.slow
def test_ctrl_c_ends_tee_first_and_both_ranks_save_and_leave_with_75(make_run, tmp_path):
    run = make_run()
    codes = tmp_path / 'codes'
    pipeline = f'{shlex.join(run.command(*LONG, ranks=2))} 2>&1 | tee {tmp_path}/log'
    # An interactive shell would not go on to the next command; this one does.
    shell = f'trap : INT; {pipeline}; echo "${{PIPESTATUS[@]}}" > {codes}'
    pid, terminal = start_on_terminal(['bash', '-c', shell])
    wait_on_terminal(terminal, lambda: len(run.lines('metrics')) >= 2)
    os.write(terminal, b'\x03')
    wait_on_terminal(terminal, lambda: codes.exists() and codes.read_text().endswith('\n'))
    os.waitpid(pid, 0)
    os.close(terminal)
    assert codes.read_text().split() == ['75', '130']
    events = check_saved_at_once(run, signal.SIGINT)
    assert [event['reason'] for event in events if event['event'] == 'terminal_lost'] == ['Broken pipe']


@pytest.mark.slow
def test_a_terminal_that_is_closed_saves_and_leaves_with_75(make_run):
    run = make_run()
    pid, terminal = start_on_terminal(run.command(*LONG))
    wait_on_terminal(terminal, lambda: len(run.lines('metrics')) >= 2)
    os.close(terminal)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 75
    check_saved_at_once(run, signal.SIGHUP)
    wait_until_free(run)


@pytest.mark.slow
def test_a_reader_that_leaves_early_changes_nothing(make_run):
    run = make_run()
    process = run.start('data.num_workers=1')
    process.stdout.close()
    assert process.wait(240) == 0
    assert len(run.lines('metrics')) == 12
    lost = [event for event in run.lines('events') if event['event'] == 'terminal_lost']
    assert [event['reason'] for event in lost] == ['Broken pipe']


def test_a_wrong_run_file_leaves_with_2_though_nothing_can_be_written(make_run):
    with open('/dev/full', 'w') as full:
        done = subprocess.run(make_run().command('nonsense=1'), stdout=full, stderr=full, timeout=60)
    assert done.returncode == 2


def test_every_signal_means_start_again_while_training_is_still_imported(make_run):
    run = make_run()
    processes = [(run.start(), number) for number in STOP_SIGNALS]
    for process, number in processes:
        wait_for(functools.partial(waits_for_signals, process.pid))
        process.send_signal(number)
    assert [process.wait(60) for process, _ in processes] == [75] * len(STOP_SIGNALS)
    assert not run.folder.exists()


def waits_for_signals(pid):
    """Whether a process keeps them all for the thread that answers them."""
    with open(f'/proc/{pid}/status') as file:
        mask = next(int(line.split()[1], 16) for line in file if line.startswith('SigBlk'))
    return all(mask >> (number - 1) & 1 for number in STOP_SIGNALS)
