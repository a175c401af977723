"""Signals and notices: which of them stops a run, when, and which one ends the process at once."""

import os
import signal
import subprocess
import sys
import time

import pytest

from rewarm.resume.clouds import Notice
from rewarm.resume.preemption import EXIT_PREEMPTED, StopRequest


def notice(seconds, what='the instance is terminated'):
    return Notice('aws', what, None if seconds is None else time.monotonic() + seconds, id=what)


@pytest.fixture
def stop():
    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)}
    request = StopRequest(['SIGUSR1'], grace_period_seconds=25)
    request.install()
    yield request
    for number, handler in before.items():
        signal.signal(number, handler)


def test_nothing_stops_a_run_that_nobody_told_to_go(stop):
    assert stop.reason is None
    assert stop.seconds_left == 25
    assert not stop.has_news


def test_a_signal_is_the_reason_and_starts_the_grace_period(stop, capfd):
    os.kill(os.getpid(), signal.SIGUSR1)
    assert stop.reason == 'SIGUSR1'
    assert 24 < stop.seconds_left <= 25
    assert f'SIGUSR1: saving after this batch, then exit {EXIT_PREEMPTED}' in capfd.readouterr().err


def test_a_notice_is_news_at_once_and_a_reason_only_when_its_deadline_is_within_the_grace_period(stop):
    stop.on_notice(notice(120))
    assert stop.has_news
    assert stop.reason is None
    (told,) = stop.take_news()
    assert (told['cloud'], told['what']) == ('aws', 'the instance is terminated')
    assert 119 < told['deadline_seconds'] <= 120
    assert not stop.has_news
    stop.on_notice(notice(20, 'sooner'))
    assert stop.reason == 'sooner'
    assert 19 < stop.seconds_left <= 20


def test_a_later_deadline_does_not_put_off_a_nearer_one(stop):
    stop.on_notice(notice(10, 'near'))
    stop.on_notice(notice(500, 'far'))
    assert stop.reason == 'near'


def test_a_recommendation_without_a_deadline_is_news_and_never_a_reason(stop):
    stop.on_notice(notice(None, 'rebalance'))
    assert stop.take_news()[0]['deadline_seconds'] is None
    assert stop.reason is None
    assert stop.seconds_left == 25


def test_the_signal_that_follows_a_notice_does_not_cut_the_save_short(stop):
    stop.on_notice(notice(5))
    assert stop.reason is not None
    os.kill(os.getpid(), signal.SIGUSR1)  # a second one would have ended this process
    assert stop.reason == 'SIGUSR1'


@pytest.mark.parametrize(('pause', 'code'), [(0.0, 0), (6.0, EXIT_PREEMPTED)])
@pytest.mark.slow
def test_a_second_signal_leaves_at_once_unless_it_is_the_same_request(pause, code):
    script = f"""
import os, signal, time
from rewarm.resume.preemption import StopRequest
StopRequest(['SIGTERM']).install()
for _ in range(2):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep({pause})
"""
    assert subprocess.run([sys.executable, '-c', script], timeout=60).returncode == code
