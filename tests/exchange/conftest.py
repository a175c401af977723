"""A tiny model as a Hugging Face folder, and a run of it with checkpoints, as a start leaves them."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers

from rewarm.config.shapes import ModelShape
from rewarm.formats.tokenizer_folder import read_tokenizer_files
from rewarm.model.pythia import Pythia, init_weights
from rewarm.model.weights import export_hf
from rewarm.resume.checkpoint import write
from tests.buckets.servers import S3Server

SHAPE = ModelShape(16, 1, 2, 32, vocab_size=64, rotary_pct=0.5, max_position_embeddings=32)
RUN_FILE = """
run_name: small
run_folder: runs/small
max_seq_len: 8
global_train_batch_size: 4
device_train_microbatch_size: 2
tokenizer: tokenizer.json
model:
  name: custom
  init_from: hf:EleutherAI/pythia-14m
  hidden_size: 16
  num_hidden_layers: 1
  num_attention_heads: 2
  intermediate_size: 32
  vocab_size: 64
  rotary_pct: 0.5
  max_position_embeddings: 32
stages:
  - name: only
    max_duration: 10ba
    train: {streams: [{name: law, local: data}]}
    schedule: {name: constant, lr: 1e-3}
checkpoints: {interval: 5ba}
"""


def make_tokenizer(path: Path, letters: str = 'abcdefghijklmnopqrstuvwxyz') -> Path:
    vocab = {'<|endoftext|>': 0} | {letter: i + 1 for i, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(path))
    return path


def make_model(seed: int) -> Pythia:
    model = Pythia(SHAPE, gelu='tanh')
    init_weights(model, seed)
    return model


def state_at(batch: int, **changes) -> dict:
    """``state.json`` of a run, as far as it is read away from training."""
    identity = {
        'name': 'only',
        'batches': 10,
        'tokens': 320,
        'tokens_per_batch': 32,
        'schedule_as_written': {'name': 'constant', 'lr': 1e-3},
        'streams': [{'name': 'law', 'share': '1', 'shuffle': True}],
        'optimizer_state': 'keep',
    }
    return {
        'run_name': 'small',
        'tokens': 32 * batch,
        'lr': 1e-3,
        'settings': {'model.gelu': 'tanh', **{f'model.{k}': v for k, v in dataclasses.asdict(SHAPE).items()}},
        'optimizer': {},
        'stages': [{'start_batch': 0, 'lr_before': None, 'mix': {}, 'identity': identity}],
        'algorithms': {'Rewarm': {}},
        **changes,
    }


def moments(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    found = {}
    for name, parameter in model.named_parameters():
        found |= {f'{name}.exp_avg': torch.zeros_like(parameter), f'{name}.exp_avg_sq': torch.zeros_like(parameter)}
        found[f'{name}.step'] = torch.tensor(3.0)
    return found


@pytest.fixture(scope='session')
def hf_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('hf')
    make_tokenizer(folder / 'tokenizer.json')
    return export_hf(
        make_model(1).state_dict(),
        shape=SHAPE,
        gelu='tanh',
        tokenizer_path=folder / 'tokenizer.json',
        out_dir=folder / 'hf',
    )


def make_run(folder: Path, *, old: bool = False) -> Path:
    """The folder of a run with checkpoints at batch 5 and 10; ``old`` as an earlier version left it."""
    root = folder / 'runs/small/checkpoints'
    root.mkdir(parents=True)
    root.with_name('config.yaml').write_text(RUN_FILE)
    tokenizer = read_tokenizer_files(make_tokenizer(folder / 'tokenizer.json'))
    lines = [
        {'stage': 'only', 'batch': batch, 'tokens': 32 * batch, 'stage_tokens': 32 * batch, 'set': 'law'}
        | {'role': 'upstream', 'loss': 4 - batch / 10, 'perplexity': 20.0, 'when': 'interval'}
        for batch in (0, 5, 10)
    ]
    root.with_name('evals.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
    for batch in (5, 10):
        model = make_model(batch)
        write(
            root,
            batch=batch,
            model=model.state_dict(),
            optimizer=moments(model),
            state=state_at(batch),
            tokenizer=None if old else tokenizer,
        )
    if not old:
        root.with_name('tokenizer').mkdir()
        for name, data in tokenizer.files.items():
            (root.with_name('tokenizer') / name).write_bytes(data)
    return root.parent


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Seen from a folder that is not the one it was started in; its data is gone."""
    (tmp_path / 'elsewhere').mkdir()
    monkeypatch.chdir(tmp_path / 'elsewhere')
    return make_run(tmp_path)


@pytest.fixture(scope='session')
def server(tmp_path_factory):
    server = S3Server(tmp_path_factory.mktemp('s3'))
    yield server
    server.stop()


@pytest.fixture
def bucket(server, monkeypatch, run):
    """The run in a bucket: its URL."""
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    server.empty()
    client = server.client()
    for path in run.rglob('*'):
        if path.is_file():
            client.upload_file(str(path), 'data', f'runs/small/{os.path.relpath(path, run)}')
    return 's3://data/runs/small'
