import pytest

from rewarm.config.errors import UserError
from rewarm.resume.verdict import Member, exit_code_of, find_failed, find_hung, find_lost, may_be_an_echo


def member(rank: int, **known) -> Member:
    return Member(rank, **{'host': f'host{rank}', 'pid': 100 + rank, 'patience': 1.0, **known})


def test_of_ranks_that_stand_still_the_one_with_least_progress_is_the_cause():
    ranks = [
        member(0, count=12, where='backward of batch 3', idle_seconds=61),
        member(1, count=11, where='forward of batch 3', idle_seconds=62),
        member(2, count=12, where='backward of batch 3', idle_seconds=63),
    ]
    cause = find_hung(ranks, idle_seconds=60)
    assert cause is not None
    assert (cause.kind, cause.rank, cause.exit_code) == ('hung', 1, 75)
    assert cause.text == (
        'nothing moves: rank 1 (host host1, pid 101) is the furthest behind, for 62 s at forward of batch 3'
    )


def test_of_equal_ranks_the_one_that_stands_longest_is_the_cause():
    cause = find_hung([member(rank, count=5, idle_seconds=60 + rank) for rank in range(3)], idle_seconds=60)
    assert cause is not None
    assert cause.rank == 2


def test_nothing_hangs_while_any_rank_moves_or_may_still_take_its_time():
    still = member(0, idle_seconds=100)
    assert find_hung([still], idle_seconds=60) is not None
    assert find_hung([still, member(1, idle_seconds=1)], idle_seconds=60) is None
    assert find_hung([still, member(1, idle_seconds=100, patience=3)], idle_seconds=60) is None
    assert find_hung([], idle_seconds=60) is None


def test_a_rank_that_has_left_is_neither_hung_nor_lost():
    gone = member(1, idle_seconds=0, silent_seconds=100, closed_seconds=100, left=(0, 'finished'))
    assert find_lost([gone], silent_seconds=10, closed_seconds=2) is None
    still = member(0, idle_seconds=100)
    cause = find_hung([still, gone], idle_seconds=60)
    assert cause is not None
    assert cause.rank == 0


def test_silence_and_a_closed_connection_mean_that_a_rank_is_gone():
    for known in ({'silent_seconds': 10}, {'silent_seconds': 3, 'closed_seconds': 2}):
        cause = find_lost(
            [member(0), member(1, where='forward of batch 9', **known)], silent_seconds=10, closed_seconds=2
        )
        assert cause is not None
        assert (cause.kind, cause.rank, cause.exit_code) == ('lost', 1, 75)
        assert cause.text.startswith('rank 1 (host host1, pid 101) is gone or frozen: last heard ')
        assert cause.text.endswith(' s ago, last at forward of batch 9')
    for known in (
        {'silent_seconds': 9},
        {'silent_seconds': 9, 'closed_seconds': 1},
        {'silent_seconds': 29, 'patience': 3.0},
    ):
        assert find_lost([member(1, **known)], silent_seconds=10, closed_seconds=2) is None


def test_a_rank_that_failed_is_the_cause_with_its_own_code():
    assert find_failed([member(0), member(1, left=(0, 'finished')), member(2, left=(75, 'SIGTERM'))]) is None
    cause = find_failed([member(1, left=(75, '')), member(2, where='its start', left=(1, 'ValueError: bad'))])
    assert cause is not None
    assert (cause.rank, cause.exit_code) == (2, 1)
    assert cause.text == 'rank 2 (host host2, pid 102) failed, last at its start: ValueError: bad'


@pytest.mark.parametrize(
    ('error', 'expected'),
    [
        (RuntimeError('[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer [::1]:1'), True),
        (RuntimeError('[../third_party/gloo/gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1ms'), True),
        (RuntimeError('NCCL error in: ProcessGroupNCCL.cpp:2395, remote process exited'), True),
        (RuntimeError('mat1 and mat2 shapes cannot be multiplied'), False),
        (ValueError('Connection closed by peer'), False),
        (KeyError('x'), False),
    ],
)
def test_only_what_collectives_raise_may_be_the_echo_of_another_ranks_end(error, expected):
    assert may_be_an_echo(error) is expected
    outer = TypeError('in a callback')
    outer.__cause__ = error
    assert may_be_an_echo(outer) is expected


@pytest.mark.parametrize(
    ('error', 'code'),
    [(UserError('x'), 2), (ValueError('x'), 1), (SystemExit(75), 75), (SystemExit(), 0), (SystemExit('words'), 1)],
)
def test_exit_codes_of_errors(error, code):
    assert exit_code_of(error) == code
