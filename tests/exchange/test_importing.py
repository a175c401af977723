"""Weights from elsewhere become a checkpoint that says what it is, or there are words and nothing written."""

import dataclasses
import json
import shutil

import pytest

from rewarm.config.errors import UserError
from rewarm.exchange import import_command
from rewarm.formats.checkpoint import read_state
from rewarm.formats.saved_model import read_saved_model
from rewarm.formats.tokenizer import tokenizer_hash
from rewarm.resume.checkpoint import problems
from tests.exchange.conftest import SHAPE


def test_it_says_what_model_and_tokenizer_it_is_of(hf_folder, tmp_path):
    import_command(str(hf_folder), tmp_path / 'start')
    state, _ = read_state(tmp_path / 'start')
    model = read_saved_model(tmp_path / 'start', state)
    assert model is not None
    assert (model.shape, model.gelu) == (dataclasses.asdict(SHAPE), 'tanh')
    assert tokenizer_hash(tmp_path / 'start/tokenizer.json') == state.tokenizer_hash
    assert problems(tmp_path / 'start') == []


def test_without_a_tokenizer_it_is_said(hf_folder, tmp_path):
    shutil.copytree(hf_folder, tmp_path / 'hf')
    (tmp_path / 'hf/tokenizer.json').unlink()
    assert any('holds no tokenizer.json' in note for note in import_command(str(tmp_path / 'hf'), tmp_path / 'start'))
    assert problems(tmp_path / 'start') == []


@pytest.mark.parametrize(
    ('name', 'content'),
    [
        ('config.json', ''),
        (
            'config.json',
            json.dumps({'model_type': 'gpt_neox', **dataclasses.asdict(SHAPE), 'num_hidden_layers': 10**9}),
        ),
        ('config.json', json.dumps({'model_type': 'gpt_neox', **dataclasses.asdict(SHAPE), 'num_attention_heads': 3})),
        ('config.json', json.dumps({'model_type': 'gpt_neox', **dataclasses.asdict(SHAPE), 'vocab_size': 1 << 20})),
        ('model.safetensors', 'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n'),
        ('model.safetensors', 'x' * 20_000),
        ('model.safetensors', None),
        ('tokenizer.json', '{'),
    ],
)
def test_a_damaged_folder_leaves_nothing(hf_folder, tmp_path, name, content):
    shutil.copytree(hf_folder, tmp_path / 'hf')
    if content is None:
        (tmp_path / 'hf' / name).unlink()
    else:
        (tmp_path / 'hf' / name).write_text(content)
    with pytest.raises(UserError, match=r'config\.json|model\.safetensors|tokenizer\.json'):
        import_command(str(tmp_path / 'hf'), tmp_path / 'start')
    assert [each.name for each in tmp_path.iterdir()] == ['hf']


def test_a_url_is_refused_as_it_was_written(tmp_path):
    with pytest.raises(UserError, match='s3://data/hf is not on this machine'):
        import_command('s3://data/hf', tmp_path / 'start')
