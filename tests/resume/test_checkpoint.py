"""A checkpoint is visible only when whole; hashes tell what was damaged later; stage ends stay."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file

from rewarm.config.errors import UserError
from rewarm.resume.checkpoint import find_newest_valid, open_checkpoint, problems, remove_leftovers, retain, write


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
        (lambda p: (p / 'state.json').unlink(), 'cannot be read'),
        (lambda p: (p / 'manifest.json').write_text('{'), 'manifest.json cannot be read'),
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
    os.truncate(save(tmp_path, 1) / 'model.safetensors', 9)  # only one who reads it can tell
    os.truncate(save(tmp_path, 2) / 'model.safetensors', 9)
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


def test_retention_counts_what_is_on_disk_and_never_deletes_a_stage_end_or_what_it_did_not_write(tmp_path):
    for batch in range(1, 8):
        save(tmp_path, batch)
    (tmp_path / 'ba-mine').mkdir()
    (tmp_path / 'ba00000001.broken').mkdir()
    retain(tmp_path, keep=2, stage_ends={3})
    assert sorted(p.name for p in tmp_path.glob('ba*')) == [
        'ba-mine', 'ba00000001.broken', 'ba00000003', 'ba00000006', 'ba00000007',
    ]  # fmt: skip


def test_leftovers_of_a_kill_are_removed(tmp_path):
    save(tmp_path, 1)
    (tmp_path / '.writing-ba00000002').mkdir()
    (tmp_path / '.writing-latest').write_text('x')
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ba00000001', 'latest']


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
