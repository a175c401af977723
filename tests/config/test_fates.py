"""Every setting has a fate when it is edited in a run that has begun, and the documents say the same."""

import re
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import pytest
from pydantic import BaseModel

from rewarm.config.fates import FATES, Change, Fate, changes_between, fate_of, fixed_settings
from rewarm.config.load import load
from rewarm.config.schema import RunConfig

PAGE = (Path(__file__).parents[2] / 'docs/resume.md').read_text()


def settings(section: type[BaseModel], way: str = '') -> list[str]:
    """Every key of a section, without positions in lists."""
    found = []
    for name, field in section.model_fields.items():
        inner = [kind for kind in walk(field.annotation) if isinstance(kind, type) and issubclass(kind, BaseModel)]
        here = f'{way}.{name}'.strip('.')
        found += [key for kind in inner for key in settings(kind, here)] or [here]
    return list(dict.fromkeys(found))


def walk(annotation: Any) -> list[Any]:
    if get_origin(annotation) in (Union, UnionType, tuple, list) or get_origin(annotation) is not None:
        return [kind for part in get_args(annotation) for kind in walk(part)]
    return [annotation]


def covered(setting: str) -> bool:
    return any(setting == key or setting.startswith(f'{key}.') for key in FATES)


def test_every_setting_has_a_fate():
    missing = [key for key in settings(RunConfig) if not covered(key)]
    assert missing == [], (
        'decide what an edit of it does to a run that has begun: rewarm/config/fates.py, docs/resume.md'
    )


def test_no_fate_is_of_a_setting_that_is_gone():
    known = settings(RunConfig)
    assert [key for key in FATES if not any(each == key or each.startswith(f'{key}.') for each in known)] == []


def test_the_walk_sees_nested_sections_lists_and_curves():
    known = settings(RunConfig)
    for key in (
        'stages.train.streams.proportion',
        'stages.schedule.warmup',
        'stages.schedule.milestones.at',
        'loggers',
    ):
        assert key in known


def test_the_page_has_each_setting_under_its_fate():
    section = PAGE.partition('## What may be edited')[2].partition('\n## ')[0]
    rows = [line.split('|')[1:3] for line in section.splitlines() if line.startswith('| `')]
    said = {key: Fate(fate.strip()) for keys, fate in rows for key in re.findall(r'`([\w.]+)`', keys.replace('[]', ''))}
    short = {
        re.sub(r'^(model\.kernels|preemption|spikes|checkpoints)\..*', r'\1', key): fate for key, fate in FATES.items()
    }
    shapes = {key for key in short if fate_of(key) is Fate.FIXED and key.startswith('model.') and key != 'model.gelu'}
    assert said == {key: fate for key, fate in short.items() if key not in shapes}


def test_what_is_fixed_for_a_run_names_sizes_also_of_a_named_model(write_run):
    fixed = fixed_settings(load(write_run()))
    assert (fixed['seed'], fixed['model.hidden_size'], fixed['data.shuffle_block_size']) == (17, 128, 65536)


@pytest.mark.parametrize(
    ('override', 'change'),
    [
        ('stages.1.max_duration=10ba', Change('stages.new.max_duration', 'stages.max_duration', '6400tok', '10ba')),
        ('max_grad_norm=2.0', Change('max_grad_norm', 'max_grad_norm', 1.0, 2.0)),
        ('eval.sets.0.role=downstream', Change('eval.sets.old.role', 'eval.sets.role', 'upstream', 'downstream')),
        ('eval.sets=[]', Change('eval.sets.old', 'eval.sets', {'name': 'old', 'local': 'data/old-val', 'role': 'upstream'}, None)),
        ('stages.1.schedule.warmup=2%', Change('stages.new.schedule.warmup', 'stages.schedule.warmup', '1%', '2%')),
    ],
)  # fmt: skip
def test_a_change_has_its_key_by_name_and_both_values(write_run, override, change):
    path = write_run()
    assert changes_between(load(path), load(path, [override])) == [change]
    assert change.fate in Fate


def test_a_secret_that_changes_is_not_told(write_run):
    path = write_run()
    before, now = (load(path, [f'loggers.wandb.init_kwargs={{api_key: {key}}}']) for key in ('first', 'second'))
    assert changes_between(before, now) == []


def test_spelling_alone_is_a_change_that_both_values_show(write_run):
    path = write_run()
    assert changes_between(load(path), load(path)) == []
    (change,) = changes_between(load(path), load(path, ['stages.0.max_duration=3200tok']))
    assert (change.was, change.now) == ('100ba', '3200tok')


def test_a_setting_nobody_decided_on_raises():
    with pytest.raises(KeyError):
        fate_of('nothing.like.it')
