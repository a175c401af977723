"""``rewarm examples``: what is written is what the repository has, and nothing of the user's is touched."""

import os
from pathlib import Path

import pytest

from rewarm.cli.examples import examples
from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.shipped import shipped_files, write_shipped

ROOT = Path(__file__).parents[2]


def content(folder: Path) -> dict[str, tuple[bytes, bool]]:
    files = (path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): (path.read_bytes(), os.access(path, os.X_OK)) for path in files}


def test_run_files_and_recipes_are_written_a_line_each(tmp_path, capsys):
    examples(tmp_path / 'new/folder')
    assert content(tmp_path / 'new/folder/yamls') == content(ROOT / 'yamls')
    assert content(tmp_path / 'new/folder/scripts/launch') == content(ROOT / 'scripts/launch')
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(shipped_files()) > 15
    for line in lines:
        name, what = line.split('  ', 1)
        assert (tmp_path / name).is_file()
        assert len(what.split()) > 3, 'each file says at its top what it is'
    assert load(tmp_path / 'new/folder/yamls/pythia-410m/rewarm.yaml').run_name == 'pythia-410m-rewarm'


def test_a_file_that_is_there_stays_and_nothing_else_is_written(tmp_path):
    mine = tmp_path / 'yamls/demo/quick.yaml'
    mine.parent.mkdir(parents=True)
    mine.write_text('mine')
    with pytest.raises(UserError, match=r'quick.yaml would be overwritten; name another folder'):
        write_shipped(tmp_path)
    assert content(tmp_path) == {'yamls/demo/quick.yaml': (b'mine', False)}


def test_a_link_to_nowhere_is_not_written_through(tmp_path):
    (tmp_path / 'yamls').mkdir()
    (tmp_path / 'yamls/run.schema.json').symlink_to(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match='would be overwritten'):
        write_shipped(tmp_path)
    assert not (tmp_path / 'elsewhere').exists()


def test_a_place_that_is_no_folder_is_said(tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'file.*cannot be written'):
        write_shipped(tmp_path / 'file')
