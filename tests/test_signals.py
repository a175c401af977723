"""Every signal that a run file may name is answered from the start, and reaches only whom it is meant for."""

import re
import signal
import subprocess
import sys
from pathlib import Path

from rewarm.signals import STOP_SIGNALS

EARLY = """
import os, signal, sys, time
from rewarm import signals
signals.answer_early(lambda: os._exit(75))
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as Composer does while it is imported
print('ready', flush=True)
time.sleep(30)
"""


def start(script, **options):
    process = subprocess.Popen([sys.executable, '-c', script], stdout=subprocess.PIPE, text=True, **options)
    assert process.stdout.readline() == 'ready\n'
    return process


def test_each_means_start_again_until_training_listens():
    processes = [(start(EARLY), number) for number in STOP_SIGNALS]
    for process, number in processes:
        process.send_signal(number)
    assert [process.wait(10) for process, _ in processes] == [75] * len(STOP_SIGNALS)


def test_under_nohup_sighup_stays_off_also_when_training_listens():
    script = f"""{EARLY.replace('time.sleep(30)', '')}
sys.stdin.readline()
signals.listen(['SIGHUP'], lambda *_: os._exit(1))
print('listens', flush=True)
sys.stdin.readline()
"""
    process = start(script, stdin=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.send_signal(signal.SIGHUP)
    process.stdin.write('\n')
    process.stdin.flush()
    assert process.stdout.readline() == 'listens\n'
    process.send_signal(signal.SIGHUP)
    process.communicate('\n')
    assert process.returncode == 0


def test_what_comes_while_training_begins_to_listen_is_not_lost():
    script = """
import os, signal, sys
from rewarm import signals
signals.answer_early(lambda: os._exit(75))
signals.listen(['SIGUSR2'], lambda *_: sys.exit(3))
print('ready', flush=True)
sys.stdin.readline()
"""
    process = start(script, stdin=subprocess.PIPE)
    process.send_signal(signal.SIGUSR2)
    assert process.wait(10) == 3


def test_the_resource_tracker_is_deaf():
    script = """
from multiprocessing import resource_tracker
from rewarm import signals
signals.start_resource_tracker()
print('ready', flush=True)
print(resource_tracker._resource_tracker._pid, flush=True)
input()
"""
    process = start(script, stdin=subprocess.PIPE)
    status = Path(f'/proc/{int(process.stdout.readline())}/status').read_text()
    blocked, ignored = (int(re.search(rf'{name}:\s*(\w+)', status)[1], 16) for name in ('SigBlk', 'SigIgn'))
    process.communicate('\n')
    assert [number for number in STOP_SIGNALS if not (blocked | ignored) >> (number - 1) & 1] == []
