"""The lock of a run folder: held by one, never through a link, and what refuses it is said by its kind."""

import errno
import fcntl
import json
import os
import stat
import subprocess
import sys

import pytest

from rewarm.config.errors import DamagedFile, UserError
from rewarm.report.owner import find_owner
from rewarm.resume.lock import run_lock

HOLD = """
import sys, pathlib
from rewarm.resume.lock import run_lock
with run_lock(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, '-c', HOLD, tmp_path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == 'held\n'
    yield process
    process.communicate('')


def test_a_held_folder_names_its_holder_and_is_free_when_that_is_gone(tmp_path, holder):
    with pytest.raises(UserError, match=f'in use by process {holder.pid} on .*, for 0 minutes'), run_lock(tmp_path):
        pass
    owner = find_owner(tmp_path)
    assert owner is not None
    assert owner.pid == holder.pid
    holder.communicate('')
    with run_lock(tmp_path):
        assert json.loads((tmp_path / 'run.lock').read_text())['pid'] == os.getpid()
    assert find_owner(tmp_path) is None


@pytest.mark.parametrize(
    'text', ['', '[' * 99_999, '{"pid": "x", "host": 5}', '{"pid": 1, "host": "h", "since": 1e999}', '\udcff', '[]']
)
def test_a_holder_that_says_nothing_of_use_is_another_process(tmp_path, holder, text):
    (tmp_path / 'run.lock').write_text(text, errors='surrogateescape')
    with pytest.raises(UserError, match='in use by another process'), run_lock(tmp_path):
        pass
    owner = find_owner(tmp_path)
    assert owner is not None
    assert (owner.pid, owner.host) == (holder.pid, None)


@pytest.mark.parametrize('kind', ['folder', 'link', 'link to nothing', 'pipe', 'device'])
def test_a_lock_that_is_no_file_is_refused_in_words_and_nothing_is_written(tmp_path, kind):
    run, mine = tmp_path / 'run', tmp_path / 'mine'
    run.mkdir()
    path = run / 'run.lock'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind == 'device':
        path.symlink_to('/dev/zero')
    else:
        path.symlink_to(mine)
        if kind == 'link':
            mine.write_text('precious')
    with (
        pytest.raises(UserError, match=r'run\.lock is (a link|a folder|no regular file).* Move it away'),
        run_lock(run),
    ):
        pass
    assert not mine.exists() or mine.read_text() == 'precious'
    if kind not in ('link', 'link to nothing'):
        with pytest.raises(DamagedFile, match=r'run\.lock'):
            find_owner(run)


def test_nobody_else_may_write_to_the_lock_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        with run_lock(tmp_path):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / 'run.lock').stat().st_mode) == 0o644


@pytest.mark.parametrize(
    ('number', 'words'),
    [
        (errno.EAGAIN, 'in use by'),
        (errno.EACCES, 'in use by'),
        (errno.ENOLCK, 'gives no locks .*Write another `run_folder`'),
        (errno.ENOSYS, 'gives no locks .*s3://bucket/prefix'),
        (errno.EOPNOTSUPP, 'gives no locks'),
        (errno.EINVAL, 'gives no locks'),
        (errno.EIO, 'Input/output error.*system log'),
        (errno.ESTALE, 'cannot be locked .*file server'),
        (errno.EROFS, 'Read-only file system'),
    ],
)
def test_why_a_lock_is_refused_is_said_by_its_kind(tmp_path, monkeypatch, number, words):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, 'lockf', refuse)
    with pytest.raises(UserError, match=words) as caught, run_lock(tmp_path):
        pass
    assert ('in use' in str(caught.value)) == (number in (errno.EAGAIN, errno.EACCES))
    monkeypatch.setattr(fcntl, 'fcntl', refuse)
    if 'no locks' in words:
        assert find_owner(tmp_path) is None
    else:
        with pytest.raises(DamagedFile, match='cannot be asked'):
            find_owner(tmp_path)
