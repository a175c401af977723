"""The demo's driver, with a stand-in for `rewarm train`: what it starts when, what a preemption and a failure do."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewarm.demo import run, training

ROOT = Path(__file__).parents[2]

# Does 100 batches at a time, keeps its position in a file, saves and leaves with 75 on SIGTERM.
STAND_IN = """
import json, signal, sys, time
from pathlib import Path
folder, batches, needs = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
if needs != '-' and not Path(needs).exists(): sys.exit('started too early')
folder.mkdir(parents=True, exist_ok=True)
def write(name, **fields):
    with (folder / name).open('a') as file: file.write(json.dumps(fields) + '\\n')
stop = []
signal.signal(signal.SIGTERM, lambda *_: stop.append(1))
write('events.jsonl', event='run_start')
position = folder / 'position'
done = int(position.read_text()) if position.exists() else 0
if done: write('events.jsonl', event='resume', batch=done, lost_batches=0)
while done < batches:
    time.sleep(0.03)
    done = min(done + 100, batches)
    position.write_text(str(done))
    at = dict(stage='upstream', batch=done, tokens=done, stage_tokens=done)
    write('metrics.jsonl', **at, lr=1e-3, loss=4.0)
    write('evals.jsonl', **at, set='old', role='upstream', loss=3.5)
    if done == 1000:
        (folder / 'checkpoints/ba00001000').mkdir(parents=True)
        (folder / 'checkpoints/ba00001000/manifest.json').write_text('{}')
    if stop:
        write('events.jsonl', event='save', path=f'checkpoints/ba{done:08}')
        sys.exit(75)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    shutil.copytree(ROOT / 'yamls/demo', tmp_path / 'yamls/demo')
    (tmp_path / 'stand_in.py').write_text(STAND_IN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, 'LOOK_EVERY', 0.02)
    monkeypatch.setattr(training, 'SIGNS_OF_LIFE', 0.05)
    monkeypatch.setattr(training, 'ON_A_TERMINAL', False)
    return tmp_path


def make(name: str, *, sigterm: bool = False) -> training.Training:
    made = training.Training(name, sigterm=sigterm)
    made.command = [sys.executable, 'stand_in.py', str(made.folder), str(made.batches), str(made.waits_for or '-')]
    return made


def test_preempted_in_the_second_stage_and_started_again_until_it_is_done(place, capsys):
    headline = make('rewarm', sigterm=True)
    assert headline.batches == 1780
    assert headline.sigterm_at == 1000 + 117  # 15 % of the second stage
    training.train_all([headline])
    events = (headline.folder / 'events.jsonl').read_text()
    assert events.count('run_start') == 2
    assert headline.progress()[0] == 1780
    out = capsys.readouterr().out
    assert out.count('SIGTERM to rewarm at batch') == 1
    assert 'left with code 75' in out
    assert out.count('went on behind batch') == 1
    assert 'batches to do again: 0' in out
    assert 'rewarm finished: upstream, rate 1.0e-03, loss 4.00, old 3.50' in out
    assert 'batches, upstream, rate' in out  # a sign of life without a terminal


def test_arms_wait_for_the_checkpoint_that_they_start_from(place, capsys):
    training.train_all([make(name) for name in run.ARMS])
    starts = [line for line in capsys.readouterr().out.splitlines() if line.startswith('$')]
    assert len(starts) == 5
    assert 'demo-rewarm' in starts[0]
    assert 'demo-scratch' in starts[1]


def test_an_arm_whose_checkpoint_no_run_writes_is_an_error_and_not_a_wait(place):
    with pytest.raises(SystemExit, match='constant needs runs/demo-rewarm'):
        training.train_all([make('constant')])


def test_a_failure_shows_the_end_of_its_log_and_stops_the_others(place, capsys):
    good, bad = make('rewarm'), make('scratch')
    bad.command = [sys.executable, '-c', 'import sys; sys.exit("no such disk")']
    with pytest.raises(SystemExit) as stopped:
        training.train_all([good, bad])
    assert stopped.value.code == 1
    assert good.process is not None
    assert good.process.poll() is not None
    err = capsys.readouterr().err
    assert 'no such disk' in err
    assert 'runs/demo-logs/scratch.log' in err


@pytest.mark.parametrize(('number', 'code'), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_no_run_outlives_the_driver_and_each_may_save(place, number, code):
    stand_in = 'import signal, time; from pathlib import Path\n'
    stand_in += 'def left(*_): Path("left").write_text("saved"); raise SystemExit(75)\n'
    stand_in += 'signal.signal(signal.SIGTERM, left); Path("ready").touch(); time.sleep(60)'
    driver = f"""
import sys
from rewarm.demo import run, training
run.on_signals()
scratch = training.Training('scratch')
scratch.command = [sys.executable, '-c', {stand_in!r}]
try:
    training.train_all([scratch])
except KeyboardInterrupt:
    sys.exit(130)
"""
    process = subprocess.Popen([sys.executable, '-c', driver], stdout=subprocess.DEVNULL)
    while not (place / 'ready').exists():
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=30) == code
    assert (place / 'left').read_text() == 'saved'
