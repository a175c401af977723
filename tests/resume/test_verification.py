"""Files that hash to what the manifest says and do not make one checkpoint are damage; what is not listed is said."""

import hashlib
import json
import os
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewarm.config.errors import DamagedFile
from rewarm.config.schema import ModelShape, OptimizerConfig
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights
from rewarm.resume.checkpoint import find_newest_valid, open_checkpoint, problems, write
from rewarm.resume.state import load_model, load_optimizer, optimizer_tensors
from rewarm.resume.verification import damage
from tests.formats.test_checkpoint import STATE

SHAPE = ModelShape(
    hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=16, rotary_pct=0.5
)
MOMENT = 'embed_out.weight.exp_avg'


def new_run():
    model = Pythia(SHAPE, gelu='tanh')
    init_weights(model, seed=1)
    return model, build_optimizer(model, OptimizerConfig(), lr=1e-3)


@pytest.fixture(scope='module')
def made(tmp_path_factory):
    """Two checkpoints of a run, one step apart."""
    root = tmp_path_factory.mktemp('run') / 'checkpoints'
    model, optimizer = new_run()
    for batch in (10, 20):
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.1)
        optimizer.step()
        moments = optimizer_tensors(model, optimizer)
        write(root, batch=batch, model=model.state_dict(), optimizer=moments, state=STATE | {'batch': batch})
    return root


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / 'checkpoints')


def rehash(path):
    """Makes the manifest anew, as it is, over files that have changed."""
    manifest = json.loads((path / 'manifest.json').read_text())
    for name in list(manifest['files']):
        data = (path / name).read_bytes()
        manifest['files'][name] = {'bytes': len(data), 'sha256': hashlib.sha256(data).hexdigest()}
    (path / 'manifest.json').write_text(json.dumps(manifest))


def forget_tensors(path):
    """Makes it a checkpoint of an earlier version, whose state does not say which tensors are its own."""
    state = json.loads((path / 'state.json').read_text())
    del state['tensors']
    (path / 'state.json').write_text(json.dumps(state))


def change_state(**changes):
    def change(path):
        state = json.loads((path / 'state.json').read_text())
        (path / 'state.json').write_text(json.dumps(state | changes))

    return change


def change_tensors(file, change):
    def apply(path):
        forget_tensors(path)
        tensors = load_file(path / file)
        change(tensors)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path / file)

    return apply


def write_text(name, text):
    def change(path):
        forget_tensors(path)
        (path / name).write_bytes(text)

    return change


def unlist(name):
    def change(path):
        manifest = json.loads((path / 'manifest.json').read_text())
        del manifest['files'][name]
        (path / 'manifest.json').write_text(json.dumps(manifest))
        forget_tensors(path)

    return change


def other_moments(path):
    shutil.copy(path.with_name('ba00000010') / 'optimizer-0000.safetensors', path)


def of(name, value):
    return lambda tensors: tensors.update({name: value})


MODEL, OPTIMIZER = 'model.safetensors', 'optimizer-0000.safetensors'


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (change_state(batch=10), 'state.json is of batch 10'),
        (change_state(stages=[]), 'stages is missing'),
        (change_state(lr='x'), 'state.json: lr'),
        (change_state(algorithms={'Rewarm': 5}), 'algorithms.Rewarm'),
        (write_text('state.json', b'[' * 99_999), 'state.json: nested'),
        (write_text(MODEL, b'M'), 'cannot be read as tensors'),
        (write_text(OPTIMIZER, b'\xff' * 99), 'cannot be read as tensors'),
        (other_moments, 'optimizer-0000.safetensors is not the one that state.json was written with'),
        (change_tensors(MODEL, lambda tensors: tensors.pop('embed_out.weight')), 'is of no parameter'),
        (change_tensors(MODEL, of('embed_out.weight', torch.ones(16, 8).half())), 'is F16, not fp32'),
        (change_tensors(MODEL, of('embed_out.weight', torch.ones(8, 16))), 'has the shape'),
        (change_tensors(OPTIMIZER, lambda tensors: tensors.pop(MOMENT)), 'has no exp_avg of embed_out.weight'),
        (change_tensors(OPTIMIZER, of('evil', torch.ones(1))), "'evil', which is of no parameter"),
        (change_tensors(OPTIMIZER, of('embed_out.weight.step', torch.ones(2))), 'has the shape'),
        (change_tensors(OPTIMIZER, of(MOMENT, torch.ones(16, 8, dtype=torch.int32))), 'is I32, not fp32'),
        (unlist(OPTIMIZER), 'lists no optimizer file, and there are some'),
    ],
)
def test_what_hashes_right_and_is_wrong_is_damage_and_the_one_before_is_taken(root, change, words):
    path = root / 'ba00000020'
    assert problems(path) == []
    change(path)
    rehash(path)
    assert words in '; '.join(problems(path))
    events = []
    found = find_newest_valid(root, lambda event, **fields: events.append(fields))
    assert found is not None
    assert found.batch == 10
    assert words in events[0]['reason']


@pytest.mark.parametrize('name', [OPTIMIZER, MODEL, 'state.json', 'manifest.json'])
@pytest.mark.parametrize('kind', ['folder', 'pipe', '/dev/zero', '/proc/self/mem', 'nowhere'])
def test_what_is_no_regular_file_is_damage_at_once(root, name, kind):
    path = root / 'ba00000020' / name
    path.unlink()
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    else:
        path.symlink_to(kind)
    assert name in '; '.join(damage(path.parent))


def test_a_checkpoint_of_an_earlier_version_and_one_through_links_are_good(root):
    path = root / 'ba00000020'
    forget_tensors(path)
    rehash(path)
    assert problems(path) == []
    path.rename(root.parent / 'disk')
    path.symlink_to(root.parent / 'disk')
    assert problems(path) == []


def test_a_run_does_not_go_on_from_a_state_that_lacks_a_key_and_others_may_read_it(root):
    path = root / 'ba00000020'
    change_state(algorithms={'Rewarm': {'lr': 1e-3}})(path)
    rehash(path)
    assert damage(path) == []
    assert 'lacks algorithms.Rewarm.stage' in '; '.join(damage(path, trained=True))
    found = find_newest_valid(root, lambda *_, **__: None, trained=True)
    assert found is not None
    assert found.batch == 10


@pytest.mark.parametrize('name', ['optimizer-0001.safetensors', 'optimizer-old.safetensors', 'note.txt'])
def test_what_is_not_listed_is_said_and_not_loaded(root, name):
    path = root / 'ba00000020'
    shutil.copy(root / 'ba00000010' / OPTIMIZER, path / name)
    assert problems(path) == [f'{name} is not listed in manifest.json']
    model, optimizer = new_run()
    load_model(model, open_checkpoint(path))
    load_optimizer(model, optimizer, open_checkpoint(path))
    expected = load_file(path / OPTIMIZER)
    assert torch.equal(optimizer_tensors(model, optimizer)[MOMENT], expected[MOMENT])


@pytest.mark.parametrize(
    ('file', 'name', 'number'),
    [
        (MODEL, 'embed_out.weight', float('nan')),
        (MODEL, 'embed_out.weight', float('inf')),
        (OPTIMIZER, MOMENT, float('nan')),
        (OPTIMIZER, 'embed_out.weight.exp_avg_sq', -1.0),
        (OPTIMIZER, 'embed_out.weight.step', float('nan')),
    ],
)
def test_numbers_that_training_cannot_go_on_from_are_named_with_their_file(root, file, name, number):
    path = root / 'ba00000020'
    change_tensors(file, lambda tensors: tensors[name].view(-1)[:1].fill_(number))(path)
    rehash(path)
    (model, optimizer), checkpoint = new_run(), open_checkpoint(path)
    with pytest.raises(DamagedFile, match=rf'{file}: damaged: {name}: has numbers from .* the one before'):
        load_model(model, checkpoint) if file == MODEL else load_optimizer(model, optimizer, checkpoint)


def test_tensors_of_another_model_are_an_error_that_names_the_file(root):
    checkpoint = open_checkpoint(root / 'ba00000020')
    for change, words in (({'vocab_size': 32}, 'shape'), ({'num_hidden_layers': 2}, 'not in both')):
        other = Pythia(SHAPE.__class__(**{**vars(SHAPE), **change}), gelu='tanh')
        optimizer = build_optimizer(other, OptimizerConfig(), lr=1e-3)
        with pytest.raises(DamagedFile, match=f'model.safetensors: damaged: .*{words}'):
            load_model(other, checkpoint)
        with pytest.raises(DamagedFile, match='optimizer'):
            load_optimizer(other, optimizer, checkpoint)
