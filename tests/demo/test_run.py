"""The demo's folder: what is written there, what is replaced, and what is the user's."""

import os
from pathlib import Path

import pytest

from rewarm.config.errors import UserError
from rewarm.demo import run


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_starting_over_removes_only_what_it_names(capsys):
    for name in ('runs/demo-rewarm', 'runs/mine'):
        Path(name).mkdir(parents=True)
        Path(name, 'run.lock').touch()
    run.start_over([Path('runs/demo-rewarm'), Path('runs/demo-scratch')])
    assert os.listdir('runs') == ['mine']
    assert 'runs/demo-rewarm' in capsys.readouterr().out


@pytest.mark.parametrize('kind', ['folder', 'link', 'file'])
def test_what_the_demo_has_not_made_is_never_removed(kind):
    Path('mine/text').mkdir(parents=True)
    Path('data').mkdir()
    if kind == 'folder':
        Path('data/demo').mkdir()
        Path('data/demo/my-corpus.jsonl').touch()
    elif kind == 'link':
        Path('data/demo').symlink_to('../mine')
    else:
        Path('data/demo').touch()
    Path('runs/demo-quick').mkdir(parents=True)
    with pytest.raises(UserError, match='data/demo was not made by the demo'):
        run.start_over([Path('runs/demo-quick'), Path('data/demo')])
    assert Path('mine/text').exists()
    assert Path('runs/demo-quick').exists()


def test_its_run_files_are_written_once_and_edited_ones_are_kept(tmp_path, capsys):
    run.enter(Path('a/demo'))
    assert Path.cwd() == tmp_path / 'a/demo'
    assert {path.name for path in Path('yamls/demo').iterdir()} >= {'quick.yaml', *(f'{arm}.yaml' for arm in run.ARMS)}
    assert capsys.readouterr().out == ''
    quick = Path('yamls/demo/quick.yaml')
    quick.write_text(quick.read_text().replace('seed: 17', 'seed: 18'))
    run.enter(tmp_path / 'a/demo')
    assert 'Using your versions of yamls/demo/quick.yaml' in capsys.readouterr().out
    assert 'seed: 18' in quick.read_text()


def test_a_place_that_is_no_folder_is_said():
    Path('file').touch()
    with pytest.raises(UserError, match=r'file: no folder can be made there'):
        run.run_demo(Path('file'))
