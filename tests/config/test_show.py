import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from rewarm.config.errors import UserError
from rewarm.config.goodput import Conditions
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.config.schema import RunConfig
from rewarm.config.show import plan_command, schema_text, sketch
from tests.config.cards import write_card


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


@pytest.fixture
def told(write_run, capsys, monkeypatch):
    """The lines that `plan` prints in so many columns."""

    def call(*overrides, columns=None, replacements=(), **options):
        path = write_run(*replacements)
        monkeypatch.setenv('COLUMNS', str(columns)) if columns else monkeypatch.delenv('COLUMNS', raising=False)
        plan_command(path, overrides, **options)
        return capsys.readouterr().out.splitlines()

    return call


LONG = ('run_name: small', f'run_name: {"a-long-name-" * 8}'), ('name: new, local', f'name: {"stream" * 6}, local')


@pytest.mark.parametrize('columns', [80, 60, 40, None])
@pytest.mark.parametrize('replacements', [(), LONG], ids=['short', 'long'])
def test_nothing_is_cut_off_on_a_terminal_of_any_width(told, columns, replacements):
    lines = told('eval.sets=[]', columns=columns, replacements=replacements)
    text = '\n'.join(lines)
    assert '\u2026' not in text  # rich's mark of what did not fit
    assert max(map(len, lines)) <= (columns or 120)
    squeezed = ''.join(text.split())
    for words in (
        'cosine',
        '0.0003',
        '3.01e-05',
        'constant',
        'old1/20(320)',
        '19/20(6.08k)',
        'reset',
        'keep',
        '200batches',
    ):
        assert words in squeezed or (words == '200batches' and '│200│' in squeezed), words
    for replacement in replacements:
        assert replacement[1].partition(': ')[2].partition(',')[0] in squeezed


def test_a_wide_terminal_has_one_line_for_each_stage(told):
    rows = [[cell.strip() for cell in line.split('│')] for line in told(columns=120)]
    assert ['', 'old', '3.2k', '100', 'cosine', '0', '0.0003', '3.01e-05', 'old 1 (3.2k)', 'keep', ''] in rows


def test_it_says_what_it_needs_for_hours_and_cost(told):
    flowing = ' '.join(' '.join(told()).split())
    assert 'hours not estimated without --tokens-per-second (of one GPU) or --measured RUN_FOLDER' in flowing
    assert 'RUN_FOLDER and --price (of a GPU for an hour)' in flowing
    known = Conditions(tokens_per_second=10)
    flowing = ' '.join(' '.join(told(conditions=known)).split())
    assert '0.3 on 1 GPU, as no --gpus is given, without the evaluations whose sizes are not known' in flowing
    assert 'cost not estimated without --price (of a GPU for an hour)' in flowing
    hopeless = Conditions(tokens_per_second=10, preemptions_per_day=10_000)
    flowing = ' '.join(' '.join(told(conditions=hopeless, price=1.0)).split())
    assert flowing.count('not estimated: nothing would be trained') == 2


def test_what_an_evaluation_takes_is_said(told):
    flowing = ' '.join(' '.join(told()).split())
    assert '7 rounds; how many tokens `old` have is not known on this machine' in flowing
    write_card(Path('data/old-val'), samples=200)
    known = Conditions(tokens_per_second=10)
    flowing = ' '.join(' '.join(told(conditions=known, gpus=1)).split())
    assert '7 rounds of 1.6k tokens (old 1.6k), 54% of all tokens computed, about 28% of the work' in flowing
    assert 'on 1 GPU, 28% of them for evaluations' in flowing
    assert 'warning: evaluations are 54% of all tokens' in flowing
    assert 'none: the run file has no `eval.sets`' in ' '.join(told('eval.sets=[]'))


def test_missing_data_is_the_last_that_is_said(told):
    lines = [line.strip() for line in told()]
    begin = lines.index('MISSING on this machine, and without it no run starts here:')
    assert lines[begin + 1].startswith('`stages.0.train.streams.0.local`: data/old is not on this machine')
    assert lines[-1].endswith('it must be where the run is started')
    assert not any(line.startswith(('warning', 'note')) for line in lines[begin:])


def test_the_number_of_loader_processes_is_said(told):
    assert any(line.startswith('loader processes') and '3 for each rank; this machine has' in line
               for line in told('data.num_workers=3'))  # fmt: skip


def test_every_default_of_the_schema_is_a_valid_value():
    schema = json.loads(schema_text())
    found: list[str] = []

    def walk(way: str, part: Any) -> None:
        if isinstance(part, dict):
            if 'default' in part and not way.endswith('.properties'):
                found.append(way)
                jsonschema.validate(part['default'], {**part, '$defs': schema['$defs']})
            for key, item in part.items():
                walk(f'{way}.{key}', item)
        elif isinstance(part, list):
            for index, item in enumerate(part):
                walk(f'{way}.{index}', item)

    walk('', schema)
    assert len(found) > 60
    for text in ('10min', '500ba', '25sec', '20min', '0tok'):
        assert any(text == each for each in _defaults(schema)), text


def _defaults(part: Any) -> Iterator[Any]:
    if isinstance(part, dict):
        yield part.get('default')
    for item in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _defaults(item)


def test_a_file_of_nothing_but_defaults_loads(write_run):
    """What an editor inserts: every key that has a default, with it."""
    schema = json.loads(schema_text())

    def filled(part: dict) -> dict:
        return {key: item['default'] for key, item in part['properties'].items() if 'default' in item}

    sections = {'checkpoints': 'CheckpointConfig', 'preemption': 'PreemptionConfig', 'spikes': 'SpikesConfig',
                'optimizer': 'OptimizerConfig', 'eval': 'EvalConfig', 'data': 'DataConfig'}  # fmt: skip
    overrides = [f'{key}={json.dumps(filled(schema["$defs"][name]))}' for key, name in sections.items()]
    plain = [f'{key}={json.dumps(value)}' for key, value in filled(schema).items() if key not in sections]
    assert make_plan(load(write_run(), [*overrides, *plain])).batches == 300


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
