import json

import pytest

from rewarm.config.errors import UserError
from rewarm.config.goodput import Conditions
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.config.schema import RunConfig
from rewarm.config.show import plan_command, schema_text, sketch


def test_the_table_has_what_matters(write_run, capsys):
    known = Conditions(tokens_per_second=10, preemptions_per_day=6, notice_share=0.5, save_seconds=12)
    plan_command(write_run(), ['checkpoints.interval=10min'], gpus=2, price=2.5, conditions=known)
    text = capsys.readouterr().out
    for words in (
        'small',
        'old 1/20 (320)',
        '4 x 8 = 32 tokens',
        '300 steps, 9,600 tokens',
        'ranks that can run it  1, 2',
        '14,067,712',
        'every 10min; at most 3 kept x 169 MB = 506 MB (12 bytes a parameter)',
        '97.7% of the time trains batches that are kept, saving every 10min',
        '0.1 on 2 GPUs',
        'attention in full',
        'warm-up ends',
        'last batch',
    ):
        assert words in text, words
    flowing = ' '.join(text.split())
    for words in (
        'stands still for 0.017 s (assumed: 10 GB/s), a save is whole after 12 s, a restart takes 180 s (assumed)',
        'checkpoints.interval: 30sec for 98.6% (6 preemptions a day, 50% of them with notice; Daly 31.2 s, Young 31.2 s)',
    ):
        assert words in flowing, flowing


def test_rates_at_given_positions(write_run, capsys):
    plan_command(write_run(), lr_at='new:1ba,160')
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['3,232', '101', '5e-05', 'new'] in lines
    assert ['160', '5', '0.00015', 'old'] in lines


def test_json_on_the_screen(write_run, capsys):
    plan_command(write_run(), lr_at='160', as_json=True)
    assert json.loads(capsys.readouterr().out)['lr_at'] == [{'tokens': 160, 'stage': 'old', 'lr': 1.5e-4}]


def test_wrong_options_are_user_errors(write_run):
    with pytest.raises(UserError, match='--lr-at x:3: no stage is called'):
        plan_command(write_run(), lr_at='x:3')
    with pytest.raises(UserError, match='x 3 ranks'):
        plan_command(write_run(), gpus=3)


def test_the_sketch_shows_both_stages(write_run):
    lines = sketch(make_plan(load(write_run())), width=60, height=4).splitlines()
    assert lines[0].startswith(' 3.00e-04 ┤')
    assert len(lines) == 4 + 3
    axis = lines[4].partition('┼')[2]
    assert [index for index, letter in enumerate(axis) if letter == '┬'] == [0, 20]  # 3,200 of 9,600 tokens
    assert lines[5][11:].split() == ['old', 'new']
    bottom = lines[3].partition('┤')[2]
    assert len(bottom) == 60  # the constant stage reaches to the end
    top = lines[0].partition('┤')[2]
    assert len(top) < 20  # 1e-4 is a third of the peak


def test_a_short_spike_is_drawn(write_run):
    path = write_run(('100ba', '100000ba'))
    plan = make_plan(
        load(path, ['stages.0.schedule={name: multistep, lr: 1e-3, milestones: [{at: 100ba, factor: 0.1}]}'])
    )
    assert sketch(plan, width=60, height=4).splitlines()[0].startswith(' 1.00e-03 ┤█')


def test_the_schema_explains_itself():
    schema = json.loads(schema_text())
    missing: list[str] = []

    def walk(name: str, part: dict) -> None:
        for key, item in part.get('properties', {}).items():
            if not item.get('description'):
                missing.append(f'{name}.{key}')

    walk('RunConfig', schema)
    for name, part in schema['$defs'].items():
        if 'properties' not in part:
            continue  # any JSON, for the arguments of loggers
        walk(name, part)
        assert part['additionalProperties'] is False
        assert part.get('description'), name
    assert missing == []
    assert set(schema['properties']) == set(RunConfig.model_fields)
    assert 'wandb' in schema['properties']['loggers']['propertyNames']['enum']
    assert schema['$defs']['WsdSchedule']['properties']['shape']['enum'] == [
        'one_minus_sqrt',
        'linear',
        'cosine',
        'exponential',
    ]


@pytest.mark.parametrize(
    'options',
    [
        {'gpus': 0},
        {'gpus': -5},
        {'gpus': 10**12},
        {'price': float('nan')},
        {'price': float('inf')},
        {'conditions': Conditions(tokens_per_second=0.0)},
        {'conditions': Conditions(tokens_per_second=float('nan'))},
        {'conditions': Conditions(tokens_per_second=1e-320)},
        {'conditions': Conditions(save_seconds=float('inf'))},
        {'conditions': Conditions(preemptions_per_day=1e308)},
    ],
)
def test_options_that_are_no_numbers_of_machines_money_or_seconds(write_run, options):
    with pytest.raises(UserError, match=r'^--[a-z-]+ .*: must be between'):
        plan_command(write_run(), **options)


def test_plan_warns_of_what_is_not_on_this_machine(write_run, capsys):
    plan_command(write_run(), as_json=True)
    warnings = json.loads(capsys.readouterr().out)['warnings']
    assert '`tokenizer`: tokenizer.json is not on this machine; it must be where the run is started' in warnings
