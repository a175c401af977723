"""Retention counts complete checkpoints only; nothing is deleted through a link or that somebody else put there."""

import os
import shutil

import pytest
import torch

from rewarm.resume.checkpoint import remove_leftovers, retain, write
from rewarm.resume.folders import set_aside


def save(root, batch):
    return write(root, batch=batch, model={'a': torch.ones(4)}, optimizer={}, state={})


def names(root):
    return sorted(path.name for path in root.glob('ba*'))


def test_retention_counts_what_is_on_disk_and_never_deletes_a_stage_end_or_what_it_did_not_write(tmp_path):
    for batch in range(1, 8):
        save(tmp_path, batch)
    (tmp_path / 'ba-mine').mkdir()
    (tmp_path / 'ba00000001.broken').mkdir()
    (tmp_path / 'ba00000002/note').write_text('keep me')
    retain(tmp_path, keep=2, stage_ends={3})
    assert names(tmp_path) == [
        'ba-mine', 'ba00000001.broken', 'ba00000002', 'ba00000003', 'ba00000006', 'ba00000007',
    ]  # fmt: skip


def half_copied(path):
    path.mkdir()
    shutil.copy(path.with_name('ba00000003') / 'manifest.json', path)
    (path / 'model.safetensors').write_bytes(b'x')


@pytest.mark.parametrize(
    'make',
    [
        lambda path: path.mkdir(),
        lambda path: path.write_text('a file'),
        lambda path: path.symlink_to('ba00000003'),
        lambda path: path.symlink_to('nowhere'),
        lambda path: os.mkfifo(path),
        half_copied,
        lambda path: (path.mkdir(), (path / 'manifest.json').write_text('[' * 99_999)),
        lambda path: (half_copied(path), (path / 'model.safetensors').unlink(), os.mkfifo(path / 'model.safetensors')),
    ],
)
def test_what_is_no_complete_checkpoint_does_not_push_out_a_complete_one(tmp_path, make):
    for batch in (1, 2, 3):
        save(tmp_path, batch)
    for batch in (40, 50, 60):
        make(tmp_path / f'ba{batch:08d}')
    before = names(tmp_path)
    assert retain(tmp_path, keep=3, stage_ends=()) == []
    assert names(tmp_path) == before
    assert [path.name for path in retain(tmp_path, keep=1, stage_ends=())] == ['ba00000001', 'ba00000002']
    assert names(tmp_path) == before[2:]


def test_an_older_one_that_is_torn_goes_with_its_age(tmp_path):
    for batch in (1, 2, 3):
        save(tmp_path, batch)
    os.truncate(tmp_path / 'ba00000001/model.safetensors', 1)
    retain(tmp_path, keep=2, stage_ends=())
    assert names(tmp_path) == ['ba00000002', 'ba00000003']


def test_a_linked_old_checkpoint_is_left_alone_and_is_no_obstacle(tmp_path):
    root, disk = tmp_path / 'checkpoints', tmp_path / 'big-disk'
    for batch in (1, 2, 3):
        save(root, batch)
    (root / 'ba00000001').rename(disk)
    (root / 'ba00000001').symlink_to(disk)
    assert [path.name for path in retain(root, keep=1, stage_ends=())] == ['ba00000002']
    remove_leftovers(root)
    assert (root / 'ba00000001').is_symlink()
    assert (disk / 'model.safetensors').exists()


def test_leftovers_of_a_kill_are_removed_and_not_what_they_link_to(tmp_path):
    save(tmp_path, 1)
    (tmp_path / '.writing-ba00000002').mkdir()
    (tmp_path / '.writing-latest').write_text('x')
    (tmp_path / '.writing-x').symlink_to('ba00000001')
    (tmp_path / '.writing-gone-x').symlink_to('nowhere')
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['ba00000001', 'latest']
    assert (tmp_path / 'ba00000001/model.safetensors').exists()


def test_a_leftover_of_a_deletion_does_not_stop_the_next_one(tmp_path):
    for batch in (1, 2):
        save(tmp_path, batch)
    (tmp_path / '.writing-gone-ba00000001').mkdir()
    (tmp_path / '.writing-gone-ba00000001/left').write_text('x')
    retain(tmp_path, keep=1, stage_ends=())
    assert sorted(path.name for path in tmp_path.iterdir()) == ['ba00000002', 'latest']


def test_what_was_set_aside_before_stays_whatever_it_is(tmp_path):
    (tmp_path / 'ba00000001.broken').mkdir()
    (tmp_path / 'ba00000001.broken/mine').write_text('x')
    (tmp_path / 'ba00000001.2.broken').symlink_to('nowhere')
    (tmp_path / 'ba00000001.3.broken').write_text('a file')
    (tmp_path / 'ba00000001').mkdir()
    assert set_aside(tmp_path / 'ba00000001').name == 'ba00000001.4.broken'
    assert (tmp_path / 'ba00000001.broken/mine').exists()
    assert len(names(tmp_path)) == 4
