"""Run files edited between starts: what takes effect takes just that, and what a refusal prints works when it is pasted."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from tests.end_to_end.conftest import Run
from tests.end_to_end.starting import Starter


@pytest.fixture(scope='module')
def start():
    """Starts a run; its exit code and what it said."""
    with Starter() as starter:
        yield lambda run, *overrides: starter.start(run.file, *overrides)


def events(run: Run, name: str) -> list[dict]:
    return [event for event in run.lines('events') if event['event'] == name]


def test_a_set_that_is_added_to_a_finished_run_is_evaluated_alone_and_other_weights_are_refused(start, make_run, data):
    run = make_run()
    short = ('stages.0.max_duration=4ba', 'stages.1.max_duration=4ba')
    code, said = start(run, *short)
    assert code == 0, said
    evaluated = (run.folder / 'evals.jsonl').read_bytes()
    run.file.write_text(run.file.read_text().replace(
        'checkpoints:', f'    - {{name: added, local: {data}/old-val, role: upstream}}\ncheckpoints:'
    ))  # fmt: skip
    code, said = start(run, *short, f'eval.sets.0.local={data}/new-val')
    assert code == 2
    assert 'eval set `old` was evaluated on other data before' in said
    code, said = start(run, *short, 'eval.sets.1.role=upstream')
    assert code == 0, said
    now = (run.folder / 'evals.jsonl').read_bytes()
    assert now.startswith(evaluated)
    (line,) = map(json.loads, now.removeprefix(evaluated).splitlines())
    old = [each for each in run.lines('evals') if each['set'] == 'old'][-1]
    assert line == {**old, 'set': 'added', 'kind': line['kind']}  # the same data: the same loss
    (told,) = events(run, 'settings_changed')
    assert told['changes']['eval.sets.new.role'] == ['downstream', 'upstream']
    assert set(told['changes']) == {'eval.sets.new.role', 'eval.sets.added'}
    assert 'Changed since the newest checkpoint: `eval.sets.new.role` downstream -> upstream' in said

    config = (run.folder / 'config.yaml').read_text()
    code, said = start(run, *short, 'model.init_from=hf:EleutherAI/pythia-14m')
    assert code == 2
    assert 'those of hf:EleutherAI/pythia-14m would have no effect' in ' '.join(said.split())
    assert (run.folder / 'config.yaml').read_text() == config


def test_a_run_that_stopped_goes_on_as_if_it_had_not_and_a_printed_fork_trains(start, make_run):
    whole, run = make_run('whole'), make_run('stopped')
    code, said = start(whole)
    assert code == 0, said
    assert start(run, 'stages.1.stop_at=3ba')[0] == 0
    assert run.checkpoints()[-1] == 'ba00000009'
    assert json.loads((run.folder / 'plan.json').read_text())['stages'][1]['batches'] == 3
    assert start(run)[0] == 0
    assert run.losses() == whole.losses()
    assert run.weights() == whole.weights()
    assert run.evals() == whole.evals()

    shutil.rmtree(run.folder / 'checkpoints/ba00000012')  # as a machine that dies in the middle of the stage leaves it
    code, said = start(run, 'stages.1.schedule.lr=5.0e-3')
    assert code == 2
    (command,) = [line for line in said.splitlines() if line.startswith('  rewarm train RUN.yaml ')]
    fork = make_run('fork')
    fork.folder = Path(f'{run.folder}-from-ba00000010')
    code, said = start(fork, *shlex.split(command)[3:])
    assert code == 0, said
    assert [(line['stage'], line['lr']) for line in fork.lines('metrics')] == [('second', 5e-3), ('second', 2.5e-3)]
    begun = events(fork, 'stage_start')[0]
    assert begun['changes']['lr'][0] == whole.lines('metrics')[9]['lr']
