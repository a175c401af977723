"""The layer sees every changing call, however it is made, and does to it what the test decides."""

import ctypes
import errno
import os
import signal
import subprocess
import sys

import pytest

from tests.faults.layer import disk_full_from, fail_at, kill_at, read_only_from, run, short_write_at
from tests.faults.syscalls import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason='the numbers of system calls are those of Linux on x86-64')


def watch(folder, program, **kwargs):
    (folder / 'in').mkdir()
    return run(program, folder / 'in', log=folder / 'log', seconds=30, **kwargs)


def save(folder):
    """Writes a file the way a careful program does."""

    def program():
        path = folder / 'in' / 'a'
        with path.with_suffix('.tmp').open('wb', buffering=0) as file:
            file.write(b'x' * 10)
            os.fsync(file.fileno())
        path.with_suffix('.tmp').rename(path)
        return 7

    return program


def test_calls_are_listed_in_order_with_their_files(tmp_path):
    done = watch(tmp_path, save(tmp_path))
    assert done.code == 7, (tmp_path / 'log').read_text()
    assert [(call.name, call.path) for call in done.calls] == [
        ('openat', 'a.tmp'),
        ('write', 'a.tmp'),
        ('fsync', 'a.tmp'),
        ('close', 'a.tmp'),
        ('rename', 'a.tmp -> a'),
    ]
    assert done.struck == []


@pytest.mark.parametrize(('number', 'left'), [(1, {}), (2, {'a.tmp': 0}), (5, {'a.tmp': 10}), (6, {'a': 10})])
def test_a_kill_comes_before_the_call(tmp_path, number, left):
    done = watch(tmp_path, save(tmp_path), decide=kill_at(number))
    assert done.code == (-signal.SIGKILL if number < 6 else 7)
    assert {path.name: path.stat().st_size for path in (tmp_path / 'in').iterdir()} == left


@pytest.mark.parametrize(
    ('decide', 'error', 'left'),
    [
        (fail_at(3, errno.EIO), 'Errno 5', {'a.tmp': 10}),
        (disk_full_from(2), 'Errno 28', {'a.tmp': 0}),
        (read_only_from(4), 'Errno 30', {'a.tmp': 10}),  # closing changes nothing, renaming does
    ],
)
def test_a_call_fails_as_decided_and_does_nothing(tmp_path, decide, error, left):
    done = watch(tmp_path, save(tmp_path), decide=decide)
    assert done.code == 1
    assert error in (tmp_path / 'log').read_text()
    assert {path.name: path.stat().st_size for path in (tmp_path / 'in').iterdir()} == left


def test_a_short_write_takes_half_and_says_so(tmp_path):
    def program():
        file = os.open(tmp_path / 'in' / 'a', os.O_WRONLY | os.O_CREAT)
        return [os.write(file, b'0123456789'), os.write(file, b'56789')] == [5, 5]

    assert watch(tmp_path, program, decide=short_write_at(2)).code == 1
    assert (tmp_path / 'in' / 'a').read_bytes() == b'0123456789'


def test_calls_without_libc_of_threads_and_of_other_programs_are_seen(tmp_path):
    def program():
        folder = tmp_path / 'in'
        folder.joinpath('a').touch()
        ctypes.CDLL(None).syscall(82, str(folder / 'a').encode(), str(folder / 'b').encode())
        subprocess.run([sys.executable, '-c', f'import os; os.mkdir({str(folder / "c")!r})'], check=True)
        directory = os.open(folder, os.O_RDONLY)
        os.rmdir('c', dir_fd=directory)
        os.chdir(folder)
        os.unlink('b')
        return 0

    done = watch(tmp_path, program)
    assert done.code == 0, (tmp_path / 'log').read_text()
    assert [(call.name, call.path) for call in done.calls if call.name not in ('openat', 'close')] == [
        ('rename', 'a -> b'), ('mkdir', 'c'), ('unlinkat', 'c'), ('unlink', 'b'),
    ]  # fmt: skip


def test_a_program_that_does_not_end_is_killed(tmp_path):
    (tmp_path / 'in').mkdir()
    with pytest.raises(TimeoutError, match='mkdir b'):
        run(lambda: os.mkdir(tmp_path / 'in/b') or signal.pause(), tmp_path / 'in', log=tmp_path / 'log', seconds=1)
