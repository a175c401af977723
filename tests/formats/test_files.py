"""A file is written whole or not at all, and nothing is written through a link."""

import os

import pytest

from rewarm.formats.files import write_whole


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
