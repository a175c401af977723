"""Run files, overrides and durations of any kind: settings that read back equal, or an error in words."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.load import dump, load
from rewarm.config.plan import make_plan, parse_marks
from rewarm.config.show import plan_command
from rewarm.config.source import read_source
from tests.fuzz.inputs import run_inputs
from tests.fuzz.mutations import HOSTILE, change_bytes, change_value, places

RUN = """\
run_name: small
run_folder: runs/${run_name}
seed: 17
max_seq_len: 8
global_train_batch_size: 4
device_train_microbatch_size: 2
tokenizer: tokenizer.json
data: {num_workers: 2, shuffle_block_size: 64}
model: {name: pythia-14m, init_from: scratch, kernels: auto, attention: auto}
optimizer: {betas: [0.9, 0.95], eps: 1e-8, weight_decay: 0.1}
max_grad_norm: 1.0
stages:
  - name: old
    max_duration: 100ba
    train: {streams: [{name: old, local: data/old, proportion: 1.0}]}
    schedule: {name: cosine, lr: 3e-4, min_lr: 3e-5, warmup: 10ba}
  - name: new
    max_duration: 6400tok
    train:
      streams:
        - {name: new, remote: s3://bucket/new, local: data/new, proportion: 0.95}
        - {name: old, local: data/old, proportion: 0.05}
    schedule: {name: wsd, lr: 1e-4, warmup: 1%, decay: 10%}
    optimizer_state: reset
eval: {interval: 50ba, sets: [{name: old, local: data/old-val, role: upstream}]}
checkpoints: {interval: 10min, keep: 2}
preemption: {signals: [SIGTERM, SIGUSR1], grace_period: 25sec}
loggers: {tensorboard: {}}
"""


@pytest.fixture
def run_file(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    path = tmp_path / 'run.yaml'
    path.write_text(RUN)
    return path


def as_json_flow(value) -> str:
    """Plain data as one line of YAML, in which NaN and infinity can be written too."""
    if isinstance(value, dict):
        return '{' + ', '.join(f'{as_json_flow(str(key))}: {as_json_flow(item)}' for key, item in value.items()) + '}'
    if isinstance(value, list):
        return '[' + ', '.join(map(as_json_flow, value)) + ']'
    if isinstance(value, float) and value - value != 0:
        return '.nan' if value != value else '.inf' if value > 0 else '-.inf'
    return json.dumps(value)


def test_a_run_file_is_planned_and_reads_back_equal_or_is_refused_in_words(run_file):
    data = read_source(run_file).data
    ways = places(data)

    refusals = []

    def attempt(rng):
        content, overrides, what = RUN.encode(), [], rng.random()
        if what < 0.6:
            content = as_json_flow(change_value(rng, data)).encode('utf-8', 'surrogatepass')
        elif what < 0.8:
            content = change_bytes(rng, content)
        else:
            value = rng.choice(HOSTILE)
            key = '.'.join(map(str, rng.choice(ways))) + rng.choice(('', '', '', '.x', '.0', '.', '.' + 'a.' * 2000))
            overrides = [
                key + rng.choice(('=', '=', '==', '')) + (value if isinstance(value, str) else json.dumps(value))
            ]
        run_file.write_bytes(content)
        try:
            config = load(run_file, overrides)
            with redirect_stdout(io.StringIO()) as said:
                plan_command(run_file, overrides, as_json=True)
        except UserError as error:
            refusals.append(str(error))
            return
        json.loads(said.getvalue(), parse_constant=pytest.fail)
        run_file.write_text(dump(config))
        assert load(run_file) == config

    run_inputs(attempt, 400)
    assert max(map(len, refusals)) < 20_000
    assert not any('\x1b' in refusal for refusal in refusals)


def test_a_duration_reads_back_equal_or_is_refused_in_words(run_file):
    plan = make_plan(load(run_file))
    numbers = [
        '1',
        '2.97',
        '0',
        '1_0',
        '1__0',
        '1._5',
        '1.',
        '.5',
        '-1',
        '+1',
        '1e3',
        '1E5',
        '1e308',
        '1e309',
        '1e-20000',
    ]
    numbers += ['1e999999999', '9' * 30, '9' * 4400, '0.' + '3' * 50, '٣', '１', 'inf', 'nan', '0x10', '1/3', '', ' 1']
    units = ['tok', 'ba', '%', 'sec', 'min', 'h', 'dur', 'ep', 'TOK', 's', ' tok', '\ttok', 'tok\n', 'tok\0', '', '% ']

    refusals = []

    def attempt(rng):
        text = rng.choice(numbers) + rng.choice(units)
        if rng.random() < 0.3:
            at = rng.randrange(len(text) + 1)
            text = text[:at] + rng.choice('0123456789٣²½._eE+-%tokbasecminhd \t\n\0,/é') + text[at:]
        if rng.random() < 0.2:
            try:
                parse_marks(rng.choice(('', 'old:', 'x:', ':')) + text, plan)
            except UserError:
                return
            return
        try:
            duration = Duration.parse(text)
        except ValueError as error:
            refusals.append(str(error))
            return
        assert Duration.parse(str(duration)) == duration
        assert text.isascii()
        assert '__' not in text
        if duration.unit in ('tok', 'ba', '%'):
            assert duration.batches(1024, 10**6) >= 0
        else:
            assert duration.seconds < 1 << 63

    run_inputs(attempt, 600)
    assert {refusal.split()[0] for refusal in refusals} == {'must'}
