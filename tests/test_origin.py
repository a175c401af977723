"""A run starts from whatever a user calls a checkpoint, here or in a bucket; what it is of is compared first."""

import os
import shutil
from pathlib import Path

import pytest
from composer.utils import dist, get_device

from rewarm.config.errors import UserError
from rewarm.config.load import load, read_settings
from rewarm.config.stages import read_previous_lr
from rewarm.origin import find_origin
from rewarm.resume.state import load_model
from tests.exchange.conftest import *  # noqa: F403
from tests.exchange.conftest import RUN_FILE, make_model


@pytest.fixture(autouse=True)
def process_group():
    dist.initialize_dist(get_device('cpu'))


def settings(folder: Path, origin: str, *changes: tuple[str, str]):
    text = RUN_FILE.replace('runs/small', 'runs/fork').replace('hf:EleutherAI/pythia-14m', f'checkpoint:{origin}')
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / 'fork.yaml').write_text(text)
    return load(folder / 'fork.yaml')


@pytest.mark.parametrize(
    ('place', 'batch'), [('', 10), ('/checkpoints', 10), ('/checkpoints/latest', 10), ('/checkpoints/ba00000005', 5)]
)
def test_each_name_of_a_checkpoint_is_a_start(run, tmp_path, place, batch):
    config = settings(
        tmp_path, f'{run}{place}', ('lr: 1e-3', 'lr: current')
    )  # the plan finds the rate by the same names
    assert read_previous_lr(config) == (1e-3, None)
    origin = find_origin(config, None)
    assert (origin.checkpoint.batch, origin.lr) == (batch, 1e-3)


def test_a_relative_path_and_a_home_are_a_start(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('HOME', str(tmp_path))
    for place in ('runs/small', '~/runs/small'):
        assert find_origin(settings(tmp_path, place), None).checkpoint.batch == 10


@pytest.mark.parametrize(('place', 'batch'), [('', 10), ('/checkpoints/latest', 10), ('/checkpoints/ba00000005', 5)])
def test_one_in_a_bucket_is_brought_and_goes_when_the_run_has_its_own(bucket, tmp_path, monkeypatch, place, batch):
    shutil.rmtree(tmp_path / 'runs')
    (tmp_path / 'tmp').mkdir()
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'tmp'))
    config = settings(tmp_path, bucket + place)
    origin = find_origin(config, None)
    assert origin.checkpoint.batch == batch
    model = make_model(0)
    load_model(model, origin.checkpoint)
    assert all(
        each.equal(other) for each, other in zip(model.state_dict().values(), make_model(batch).state_dict().values())
    )
    assert find_origin(config, None).checkpoint.path == origin.checkpoint.path  # a start that was killed, again
    find_origin(config, origin.checkpoint)
    assert not origin.checkpoint.path.exists()


def test_another_model_and_nothing_there_are_refused_with_words(run, tmp_path):
    with pytest.raises(
        UserError, match=r'is of another model than the run:\n.*`num_hidden_layers`: the run has 2, .* 1'
    ):
        find_origin(settings(tmp_path, str(run), ('num_hidden_layers: 1', 'num_hidden_layers: 2')), None)
    with pytest.raises(UserError, match='no such checkpoint folder'):
        find_origin(settings(tmp_path, f'{run}/nothing'), None)


def test_settings_are_read_whatever_became_of_the_data(run, tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data/dataset_card.json').write_text('{')
    os.chdir(tmp_path)
    assert read_settings(run / 'config.yaml').model.hidden_size == 16
    with pytest.raises(UserError, match='dataset_card'):
        load(run / 'config.yaml')
