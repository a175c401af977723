"""Small datasets as `rewarm convert` makes them, and a run folder with a checkpoint as far as a new run looks at it."""

import json
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path

import pytest

from rewarm.config.load import dump, load
from rewarm.data.convert import convert
from tests.end_to_end.conftest import RUN_FILE, make_data

__all__ = ['run_folder']


@pytest.fixture(scope='session')
def corpora(tmp_path_factory) -> Path:
    """A folder with data/law/{train,val}, data/old, data/old-val, and the tokenizer of both."""
    folder = tmp_path_factory.mktemp('new')
    data = folder / 'data'
    data.mkdir()
    make_data(data)
    lines = [json.dumps({'text': f'{n} is a number of the law, and {n + 1} is the next. ' * 9}) for n in range(300)]
    (data / 'law.jsonl').write_text('\n'.join(lines))
    convert(
        [str(data / 'law.jsonl')],
        str(data / 'law'),
        tokenizer=str(data / 'tokenizer.json'),
        seq_len=32,
        val_fraction=0.1,
        workers=1,
        progress=False,
    )
    return folder


@pytest.fixture
def here(corpora, monkeypatch, tmp_path) -> Path:
    """A working folder of this test's own that sees the data."""
    (tmp_path / 'data').symlink_to(corpora / 'data')
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def run_folder(here) -> str:
    """The folder of a run with one checkpoint."""
    (here / 'run.yaml').write_text(RUN_FILE.format(folder='runs/tiny', data='data'))
    checkpoint = here / 'runs/tiny/checkpoints/ba00000012'
    checkpoint.mkdir(parents=True)
    config = load('run.yaml', world_size=1)
    model = {**asdict(config.model.shape), 'gelu': 'tanh'}
    files = {'model.safetensors': b'', 'state.json': json.dumps({'format': 1, 'batch': 12, 'model': model}).encode()}
    entries = {name: {'bytes': len(data), 'sha256': sha256(data).hexdigest()} for name, data in files.items()}
    files['manifest.json'] = json.dumps({'format': 1, 'files': entries}).encode()
    for name, data in files.items():
        (checkpoint / name).write_bytes(data)
    (here / 'runs/tiny/checkpoints/latest').write_text('ba00000012\n')
    (here / 'runs/tiny/config.yaml').write_text(dump(config))
    return 'runs/tiny'
