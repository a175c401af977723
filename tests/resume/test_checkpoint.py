"""A checkpoint is visible only when whole; hashes tell what was damaged later; stage ends stay."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from rewarm.config.errors import UserError
from rewarm.resume.checkpoint import find_newest_valid, open_checkpoint, problems, write


def save(root, batch, value=1.0):
    tensors = {'a': torch.full((4, 5), value), 'b': torch.arange(3.0)}
    return write(root, batch=batch, model=tensors, optimizer={'a.exp_avg': tensors['a']}, state={'tokens': batch})


def test_write_is_readable_by_the_library_and_verifies(tmp_path):
    path = save(tmp_path, 7)
    assert path.name == 'ba00000007'
    assert problems(path) == []
    torch.testing.assert_close(load_file(path / 'model.safetensors')['a'], torch.ones(4, 5))
    assert open_checkpoint(path).state == {'format': 1, 'batch': 7, 'tokens': 7}
    assert (tmp_path / 'latest').read_text() == 'ba00000007\n'
    assert {p.suffix for p in path.iterdir()} == {'.safetensors', '.json'}  # nothing that needs unpickling


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (lambda p: os.truncate(p / 'model.safetensors', 9), 'instead of'),
        (lambda p: (p / 'state.json').unlink(), 'state.json is missing'),
        (lambda p: (p / 'manifest.json').write_text('{'), 'manifest.json: byte 1: no JSON'),
        (lambda p: (p / 'manifest.json').write_text('{"format": 1, "files": {}}'), 'does not list'),
        (lambda p: (p / 'state.json').write_bytes(b'\0' * (p / 'state.json').stat().st_size), 'does not hash'),
    ],
)
def test_damage_is_named_and_the_older_checkpoint_taken(tmp_path, damage, words):
    save(tmp_path, 1)
    damage(save(tmp_path, 2))
    assert words in '; '.join(problems(tmp_path / 'ba00000002'))
    events = []
    found = find_newest_valid(tmp_path, lambda event, **fields: events.append((event, fields)))
    assert found is not None
    assert found.batch == 1
    assert words in events[0][1]['reason']
    assert (tmp_path / 'ba00000002.broken').is_dir()


def test_what_was_found_whole_a_moment_ago_is_not_read_again_and_newer_ones_are(tmp_path):
    for batch in (1, 2):
        with (save(tmp_path, batch) / 'model.safetensors').open('r+b') as file:
            file.seek(-1, os.SEEK_END)
            file.write(b'x')  # only one who reads all of it can tell
    found = find_newest_valid(tmp_path, lambda *_, **__: None, hashed='ba00000001')
    assert found is not None
    assert found.batch == 1
    assert (tmp_path / 'ba00000002.broken').is_dir()


def test_nothing_saved_is_none_and_all_broken_is_refused_even_the_next_time(tmp_path):
    assert find_newest_valid(tmp_path / 'absent', print) is None
    os.truncate(save(tmp_path, 1) / 'model.safetensors', 3)
    for _ in range(2):
        with pytest.raises(UserError, match='does not start over by itself'):
            find_newest_valid(tmp_path, print)
    (tmp_path / 'ba00000001').rename(tmp_path / 'ba00000001.broken')
    with pytest.raises(UserError, match='set aside earlier'):
        find_newest_valid(tmp_path, print)


def test_full_disk_leaves_no_checkpoint(tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, 'No space left on device')

    save(tmp_path, 1)
    monkeypatch.setattr('rewarm.resume.checkpoint.save_file', full)
    with pytest.raises(OSError, match='No space'):
        save(tmp_path, 2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ba00000001', 'latest']


def test_saving_the_same_batch_again_replaces_it(tmp_path):
    save(tmp_path, 1, 1.0)
    path = save(tmp_path, 1, 2.0)
    assert problems(path) == []
    assert load_file(path / 'model.safetensors')['a'][0, 0] == 2.0
    assert json.loads((path / 'manifest.json').read_text())['format'] == 1


def test_a_draft_that_is_a_link_is_not_written_through(tmp_path):
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'mine').write_text('precious')
    (tmp_path / '.writing-ba00000001').symlink_to('elsewhere')
    (tmp_path / '.writing-latest').symlink_to('mine')
    (tmp_path / 'latest').symlink_to('mine')
    assert problems(save(tmp_path, 1)) == []
    assert list((tmp_path / 'elsewhere').iterdir()) == []
    assert (tmp_path / 'mine').read_text() == 'precious'
    assert (tmp_path / 'latest').read_text() == 'ba00000001\n'


@pytest.mark.parametrize('what', ['a file', 'a link', 'a dangling link', 'an empty folder', 'a folder with notes'])
def test_whatever_has_the_name_of_a_checkpoint_is_set_aside_when_it_is_written_and_when_it_is_read(tmp_path, what):
    for number, root in enumerate((tmp_path / 'write', tmp_path / 'read')):
        save(root, 1)
        (root / 'mine').mkdir()
        (root / 'mine/note').write_text('precious')
        path = root / 'ba00000002'
        if what == 'a file':
            path.write_text('precious')
        elif 'link' in what:
            path.symlink_to('nowhere' if what == 'a dangling link' else 'mine')
        else:
            path.mkdir()
            if 'notes' in what:
                (path / 'note').write_text('precious')
        if number == 0:
            assert problems(save(root, 2)) == []
        else:
            found = find_newest_valid(root, lambda *_, **__: None)
            assert found is not None
            assert found.batch == 1
        aside = root / 'ba00000002.broken'
        assert os.path.lexists(aside)
        assert (root / 'mine/note').read_text() == 'precious'
        if what == 'a file':
            assert aside.read_text() == 'precious'
        elif 'notes' in what:
            assert (aside / 'note').read_text() == 'precious'


@pytest.mark.parametrize('latest', ['a folder', 'a pipe', 'bytes', 'a huge file', 'a link to a device'])
def test_latest_that_is_no_name_stops_nobody(tmp_path, latest):
    save(tmp_path, 1)
    path = tmp_path / 'latest'
    path.unlink()
    if latest == 'a folder':
        path.mkdir()
        (path / 'note').write_text('precious')
    elif latest == 'a pipe':
        os.mkfifo(path)
    elif latest == 'bytes':
        path.write_bytes(b'\xff\0\n')
    elif latest == 'a huge file':
        path.touch()
        os.truncate(path, 1 << 40)
    else:
        path.symlink_to('/dev/zero')
    found = find_newest_valid(tmp_path, lambda *_, **__: None)
    assert found is not None
    assert path.read_text() == 'ba00000001\n'
    if latest == 'a folder':
        assert (tmp_path / 'latest.broken/note').read_text() == 'precious'


def test_what_cannot_be_set_aside_is_said_in_words(tmp_path, monkeypatch):
    def busy(*_):
        raise OSError(16, 'Device or resource busy')  # a mount point

    save(tmp_path, 1)
    (tmp_path / 'ba00000002').mkdir()
    monkeypatch.setattr(type(tmp_path), 'rename', busy)
    with pytest.raises(UserError, match=r'ba00000002 cannot be used .*busy.* Move it away'):
        find_newest_valid(tmp_path, print)
