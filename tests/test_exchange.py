"""Checkpoints to Hugging Face folders and back: equal weights, or words and nothing written."""

import dataclasses
import json
import os
import shutil

import pytest
from safetensors.torch import load_file
from tokenizers import Tokenizer, models

from rewarm.config.errors import UserError
from rewarm.config.shapes import ModelShape
from rewarm.exchange import export_command, import_command
from rewarm.model.pythia import Pythia, init_weights
from rewarm.model.weights import export_hf

SHAPE = ModelShape(16, 1, 2, 32, vocab_size=64, rotary_pct=0.5, max_position_embeddings=32)
RUN = """
run_name: small
run_folder: runs/small
max_seq_len: 8
global_train_batch_size: 4
device_train_microbatch_size: 2
tokenizer: tokenizer.json
model:
  name: custom
  init_from: scratch
  hidden_size: 16
  num_hidden_layers: 1
  num_attention_heads: 2
  intermediate_size: 32
  vocab_size: 64
  rotary_pct: 0.5
stages:
  - name: only
    max_duration: 10ba
    train: {streams: [{name: a, local: data}]}
    schedule: {name: constant, lr: 1e-3}
checkpoints: {interval: 5ba}
"""


@pytest.fixture(scope='module')
def hf_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hf')
    model = Pythia(SHAPE, gelu='tanh')
    init_weights(model, 1)
    vocab = {'<|endoftext|>': 0} | {chr(ord('a') + i): i + 1 for i in range(26)}
    Tokenizer(models.BPE(vocab=vocab, merges=[])).save(str(folder / 'tokenizer.json'))
    return export_hf(
        model.state_dict(), shape=SHAPE, gelu='tanh', tokenizer_path=folder / 'tokenizer.json', out_dir=folder / 'hf'
    )


@pytest.fixture
def run(hf_folder, tmp_path, monkeypatch):
    """The folder of a run with one checkpoint, seen from the folder it was started in."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'runs/small/checkpoints').mkdir(parents=True)
    (tmp_path / 'runs/small/config.yaml').write_text(RUN)
    shutil.copy(hf_folder / 'tokenizer.json', tmp_path)
    import_command(str(hf_folder), tmp_path / 'runs/small/checkpoints/ba00000000')
    (tmp_path / 'runs/small/checkpoints/latest').write_text('ba00000000')
    return tmp_path / 'runs/small'


def test_there_and_back_the_weights_are_the_same(run, hf_folder, tmp_path):
    out = export_command(run / 'checkpoints/ba00000000', tmp_path / 'out')
    first, second = (load_file(folder / 'model.safetensors') for folder in (hf_folder, out))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


def test_from_another_folder_the_tokenizer_is_named(run, tmp_path, monkeypatch):
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    with pytest.raises(UserError, match='--tokenizer PATH'):
        export_command(run / 'checkpoints/ba00000000', tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    export_command(run / 'checkpoints/ba00000000', tmp_path / 'out', tokenizer=str(tmp_path))
    assert (tmp_path / 'out' / 'tokenizer.json').is_file()


@pytest.mark.parametrize('path', ['.', 'checkpoints', 'checkpoints/latest'])
def test_a_run_folder_leads_to_its_checkpoints(run, tmp_path, path):
    with pytest.raises(UserError, match=r'is no checkpoint; name one of .*checkpoints: ba00000000'):
        export_command(run / path, tmp_path / 'out')


def test_a_checkpoint_away_from_its_run_says_what_is_missing(run, tmp_path):
    shutil.copytree(run / 'checkpoints/ba00000000', tmp_path / 'copy' / 'ba00000000')
    with pytest.raises(
        UserError, match=r"config\.yaml does not exist, and it says what model .* copy the run's config"
    ):
        export_command(tmp_path / 'copy' / 'ba00000000', tmp_path / 'out')


@pytest.mark.parametrize(
    'tokenizer',
    ['', '{}', '[' * 5000, json.dumps({'model': {'vocab': {'a': 1 << 31}}}), '{"model": {"vocab": {"a": 64}}}'],
)
def test_a_damaged_tokenizer_leaves_nothing(run, tmp_path, tokenizer):
    (tmp_path / 'tokenizer.json').write_text(tokenizer)
    with pytest.raises(UserError, match=r'tokenizer\.json'):
        export_command(run / 'checkpoints/ba00000000', tmp_path / 'out')
    assert sorted(each.name for each in tmp_path.iterdir()) == ['runs', 'tokenizer.json']


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
    ],
)
def test_a_damaged_folder_leaves_nothing(hf_folder, tmp_path, name, content):
    shutil.copytree(hf_folder, tmp_path / 'hf')
    if content is None:
        (tmp_path / 'hf' / name).unlink()
    else:
        (tmp_path / 'hf' / name).write_text(content)
    with pytest.raises(UserError, match=r'config\.json|model\.safetensors'):
        import_command(str(tmp_path / 'hf'), tmp_path / 'start')
    assert [each.name for each in tmp_path.iterdir()] == ['hf']


def test_what_cannot_be_written_is_told(hf_folder, run, tmp_path):
    (tmp_path / 'file').touch()
    with pytest.raises(UserError, match=r'file.*cannot be written'):
        import_command(str(hf_folder), tmp_path / 'file' / 'start')
    with pytest.raises(UserError, match=r'file.*cannot be written'):
        export_command(run / 'checkpoints/ba00000000', tmp_path / 'file' / 'out')
    os.symlink(tmp_path / 'nowhere', tmp_path / 'link')
    for write in (
        lambda: import_command(str(hf_folder), tmp_path / 'link'),
        lambda: export_command(run / 'checkpoints/ba00000000', tmp_path / 'link'),
    ):
        with pytest.raises(UserError, match='exists already'):
            write()
