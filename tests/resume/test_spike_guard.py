"""Real Trainers in which a batch goes wrong: nothing of it reaches the weights, and the run ends as it should."""

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rewarm.config.schema import OptimizerConfig
from rewarm.config.shapes import ModelShape
from rewarm.model.composer_model import PythiaForTraining
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights
from tests.resume.spike_run import FAULTY, LR, NUM_BATCHES, batch_of, fingerprint, train

ROOT = Path(__file__).parents[2]
CLOCK = ('time', 'seconds', 'tokens_per_second')


def lines(folder: Path, name: str) -> list[dict]:
    """The records, but for the clock; JSON as the standard has it."""

    def refuse(constant):
        raise AssertionError(f'{constant} is not JSON')

    read = [json.loads(line, parse_constant=refuse) for line in (folder / f'{name}.jsonl').read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in CLOCK} for line in read]


def happened(folder: Path) -> list[tuple]:
    """Event, batch, tokens and action."""
    if not (folder / 'events.jsonl').exists():
        return []
    return [(e['event'], e['batch'], e['tokens'], e.get('action')) for e in lines(folder, 'events')]


def end_of(seen: dict) -> tuple:
    return seen['weights'], seen['moments'], seen['steps']


def without(left_out: set[int]) -> tuple:
    """The same training by a bare loop without Composer, which never sees some batches."""
    shape = ModelShape(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, vocab_size=40)
    model = PythiaForTraining(Pythia(shape, gelu='tanh'))
    init_weights(model.pythia, seed=1)
    optimizer = build_optimizer(model.pythia, OptimizerConfig(), lr=LR)
    for number in range(1, NUM_BATCHES + 1):
        if number in left_out:
            continue
        batch = batch_of(number)
        optimizer.zero_grad()
        for begin in range(0, 8, 2):
            part = {name: tensor[begin : begin + 2] for name, tensor in batch.items()}
            (model.loss(model(part), part) * 0.25).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    moments = [each for state in optimizer.state.values() for each in state.values()]
    steps = sorted({int(state['step']) for state in optimizer.state.values()})
    return fingerprint(model.state_dict().values()), fingerprint(moments), steps


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp('unbroken')
    return folder, train(folder, spikes={})


def test_a_run_without_faults_is_the_bare_loop_and_says_nothing(unbroken):
    folder, seen = unbroken
    assert end_of(seen) == without(set())
    assert seen['said'] == seen['rollbacks'] == happened(folder) == []
    assert all('skipped' not in line for line in lines(folder, 'metrics'))


@pytest.mark.parametrize('place', ['weight', 'gradient'])
def test_a_passing_fault_is_rolled_back_and_ends_as_the_unbroken_run_bit_for_bit(tmp_path, unbroken, place):
    seen = train(tmp_path, spikes={}, faulty=[FAULTY], place=place, times=1)
    assert [(batch, back_to) for batch, _, back_to in seen['rollbacks']] == [(50, 40)]
    assert end_of(seen) == end_of(unbroken[1])
    assert lines(tmp_path, 'metrics') == lines(unbroken[0], 'metrics')
    assert happened(tmp_path) == [('rollback', 50, 50 * 64, None)]


def test_a_fault_that_comes_again_after_the_rollback_is_skipped(tmp_path):
    seen = train(tmp_path, spikes={}, faulty=[FAULTY], times=2)
    assert [batch for batch, _, _ in seen['rollbacks']] == [50]
    assert end_of(seen) == without({FAULTY})
    assert seen['steps'] == [NUM_BATCHES - 1]
    records = lines(tmp_path, 'metrics')
    assert [line['batch'] for line in records] == list(range(1, NUM_BATCHES + 1))
    assert [line['batch'] for line in records if line.get('skipped')] == [50]
    assert (records[49]['loss'], records[49]['grad_norm'], records[49]['lr']) == (None, None, LR)
    assert happened(tmp_path) == [('rollback', 50, 3200, None), ('skip', 50, 3200, None)]
    assert seen['said'] == ['Batch 50: the loss is nan, again after a rollback. It is skipped.']


@pytest.mark.parametrize('faulty', [[1], [FAULTY], [30, 31]])
def test_a_skipped_batch_leaves_weights_moments_and_step_counts_as_if_it_had_not_been(tmp_path, faulty):
    seen = train(tmp_path, spikes={'on_nan': 'skip'}, faulty=faulty, times=len(faulty))
    assert seen['rollbacks'] == []
    assert end_of(seen) == without(set(faulty))


def test_stop_leaves_the_fault_out_of_the_weights_and_says_what_to_write(tmp_path):
    seen = train(tmp_path / 'a', spikes={'on_nan': 'stop'}, faulty=[FAULTY], times=1)
    assert 'batch 50: the loss is nan, and `spikes.on_nan` is `stop`' in seen['error']
    assert 'write another `spikes.on_nan`' in seen['error']
    assert end_of(seen) == end_of(train(tmp_path / 'b', spikes={}, stop_at=FAULTY - 1))


def test_faults_all_over_the_place_stop_the_run(tmp_path):
    seen = train(tmp_path, spikes={}, faulty=[22, 30, 45, 55], times=99)
    assert [batch for batch, _, _ in seen['rollbacks']] == [22, 30, 45]
    assert 'batch 55: the loss is nan, after rollbacks for the batches 22, 30, 45 near it' in seen['error']


def test_a_spike_is_recorded_and_trained_on_by_default(tmp_path):
    seen = train(tmp_path, spikes={}, bad=[FAULTY])
    assert seen['rollbacks'] == []
    assert seen['steps'] == [NUM_BATCHES]
    assert happened(tmp_path) == [('spike', 50, 3200, 'log')]
    (event,), records = lines(tmp_path, 'events'), lines(tmp_path, 'metrics')
    assert math.isclose(event['loss'], records[49]['loss'], rel_tol=1e-6)
    assert records[48]['loss'] <= event['baseline'] < event['threshold'] < event['loss']
    (said,) = seen['said']
    assert said.startswith('Batch 50: the loss is ')


@pytest.mark.parametrize(
    ('action', 'events'), [('skip', ['spike', 'skip']), ('rollback', ['spike', 'rollback', 'skip'])]
)
def test_bad_data_end_as_if_they_had_not_been_read(tmp_path, action, events):
    seen = train(tmp_path, spikes={'on_spike': action}, bad=[FAULTY])
    assert end_of(seen) == without({FAULTY})
    assert [event for event, *_ in happened(tmp_path)] == events
    assert [line['batch'] for line in lines(tmp_path, 'metrics') if line.get('skipped')] == [50]


@pytest.mark.slow
@pytest.mark.parametrize(
    ('arguments', 'events'),
    [
        ({'spikes': {}, 'faulty': [FAULTY], 'times': 1}, ['rollback']),
        ({'spikes': {}, 'faulty': [FAULTY], 'times': 2, 'place': 'gradient'}, ['rollback', 'skip']),
        ({'spikes': {'on_spike': 'skip'}, 'bad': [FAULTY]}, ['spike', 'skip']),
    ],
    ids=['NaN on one rank', 'a gradient that differs between ranks', 'spike'],
)
def test_two_ranks_decide_alike_about_a_fault_on_one_of_them(tmp_path, arguments, events):
    composer = Path(sys.executable).parent / 'composer'
    command = [str(composer), '-n', '2', str(ROOT / 'tests/resume/spike_run.py'), str(tmp_path), json.dumps(arguments)]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': f'{ROOT}:{ROOT / "kernels"}'}
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        if process.poll() is None:  # ranks that disagree wait for each other
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 0, output
    first, second = json.loads((tmp_path / 'seen.json').read_text())
    assert end_of(first) == end_of(second)
    assert first['rollbacks'] == second['rollbacks']
    assert [event for event, *_ in happened(tmp_path)] == events
    skipped = [line['batch'] for line in lines(tmp_path, 'metrics') if line.get('skipped')]
    assert skipped == ([FAULTY] if 'skip' in events else [])
    assert first['steps'] == [NUM_BATCHES - len(skipped)]
