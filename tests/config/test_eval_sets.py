from __future__ import annotations

import json
from pathlib import Path

import pytest

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.config.plan_tables import set_line
from rewarm.config.show import plan_command

YAMLS = Path(__file__).parents[2] / 'yamls'
SETS = '    - {name: old, local: data/old-val, role: upstream}\n'


def planned(write_run, *replacements):
    plan = make_plan(load(write_run(*replacements)))
    return {name: set_line(plan, name) for name in plan.eval_sets}, [
        text for text in plan.warnings if 'eval set' in text
    ]


def test_the_plan_says_what_each_set_is_in_each_stage(write_run, capsys):
    more = SETS + '    - {name: new, local: data/new-val, role: downstream}\n'
    sets, warnings = planned(write_run, (SETS, more))
    assert sets == {'old': 'new in old; old, replayed in new', 'new': 'not trained in old; new in new'}
    assert warnings == []
    plan_command('run.yaml')
    assert 'eval set old           new in old; old, replayed in new' in capsys.readouterr().out
    plan_command('run.yaml', as_json=True)
    stages = json.loads(capsys.readouterr().out)['stages']
    assert [stage['eval_sets'] for stage in stages] == [
        {'old': 'new', 'new': 'not trained'},
        {'old': 'old, replayed', 'new': 'new'},
    ]


def test_a_set_that_belongs_nowhere_is_said(write_run):
    stray = SETS.replace('old, local: data/old-val, role: upstream', 'books, local: data/books, role: downstream')
    sets, (warning,) = planned(write_run, (SETS, stray))
    assert sets == {'books': 'new in old, new'}
    assert '`books` belongs to no stream' in warning
    assert '`of: [old]`' in warning
    assert '`of: []`' in warning
    assert planned(write_run, (SETS, stray.replace('downstream', 'downstream, of: []'))) == (
        {'books': 'not trained in old, new'},
        [],
    )
    assert planned(write_run, (SETS, stray.replace('downstream', 'downstream, of: [new]'))) == (
        {'books': 'not trained in old; new in new'},
        [],
    )
    # What other weights learned is old without a stream of this run; untrained weights have learned nothing.
    upstream = stray.replace('downstream', 'upstream')
    assert planned(write_run, (SETS, upstream), ('init_from: scratch', 'init_from: hf:EleutherAI/pythia-14m'))[1] == []
    assert 'untrained weights' in planned(write_run, (SETS, upstream))[1][0]


def test_a_stream_that_no_stage_has_is_said(write_run):
    _, (warning,) = planned(write_run, ('role: upstream}', 'role: upstream, of: [odl]}'))
    assert warning == (
        'eval set `old`: `of` names the stream `odl`, which no stage has. Did you mean `old`? Streams here: old, new'
    )


def test_a_role_that_the_checkpoint_contradicts_is_said(write_run):
    identity = {'name': 'law', 'streams': [{'name': 'old', 'share': '1', 'shuffle': True}]}
    stage = {'start_batch': 0, 'lr_before': None, 'mix': {}, 'identity': identity}
    state = {
        'format': 1,
        'batch': 7,
        'tokens': 7,
        'lr': 1e-4,
        'settings': {},
        'optimizer': {},
        'algorithms': {'Rewarm': {}},
    }
    keys = {'stage': None, 'start_batch': 0, 'start_tokens': 0, 'lr': None, 'lr_before': None, 'optimizer': None}
    state |= {'stages': [stage], 'algorithms': {'Rewarm': keys}}
    swapped = ('init_from: scratch', 'init_from: checkpoint:ba00000007')
    mixed = (
        '{name: old, local: data/old, proportion: 1.0}',
        '{name: june, local: data/june, proportion: 0.5}\n        - {name: old, local: data/old, proportion: 0.5}',
    )
    path = write_run(swapped, mixed, ('role: upstream', 'role: downstream'))
    Path('ba00000007').mkdir()
    Path('ba00000007/state.json').write_text(json.dumps(state))
    (warning,) = [text for text in make_plan(load(path)).warnings if 'eval set' in text]
    assert '`role: downstream`, and ba00000007 was trained on the stream `old`' in warning
    path = write_run(swapped, mixed)
    assert [text for text in make_plan(load(path)).warnings if 'eval set' in text] == []


@pytest.mark.parametrize('value', ['old', '[1]', '[""]', '{old: 1}'])
def test_of_is_a_list_of_names(write_run, value):
    with pytest.raises(UserError, match=r'run\.yaml:32'):
        load(write_run(('role: upstream}', f'role: upstream, of: {value}}}')))


@pytest.mark.parametrize('path', sorted(YAMLS.glob('*/*.yaml')), ids=lambda path: f'{path.parent.name}/{path.stem}')
def test_the_run_files_here_have_no_set_that_belongs_nowhere(path, monkeypatch):
    monkeypatch.chdir(YAMLS.parent)
    plan = make_plan(load(path), previous_lr=1e-4)
    assert [text for text in plan.warnings if 'eval set' in text] == []
    if path.name == 'same-data.yaml':
        assert plan.eval_sets == {'old': ('old, trained again',), 'new': ('not trained',)}
