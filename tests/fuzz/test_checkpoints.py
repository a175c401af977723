"""Checkpoints of any kind: the same tensors, the checkpoint before, or an error in words; never other tensors."""

import hashlib
import json
import shutil

import pytest
import torch

from rewarm.config.errors import UserError
from rewarm.config.schema import OptimizerConfig
from rewarm.config.shapes import ModelShape
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights
from rewarm.resume.checkpoint import find_newest_valid, problems, write
from rewarm.resume.state import load_model, load_optimizer, optimizer_tensors
from tests.fuzz.inputs import run_inputs
from tests.fuzz.mutations import change_bytes, change_json, replace_file

SHAPE = ModelShape(
    hidden_size=8,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=16,
    vocab_size=16,
    rotary_pct=0.5,
    max_position_embeddings=8,
)
OLDER, NEWER = 10, 20


def new_model():
    model = Pythia(SHAPE, gelu='tanh')
    return model, build_optimizer(model, OptimizerConfig(), lr=1e-3)


def fingerprint(model, optimizer):
    hashed = hashlib.sha256()
    for tensors in (model.state_dict(), optimizer_tensors(model, optimizer)):
        for name, tensor in sorted(tensors.items()):
            hashed.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode() + tensor.numpy().tobytes())
    return hashed.hexdigest()


def saved_run(folder):
    """Two checkpoints of a tiny model; returns the fingerprint of each by its batch."""
    prints = {}
    for batch in (OLDER, NEWER):
        model, optimizer = new_model()
        init_weights(model, batch)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.01 * batch)
        optimizer.step()
        stage = {'start_batch': 0, 'lr_before': None, 'mix': {}, 'identity': {'name': 'a', 'batches': 100}}
        state = {
            'run_name': 'x',
            'tokens': batch,
            'lr': 1e-3,
            'settings': {'seed': 1},
            'optimizer': {},
            'stages': [stage],
            'algorithms': {'Rewarm': {'lr': 1e-3}},
        }
        write(folder, batch=batch, model=model.state_dict(), optimizer=optimizer_tensors(model, optimizer), state=state)
        prints[batch] = fingerprint(model, optimizer)
    return prints


def rehash(folder):
    """Makes the manifest agree with what lies there, as somebody who means harm would."""
    manifest = json.loads((folder / 'manifest.json').read_text())
    for name in manifest['files']:
        data = (folder / name).read_bytes()
        manifest['files'][name] = {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
    (folder / 'manifest.json').write_text(json.dumps(manifest))


def change_header(rng, data):
    """A safetensors file whose header says something else."""
    length = int.from_bytes(data[:8], 'little')
    header = change_json(rng, data[8 : 8 + length])
    return len(header).to_bytes(8, 'little') + header + data[8 + length :]


def change_floats(rng, data):
    """A safetensors file with one number that no training gives."""
    at = 8 + int.from_bytes(data[:8], 'little')
    at += 4 * rng.randrange((len(data) - at) // 4)
    return data[:at] + rng.choice((b'\0\0\xc0\x7f', b'\0\0\x80\x7f', b'\0\0\x80\xff')) + data[at + 4 :]


def test_a_changed_checkpoint_is_the_same_the_one_before_or_refused(tmp_path):
    torch.set_num_threads(1)
    prints = saved_run(tmp_path / 'good')
    names = ('manifest.json', 'manifest.json', 'state.json', 'model.safetensors', 'optimizer-0000.safetensors')

    def attempt(rng):
        root = tmp_path / 'now'
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(tmp_path / 'good', root)
        newer, what = root / f'ba{NEWER:08d}', rng.random()
        path = newer / rng.choice(names)
        if what < 0.1:
            other = rng.choice(('optimizer-0001.safetensors', 'optimizer-old.safetensors', 'junk', 'latest'))
            shutil.copy(root / f'ba{OLDER:08d}/optimizer-0000.safetensors', newer / other)
        elif what < 0.25:
            replace_file(rng, rng.choice((path, path, root / 'latest', newer)))
        elif what < 0.4:
            path.write_bytes(change_bytes(rng, path.read_bytes()))
        elif path.suffix == '.json':
            path.write_bytes(change_json(rng, path.read_bytes()))
            if path.name == 'state.json':
                rehash(newer)
        else:
            path.write_bytes(rng.choice((change_header, change_floats, change_bytes))(rng, path.read_bytes()))
            rehash(newer)
        problems(newer)
        try:
            found = find_newest_valid(root, lambda *_, **__: None)
            model, optimizer = new_model()
            load_model(model, found)
            load_optimizer(model, optimizer, found)
        except UserError:
            return
        assert found.path.name == f'ba{found.batch:08d}'
        assert {'settings', 'stages', 'algorithms'} <= set(found.state)
        if not (what >= 0.4 and path.suffix == '.safetensors'):  # other numbers with their right hash are another model
            assert fingerprint(model, optimizer) == prints[found.batch]
        assert all(tensor.isfinite().all() for tensor in model.state_dict().values())

    run_inputs(attempt, 500)


@pytest.mark.parametrize('name', ['manifest.json', 'latest'])
def test_no_flipped_bit_of_a_small_file_stops_a_start(tmp_path, name):
    prints = saved_run(tmp_path / 'good')
    folder = tmp_path / 'good'
    path = folder / name if name == 'latest' else folder / f'ba{NEWER:08d}' / name
    right = path.read_bytes()
    for bit in range(8 * len(right)):
        flipped = bytearray(right)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        found = find_newest_valid(folder, lambda *_, **__: None)
        assert found is not None
        assert found.batch in prints
        aside = folder / f'ba{NEWER:08d}.broken'
        if aside.exists():
            aside.rename(folder / f'ba{NEWER:08d}')
        path.write_bytes(right)
