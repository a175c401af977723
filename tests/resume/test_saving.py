"""Saving in the background: training stands still for a copy only, and what is saved is the moment of that copy."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from composer.utils import dist, get_device
from safetensors.torch import load_file

from rewarm.config.errors import UserError
from rewarm.resume.checkpoint import find_newest_valid, open_checkpoint, problems
from rewarm.resume.saving import BackgroundSaver, Snapshot, divide


@pytest.fixture(autouse=True)
def process_group():
    dist.initialize_dist(get_device('cpu'))


@pytest.fixture
def training():
    """A model and its AdamW after one step."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    step(model, optimizer)
    return model, optimizer


def step(model, optimizer):
    model(torch.randn(3, 8)).square().sum().backward()
    optimizer.step()


class Saves:
    """A saver whose publishing waits for leave, and what it recorded."""

    def __init__(self, root, training):
        self.leave = threading.Event()
        self.records = []
        self.saver = BackgroundSaver(
            root,
            model=training[0],
            optimizer=training[1],
            before_publishing=lambda: self.leave.wait(30),
            after_publishing=lambda path, record: self.records.append(record),
        )


@pytest.fixture
def saves(tmp_path, training):
    made = Saves(tmp_path / 'checkpoints', training)
    yield made
    made.leave.set()
    made.saver.close()


def position(batch):
    return {'batch': batch, 'tokens': 10 * batch, 'stage': 'a'}


def test_a_save_holds_the_moment_it_began_while_training_went_on(saves, training):
    model, optimizer = training
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    moment = optimizer.state[model[0].weight]['exp_avg'].clone()
    saves.saver.begin(position(7), {'note': 'here'})
    assert saves.saver.in_flight
    step(model, optimizer)
    assert not torch.equal(model[0].weight, before['0.weight'])
    assert find_newest_valid(saves.saver.root, print) is None  # not visible before it is whole
    saves.leave.set()
    saves.saver.finish()
    saved = open_checkpoint(saves.saver.root / 'ba00000007')
    assert saved.state == {'format': 1, 'batch': 7, 'note': 'here'}
    weights = load_file(saved.model_file)
    assert all(torch.equal(weights[name], before[name]) for name in before)
    (file,) = saved.optimizer_files
    assert torch.equal(load_file(file)['0.weight.exp_avg'], moment)
    assert len(load_file(file)) == 3 * len(before)


def test_a_save_that_is_due_while_one_is_written_waits_for_it(saves, training):
    saves.saver.begin(position(1), {})
    threading.Timer(0.5, saves.leave.set).start()
    saves.saver.begin(position(2), {}, wait=True)
    assert [record['batch'] for record in saves.records] == [1, 2]
    first, second = saves.records
    assert first['stall_seconds'] < first['seconds'] >= 0.5
    assert second['stall_seconds'] == pytest.approx(second['seconds'], abs=0.01)
    assert second['stall_seconds'] >= 0.4  # of it, waiting for the first


def test_batch_edges_take_a_save_step_by_step_to_its_end(saves):
    saves.leave.set()
    saves.saver.begin(position(3), {})
    for _ in range(2):
        while saves.saver.busy:
            pass
        assert saves.saver.failure is None
        saves.saver.advance()
    assert not saves.saver.in_flight
    assert problems(saves.saver.root / 'ba00000003') == []


def test_a_disk_that_fails_is_told_at_the_next_edge_with_what_to_do(saves):
    saves.saver.root.parent.mkdir(exist_ok=True)
    saves.saver.root.write_text('a file where the folder should be')
    saves.saver.begin(position(1), {})
    while saves.saver.busy:
        pass
    assert isinstance(saves.saver.failure, OSError)
    with pytest.raises(
        UserError, match=r'saving a checkpoint in .* failed on rank 0: .*(Exists|directory).*Free space'
    ):
        saves.saver.raise_failure()


def test_a_fault_that_is_not_the_disk_is_no_user_error(saves):
    saves.leave.set()
    saves.saver.begin(position(1), {'not JSON': object()})
    with pytest.raises(RuntimeError, match='rank 0: TypeError'):
        saves.saver.finish()
    assert list(saves.saver.root.iterdir()) == []


def test_a_snapshot_uses_its_memory_again_and_takes_more_only_when_needed():
    snapshot = Snapshot(1024, page_locked=False)
    source = torch.arange(20.0)
    first = snapshot.take({'a': {'x': source, 'y': torch.tensor(3)}})['a']
    where = first['x'].data_ptr()
    source += 1
    assert first['x'][0] == 0
    assert first['y'].item() == 3
    assert snapshot.take({'a': {'x': source}})['a']['x'].data_ptr() == where
    larger = snapshot.take({'a': {'x': torch.arange(1000.0)}})['a']['x']
    assert torch.equal(larger, torch.arange(1000.0))


@pytest.mark.parametrize('writers', [1, 2, 4, 8])
def test_the_bytes_of_pythia_410m_are_divided_evenly(writers):
    from rewarm.config.schema import MODEL_SHAPES
    from rewarm.model.pythia import Pythia

    with torch.device('meta'):
        model = Pythia(MODEL_SHAPES['pythia-410m'], gelu='tanh')
    sizes = {name: 8 * parameter.numel() for name, parameter in model.named_parameters()}
    head_start = sum(sizes.values()) // 2
    chosen = divide(sizes, writers, head_start)
    loads = [head_start * (writer == 0) for writer in range(writers)]
    for name, writer in chosen.items():
        loads[writer] += sizes[name]
    assert sum(loads) == 3 * head_start == 12 * 405_334_016
    largest_tensor = max(sizes.values())
    assert max(loads) <= max(sum(loads) / writers + largest_tensor, head_start)
    assert divide(dict(reversed(sizes.items())), writers, head_start) == chosen


TWO_RANKS = """
import os, sys, torch
from pathlib import Path
from composer.utils import dist, get_device
from rewarm.config.errors import UserError
from rewarm.resume.saving import BackgroundSaver
dist.initialize_dist(get_device('cpu'))
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
optimizer = torch.optim.AdamW(model.parameters())
model(torch.ones(3, 8)).square().sum().backward()
optimizer.step()
root = Path(sys.argv[1])
saver = BackgroundSaver(root, model=model, optimizer=optimizer, before_publishing=lambda: None, after_publishing=lambda path, record: None)
saver.begin({'batch': 5, 'tokens': 1, 'stage': 'a'}, {}, wait=True)
if dist.get_global_rank() == 1:
    saver.root = Path('/proc/nowhere')
try:
    saver.begin({'batch': 6, 'tokens': 1, 'stage': 'a'}, {}, wait=True)
except UserError as error:
    print(dist.get_global_rank(), error, flush=True)
saver.close()
os._exit(0)  # else the launcher may meet a rank that is clearing up
"""


@pytest.mark.slow
def test_two_ranks_write_their_shares_and_both_tell_of_a_failure_on_one(tmp_path, training):
    root, script, log = tmp_path / 'checkpoints', tmp_path / 'two_ranks.py', tmp_path / 'rank{rank}'
    script.write_text(TWO_RANKS)
    done = subprocess.run(
        [Path(sys.executable).parent / 'composer', '-n', '2', '--stdout', log, script, root],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'},
    )
    assert done.returncode == 0, done.stderr
    for rank, text in enumerate([done.stdout, (tmp_path / 'rank1').read_text()]):
        assert f'{rank} saving a checkpoint' in text
        assert 'failed on rank 1' in text
    newest = find_newest_valid(root, print)
    assert newest is not None
    assert newest.batch == 5
    saved = open_checkpoint(root / 'ba00000005')
    assert [file.name for file in saved.optimizer_files] == [
        'optimizer-0000.safetensors',
        'optimizer-0001.safetensors',
    ]
    parts = [load_file(file) for file in saved.optimizer_files]
    assert all(parts)
    assert not set(parts[0]) & set(parts[1])
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 4))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3, 8)).square().sum().backward()
    optimizer.step()
    whole = {**parts[0], **parts[1]}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items():
            assert torch.equal(whole.pop(f'{name}.{key}'), value)
    assert not whole
