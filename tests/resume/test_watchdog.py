import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from rewarm.config.errors import UserError
from rewarm.resume import watchdog as watchdog_module
from rewarm.resume.watchdog import Watchdog

PROGRAM = Path(__file__).with_name('watched_rank.py')
SETTINGS = {'timeout_seconds': 60, 'interval_seconds': 0.2, 'gone_after_seconds': 3, 'leave_seconds': 1}


class Ranks:
    """Processes under one watchdog."""

    def __init__(self, folder: Path, actions: list[str], settings: dict) -> None:
        self.folder = folder
        self.errors = [folder / f'stderr{rank}.txt' for rank in range(len(actions))]
        self.processes = [
            subprocess.Popen(
                [sys.executable, PROGRAM, str(rank), str(len(actions)), folder, json.dumps(settings), *action.split()],
                stderr=self.errors[rank].open('w'),
                env={**os.environ, 'PYTHONPATH': str(Path(__file__).parents[2])},
            )
            for rank, action in enumerate(actions)
        ]

    def wait_until_ready(self, mark: str = 'ready') -> None:
        end = time.monotonic() + 60
        while not all((self.folder / f'{mark}{rank}').exists() for rank in range(len(self.processes))):
            assert time.monotonic() < end, self.said()
            time.sleep(0.02)
        time.sleep(0.6)  # three messages: every rank has told where it is

    def signal(self, rank: int, number: signal.Signals) -> float:
        self.processes[rank].send_signal(number)
        return time.monotonic()

    def codes(self, within: float, *, of: list[int] | None = None) -> list[int]:
        """Exit codes of ranks that must end within some seconds from now."""
        end = time.monotonic() + within
        ranks = range(len(self.processes)) if of is None else of
        try:
            return [self.processes[rank].wait(max(0.0, end - time.monotonic())) for rank in ranks]
        except subprocess.TimeoutExpired:
            raise AssertionError(f'not ended within {within} s\n{self.said()}') from None

    def said(self, rank: int | None = None) -> str:
        files = self.errors if rank is None else [self.errors[rank]]
        return '\n'.join(file.read_text() for file in files)

    def events(self, rank: int) -> list[dict]:
        file = self.folder / f'events{rank}.jsonl'
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def start(tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Ranks]:
    def run(*actions: str, ready: str = 'ready', **changes) -> Ranks:
        ranks = Ranks(tmp_path, list(actions), {**SETTINGS, **changes})
        request.addfinalizer(ranks.kill)
        if ready:
            ranks.wait_until_ready(ready)
        return ranks

    return run


@pytest.mark.parametrize('victim', [0, 1])
def test_ranks_leave_with_75_when_another_is_killed_and_name_it(start, victim):
    ranks = start('train', 'train', 'train')
    ranks.signal(victim, signal.SIGKILL)
    others = [rank for rank in range(3) if rank != victim]
    assert ranks.codes(4, of=others) == [75, 75]  # a closed connection is noticed before the silence of 3 s
    for rank in others:
        assert re.search(
            rf'Rank {victim} \(host \S+, pid {ranks.processes[victim].pid}\) is gone or frozen: last heard \d s ago, '
            r'last at forward of batch 4\. Leaving with 75\.',
            ranks.said(rank),
        ), ranks.said(rank)
    if victim != 0:
        (event,) = ranks.events(0)
        assert (event['event'], event['rank']) == ('rank_lost', victim)
        assert 0 < event['seconds'] < 3


@pytest.mark.parametrize('victim', [0, 2])
def test_ranks_leave_when_another_is_frozen(start, victim):
    ranks = start('train', 'train', 'train')
    ranks.signal(victim, signal.SIGSTOP)
    others = [rank for rank in range(3) if rank != victim]
    began = time.monotonic()
    assert ranks.codes(9, of=others) == [75, 75]
    assert time.monotonic() - began > 3
    assert all(f'Rank {victim} (host' in ranks.said(rank) for rank in others)
    ranks.signal(victim, signal.SIGCONT)
    assert ranks.codes(8, of=[victim]) == [75]


def test_a_killed_rank_is_noticed_although_its_forked_worker_lives_on(start):
    ranks = start('train', 'leave_orphan')
    ranks.signal(1, signal.SIGKILL)
    began = time.monotonic()
    assert ranks.codes(4, of=[0]) == [75]
    assert time.monotonic() - began < 2.9  # by the closed connection, not by silence


@pytest.mark.parametrize('culprit', [0, 2])
def test_the_rank_that_hangs_is_named_and_every_rank_shows_its_stacks(start, culprit):
    actions = ['wait', 'wait', 'wait']
    actions[culprit] = 'sleep'
    ranks = start(*actions, timeout_seconds=2)
    assert ranks.codes(6) == [75, 75, 75]
    for rank in range(3):
        assert f'Nothing moves: rank {culprit} (host ' in ranks.said(rank)
        assert 's at forward of batch 4. Leaving with 75.' in ranks.said(rank)
        inside = 'in sleep' if rank == culprit else 'in wait'
        assert inside in (ranks.folder / f'stacks-rank{rank}.txt').read_text()
        assert inside in ranks.said(rank)
        (event,) = ranks.events(rank)
        assert (event['event'], event['rank'], event['where']) == ('hang', culprit, 'forward of batch 4')
        assert event['seconds'] >= 2


def test_a_rank_that_hangs_with_the_interpreters_lock_ends_all_and_itself(start):
    ranks = start('wait', 'hold_the_lock')
    assert ranks.codes(6, of=[0]) == [75]
    assert 'Rank 1 (host' in ranks.said(0)
    assert ranks.codes(5, of=[1]) == [75]  # nothing in that process can run Python
    assert 'in hold_the_lock' in ranks.said(1)


@pytest.mark.parametrize('action', ['sleep', 'hold_the_lock'])
def test_a_run_on_one_rank_that_hangs_ends_too(start, action):
    ranks = start(action, timeout_seconds=2)
    assert ranks.codes(5) == [75]
    assert f'in {action}' in ranks.said(0)


def test_until_the_first_batch_is_done_progress_may_take_three_times_as_long(start):
    ranks = start('start_slowly 2', 'start_slowly 2', timeout_seconds=1)
    assert ranks.codes(6) == [0, 0]


def test_a_start_that_hangs_ends_too(start):
    ranks = start('start_slowly 60', timeout_seconds=0.5)
    began = time.monotonic()
    assert ranks.codes(6) == [75]
    assert time.monotonic() - began > 0.5
    assert 'at start of a stage' in ranks.said(0)


@pytest.mark.parametrize('victim', [0, 1])
def test_an_exception_of_one_rank_ends_all_with_its_code_and_its_name(start, victim):
    actions = ['wait', 'wait', 'wait']
    actions[victim] = 'fail'
    ranks = start(*actions)
    assert ranks.codes(5) == [1, 1, 1]
    for rank in {0, 1, 2} - {victim}:
        assert f'Rank {victim} (host ' in ranks.said(rank)
        assert 'failed, last at forward of batch 4: ValueError: the data is bad. Leaving with 1.' in ranks.said(rank)
    assert 'Traceback' in ranks.said(victim)
    assert 'Leaving with' not in ranks.said(victim)


def test_an_error_that_all_ranks_raise_ends_each_with_its_own_code(start):
    ranks = start('refuse', 'refuse', 'refuse')
    assert ranks.codes(5) == [2, 2, 2]


def test_an_error_of_the_user_on_one_rank_ends_all_with_2(start):
    ranks = start('train', 'refuse')
    assert ranks.codes(5) == [2, 2]


def test_ranks_that_finish_leave_at_once_and_without_a_word(start):
    ranks = start('train', 'train', 'train')
    (ranks.folder / 'stop').touch()
    assert ranks.codes(2) == [0, 0, 0]
    assert ranks.said().strip() == ''


def test_ranks_that_still_work_are_not_disturbed_by_those_that_have_finished(start):
    ranks = start('train', 'train', 'finish')
    assert ranks.codes(3, of=[2]) == [0]
    time.sleep(1)
    (ranks.folder / 'stop0').touch()
    assert ranks.codes(3, of=[0]) == [0]
    time.sleep(SETTINGS['gone_after_seconds'] + 0.5)
    (ranks.folder / 'stop').touch()
    assert ranks.codes(3, of=[1]) == [0]
    assert ranks.said().strip() == ''


def test_a_rank_that_hangs_after_rank_0_has_finished_ends_too(start):
    ranks = start('finish', 'sleep', timeout_seconds=2)
    assert ranks.codes(6) == [0, 75]
    assert 'Nothing moves: rank 1' in ranks.said(1)


def test_saves_and_evaluations_longer_than_a_silence_are_no_alarm(start):
    ranks = start('save 4.5', 'train', 'save 4.5', ready='')
    ranks.wait_until_ready()
    time.sleep(5)
    (ranks.folder / 'stop').touch()
    assert ranks.codes(3) == [0, 0, 0]
    assert ranks.said().strip() == ''


@pytest.mark.slow
@pytest.mark.parametrize('ending', ['killed', 'failed'])
def test_the_error_of_a_collective_is_explained_by_the_rank_that_caused_it(start, ending):
    action = 'all_reduce 1' if ending == 'failed' else 'all_reduce'
    ranks = start(action, action, action, ready='collective', gone_after_seconds=20, leave_seconds=5)
    if ending == 'killed':
        ranks.signal(2, signal.SIGKILL)
    code = 75 if ending == 'killed' else 1
    assert ranks.codes(15, of=[0, 1]) == [code, code]
    explained = [json.loads((ranks.folder / f'explained{rank}').read_text()) for rank in (0, 1)]
    for rank, (took, text) in enumerate(explained):
        assert took < 10  # by the closed connection or by the rank's own word, not by silence
        assert (ranks.folder / f'left{rank}').exists()  # the main thread came to its own end
        assert text.startswith('rank 2 (host ')
        assert (
            'is gone or frozen' if ending == 'killed' else 'failed, last at backward of batch 4: ValueError'
        ) in text


def test_an_error_of_this_rank_is_not_explained_and_nothing_is_waited_for():
    watchdog = Watchdog(rank=0, world_size=2, timeout_seconds=60, agree=lambda listen: listen())
    began = time.monotonic()
    assert watchdog.explain(ValueError('Connection closed by peer')) is None
    assert watchdog.explain(RuntimeError('The size of tensor a (3) must match')) is None
    assert time.monotonic() - began < 0.5


def test_a_rank_that_cannot_reach_rank_0_says_which_port_to_open():
    watchdog = Watchdog(
        rank=1,
        world_size=2,
        timeout_seconds=60,
        agree=lambda listen: (9, 'token'),
        host='127.0.0.1',
        interval_seconds=0.1,
        gone_after_seconds=0.3,
    )
    with pytest.raises(UserError, match=r'Rank 1 cannot reach rank 0 at 127\.0\.0\.1:9 .*refused.*check MASTER_ADDR'):
        watchdog.start()


def test_a_watch_that_fails_is_an_event_and_training_goes_on(monkeypatch, capfd):
    def find_hung(*args: object, **kwargs: object) -> None:
        raise RuntimeError('a bug of ours')

    monkeypatch.setattr(watchdog_module, 'find_hung', find_hung)
    events = []
    with Watchdog(
        rank=0,
        world_size=1,
        timeout_seconds=60,
        agree=lambda listen: listen(),
        record=lambda event, **fields: events.append((event, fields)),
        interval_seconds=0.05,
    ):
        end = time.monotonic() + 5
        while not events and time.monotonic() < end:
            time.sleep(0.01)
    assert events == [('watch_failed', {'rank': 0, 'reason': "RuntimeError('a bug of ours')"})]
    assert 'The watchdog of rank 0 has failed' in capfd.readouterr().err
