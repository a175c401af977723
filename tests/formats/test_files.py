"""A file is written whole or not at all, and nothing is written through a link."""

import os
import stat
import tempfile

import pytest

from rewarm.config.errors import UserError
from rewarm.formats.files import private_folder, write_whole


def test_a_file_is_replaced_and_a_link_in_its_place_is_not_followed(tmp_path):
    (tmp_path / 'mine').write_text('precious')
    (tmp_path / 'target').symlink_to(tmp_path / 'mine')
    (tmp_path / '.writing-target').symlink_to(tmp_path / 'mine')
    write_whole(tmp_path / 'target', b'new')
    assert (tmp_path / 'target').read_text() == 'new'
    assert not (tmp_path / 'target').is_symlink()
    assert (tmp_path / 'mine').read_text() == 'precious'
    assert sorted(os.listdir(tmp_path)) == ['mine', 'target']


def test_a_disk_that_is_full_leaves_the_file_as_it_was(tmp_path):
    (tmp_path / 'file').write_text('old')
    (tmp_path / '.writing-file').mkdir()
    with pytest.raises(OSError):
        write_whole(tmp_path / 'file', b'new')
    assert (tmp_path / 'file').read_text() == 'old'


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """An empty system's temporary folder."""
    monkeypatch.setenv('TMPDIR', str(tmp_path))
    monkeypatch.setattr(tempfile, 'tempdir', None)
    return tmp_path


@pytest.mark.parametrize('umask', [0, 0o022, 0o077, 0o277])
def test_each_level_of_a_private_folder_is_this_users_alone_whatever_the_umask(temporary, umask):
    before = os.umask(umask)
    try:
        path = private_folder('rewarm-1', 'run')
        assert private_folder('rewarm-1', 'run') == path
    finally:
        os.umask(before)
    assert path == temporary / 'rewarm-1/run'
    assert {stat.S_IMODE(each.stat().st_mode) for each in (path, path.parent)} == {0o700}


def folder(path):
    path.mkdir()
    return path


@pytest.mark.parametrize('level', [0, 1])
@pytest.mark.parametrize(
    ('prepare', 'words'),
    [
        (lambda path: path.symlink_to(folder(path.with_name('elsewhere'))), 'no folder but a link'),
        (lambda path: path.symlink_to('nowhere'), 'no folder but a link'),
        (lambda path: path.write_text('x'), 'no folder but a link or a file'),
        (lambda path: os.mkfifo(path), 'no folder'),
        (lambda path: folder(path).chmod(0o770), r'other users may write to it \(mode 0770\).*chmod -R go-w'),
        (lambda path: folder(path).chmod(0o1777), 'other users may write'),
        (lambda path: os.chown(folder(path), 65534, -1), 'belongs to user 65534.*TMPDIR'),
    ],
)
def test_a_folder_that_somebody_else_may_have_prepared_is_refused(temporary, level, prepare, words):
    names = ('rewarm-1', 'run')
    path = temporary.joinpath(*names[: level + 1])
    path.parent.mkdir(exist_ok=True, mode=0o700)
    try:
        prepare(path)
    except PermissionError:
        pytest.skip('only root may give a folder to another user')
    with pytest.raises(UserError, match=words):
        private_folder(*names)


def test_a_private_folder_of_an_earlier_version_goes_on_to_be_used(temporary):
    folder(temporary / 'rewarm-1').chmod(0o755)
    assert private_folder('rewarm-1', 'run').is_dir()


def test_a_temporary_folder_that_cannot_be_used_is_said_with_the_way_out(temporary, monkeypatch):
    (temporary / 'file').write_text('')
    monkeypatch.setattr(tempfile, 'tempdir', str(temporary / 'file'))
    with pytest.raises(UserError, match=r'cannot be made .*Set TMPDIR'):
        private_folder('a')
