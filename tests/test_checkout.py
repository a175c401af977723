from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rewarm.checkout import PROJECT, find_commit


def git(folder: Path, *arguments: str) -> str:
    who = ['-c', 'user.name=a', '-c', 'user.email=a@b']
    return subprocess.run(
        ['git', '-C', str(folder), *who, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    folder = tmp_path / 'project'
    folder.mkdir()
    git(folder, 'init', '-q', '-b', 'main')
    for message in ('one', 'two'):
        git(folder, 'commit', '-q', '--allow-empty', '-m', message)
    return folder


def test_the_commit_is_what_git_says(checkout, tmp_path):
    git(checkout, 'worktree', 'add', '-q', '-b', 'group/other', str(tmp_path / 'other'), 'HEAD^')
    for pack in (False, True):
        if pack:
            git(checkout, 'pack-refs', '--all')
        for folder in (checkout, tmp_path / 'other'):
            assert find_commit(folder) == git(folder, 'rev-parse', 'HEAD')
    git(checkout, 'checkout', '-q', '--detach', 'HEAD^')
    assert find_commit(checkout) == git(checkout, 'rev-parse', 'HEAD')


def test_no_commit_where_there_is_none(tmp_path):
    assert find_commit(tmp_path) is None
    git(tmp_path, 'init', '-q')
    assert find_commit(tmp_path) is None
    (tmp_path / '.git' / 'HEAD').write_bytes(b'\xff')
    assert find_commit(tmp_path) is None
    (tmp_path / '.git' / 'HEAD').write_text('no hash')
    assert find_commit(tmp_path) is None


def test_this_project_is_found():
    assert (PROJECT / 'rewarm' / 'train.py').is_file()
