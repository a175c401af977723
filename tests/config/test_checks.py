import json
from pathlib import Path
from typing import Any

import pytest

from rewarm.config.load import load
from rewarm.config.loggers import LOGGERS
from rewarm.config.plan import make_plan
from rewarm.formats.card import DatasetCard

SCHEDULE = '{name: cosine, lr: 3e-4, min_lr: 3e-5, warmup: 10ba}'


def write_card(folder: str, **changes) -> None:
    values = {
        'version': 1,
        'tokenizer_hash': 'sha256:0',
        'vocab_size': 300,
        'eod_id': 0,
        'seq_len': 8,
        'dtype': 'uint16',
    }
    values |= {'documents': 1, 'tokens': 801, 'bytes': 3000, 'samples': 100, 'converter': 'test'}
    Path(folder).mkdir(parents=True)
    Path(folder, 'dataset_card.json').write_text(DatasetCard(**{**values, **changes}).model_dump_json())


def test_batch_that_does_not_divide(problems_of):
    assert problems_of(('batch_size: 4', 'batch_size: 5')) == (
        'run.yaml:4: `global_train_batch_size` 5 is not a multiple of `device_train_microbatch_size` 2 x 1 rank. '
        'Write 4 or 6, or `device_train_microbatch_size: 1`',
    )


def test_batch_is_checked_against_the_ranks(problems_of, monkeypatch):
    (problem,) = problems_of(world_size=3)
    assert 'x 3 ranks. Write 6, or run it on 2 of the ranks (1, 2 can)' in problem
    monkeypatch.setenv('WORLD_SIZE', '8')
    (problem,) = problems_of()
    assert 'x 8 ranks. Write 16, or run it on 2 of the ranks (1, 2 can)' in problem
    monkeypatch.setenv('WORLD_SIZE', '2')
    assert problems_of() == ()


@pytest.mark.parametrize(
    ('old', 'new', 'problem'),
    [
        (
            'local: data/old-val, ',
            '',
            'run.yaml:32: `eval.sets.0`: eval set `old` has no data. Write `local: <folder>`',
        ),
        (
            '- {name: new, local: data/new,',
            '- {name: new,',
            'run.yaml:22: `stages.1.train.streams.0`: stream `new` has no data',
        ),
        ('- name: new', '- name: old', 'run.yaml:18: `stages.1.name`: two stages are called `old`. Rename one'),
        (
            '{name: new, local',
            '{name: old, local',
            'run.yaml:23: `stages.1.train.streams.1.name`: two streams are called `old`',
        ),
        (
            '0.95}',
            '0.9}',
            '`stages.1.train.streams`: the proportions of stage `new` sum to 0.95, not to 1. Write `proportion: 0.1` for `old`',
        ),
        ('0.95}', '1.0}', 'the proportions of stage `new` sum to 1.05, not to 1. Lower some'),
        (
            'max_duration: 100ba',
            'max_duration: 1h',
            'run.yaml:13: `stages.0.max_duration` must be in tokens or batches',
        ),
        ('max_duration: 100ba', 'max_duration: 0', 'run.yaml:13: `stages.0.max_duration` must be in tokens or batches'),
        (
            'interval: 50ba',
            'interval: 10min',
            'run.yaml:30: `eval.interval` must be above 0 and in `ba`, `tok`, got `10min`',
        ),
        ('interval: 20ba', 'interval: 1%', 'run.yaml:33: `checkpoints.interval` must be above 0 and in'),
        (
            'loggers:',
            'preemption: {grace_period: 3ba}\nloggers:',
            'run.yaml:34: `preemption.grace_period` must be above 0 and in `sec`',
        ),
        (
            'loggers:',
            'preemption: {hang_timeout: 100ba}\nloggers:',
            'run.yaml:34: `preemption.hang_timeout` must be above 0 and in `sec`',
        ),
    ],
)
def test_settings_that_contradict_each_other(problems_of, old, new, problem):
    (found,) = problems_of((old, new))
    assert problem in found


@pytest.mark.parametrize(
    ('schedule', 'key', 'problem'),
    [
        (
            '{name: cosine, lr: 3e-4, warmup: 101ba}',
            'warmup',
            'is `3232tok`, longer than the stage of `3200tok`. Shorten it',
        ),
        ('{name: cosine, lr: 3e-4, warmup: 100ba}', 'warmup', 'leaves no room for the decay'),
        (
            '{name: cosine, lr: 3e-4, warmup: 1h}',
            'warmup',
            'must be in tokens, batches or % of the stage, not time, got `1h`',
        ),
        (
            '{name: cosine, lr: 3e-4, min_lr: 1e-3}',
            'min_lr',
            '0.001 is above `lr` 0.0003. Write at most 0.0003, or raise `lr`',
        ),
        (
            '{name: linear, lr: 3e-4, decay_until: 101ba}',
            'decay_until',
            'is `3232tok`, past the end of the stage at `3200tok`',
        ),
        ('{name: linear, lr: 3e-4, decay_until: 5ba, warmup: 6ba}', 'decay_until', 'leaves no room for the decay'),
        (
            '{name: neox_clipped_cosine, lr: 3e-4, warmup: 51ba}',
            'warmup',
            'this curve needs it to be at most half of the stage, `1600tok`',
        ),
        (
            '{name: wsd, lr: 3e-4, warmup: 50%, decay: 60%}',
            'decay',
            'of `1920tok` and `warmup` of `1600tok` do not fit the stage of `3200tok`',
        ),
        ('{name: wsd, lr: 3e-4, decay: 0}', 'decay', 'is 0. Write its length, such as `10%`, or use `name: constant`'),
        ('{name: wsd, lr: 3e-4, decay: 10%, shape: exponential}', 'min_lr', 'must be above 0 for `shape: exponential`'),
        ('{name: inverse_sqrt, lr: 3e-4, timescale: 0}', 'timescale', 'must be above 0'),
        (
            '{name: infinite_cosine, lr: 3e-4, constant_lr: 4e-4, cooldown: 10%}',
            'constant_lr',
            '0.0004 is above `lr` 0.0003',
        ),
        (
            '{name: infinite_cosine, lr: 3e-4, constant_lr: 1e-4, min_lr: 2e-4, cooldown: 10%}',
            'min_lr',
            '0.0002 is above `constant_lr`',
        ),
        ('{name: infinite_cosine, lr: 3e-4, constant_lr: 1e-4, cooldown: 0}', 'cooldown', 'must be above 0'),
        (
            '{name: infinite_cosine, lr: 3e-4, constant_lr: 1e-4, cooldown: 95%, warmup: 10%}',
            'cooldown',
            'do not fit the stage',
        ),
        (
            '{name: infinite_inverse_sqrt, lr: 3e-4, constant_lr: 1e-4, min_lr: 1e-5, cooldown: 60%, constant: 40%}',
            'constant',
            'leaves no room for the anneal: after `warmup` and `cooldown` `1280tok` are left',
        ),
        (
            '{name: infinite_cosine, lr: 3e-4, constant_lr: 1e-4, cooldown: 60%, constant: 10%}',
            'min_lr',
            'must be above 0 when `constant`',
        ),
        (
            '{name: multistep, lr: 3e-4, milestones: [{at: 9ba, factor: 0.1}, {at: 8ba, factor: 0.1}]}',
            'milestones',
            'must be in order',
        ),
        ('{name: multistep, lr: 3e-4, milestones: [{at: 100ba, factor: 0.1}]}', 'milestones', 'end at `3200tok`'),
        (
            '{name: multistep, lr: 3e-4, warmup: 9ba, milestones: [{at: 8ba, factor: 0.1}]}',
            'milestones',
            'before the warm-up ends',
        ),
        ('{name: multistep, lr: 3e-4, milestones: [{at: 8min, factor: 0.1}]}', 'milestones.0.at', 'not time'),
        ('{name: linear, lr: current}', 'lr', 'is `current`, but no stage came before'),
        ('{name: linear, lr: 1e-3, warmup_from: current}', 'warmup_from', 'is `current`, but no stage came before'),
    ],
)
def test_curves_that_do_not_fit(problems_of, schedule, key, problem):
    (found,) = problems_of((SCHEDULE, schedule))
    assert found.startswith(f'run.yaml:17: `stages.0.schedule.{key}` {problem}') or problem in found
    assert f'`stages.0.schedule.{key}`' in found


def test_a_phase_may_end_where_the_budget_was_before_rounding(problems_of):
    # 3,210 tokens are 100.3 batches of 32, rounded to 3,200.
    for schedule in (
        '{name: cosine, lr: 1e-3, decay_until: 3210tok}',
        '{name: wsd, lr: 1e-3, warmup: 2210tok, decay: 1000tok}',
        '{name: constant, lr: 1e-3, warmup: 3210tok}',
        '{name: infinite_cosine, lr: 1e-3, constant_lr: 1e-4, warmup: 210tok, cooldown: 3000tok}',
    ):
        assert problems_of(('100ba', '3210tok'), (SCHEDULE, schedule)) == ()


def test_min_lr_is_checked_against_the_rate_that_current_means(problems_of):
    (problem,) = problems_of(
        ('name: constant\n      lr: 1e-4\n      warmup: 1%', 'name: linear\n      lr: current\n      min_lr: 1e-4')
    )
    assert '`stages.1.schedule.min_lr` 0.0001 is above `lr` 3.0' in problem


def test_too_fine_shares(problems_of):
    (problem,) = problems_of(('0.95}', '0.9499999}'), ('0.05}', '0.0500001}'))
    assert 'common denominator 10,000,000' in problem


def test_one_cache_for_two_remotes(problems_of):
    (problem,) = problems_of(
        ('{name: new, local: data/new', '{name: new, remote: s3://b/new, local: data/x'),
        ('local: data/old-val', 'remote: s3://b/v, local: data/x'),
    )
    assert 'already caches s3://b/new, so it cannot cache s3://b/v' in problem


def test_seq_len_of_the_data(write_run, problems_of):
    write_run()
    write_card('data/old', seq_len=16)
    (problem,) = problems_of()
    assert problem == (
        'run.yaml:3: `max_seq_len` is 8, but the data of `stages.0.train.streams.0` was converted with 16. '
        'Write 16, or convert it again with `--seq-len 8`'
    )


def test_vocabulary_of_the_data(write_run, problems_of):
    write_run()
    write_card('data/old-val', vocab_size=60000)
    (problem,) = problems_of()
    assert 'its tokenizer has 60,000 ids and the model only 50,304' in problem


def test_a_card_that_cannot_be_read(write_run, problems_of):
    write_run()
    Path('data/old-val').mkdir(parents=True)
    Path('data/old-val/dataset_card.json').write_text('{"version": 1}')
    (problem,) = problems_of()
    assert problem.startswith('run.yaml:32: `eval.sets.0`: data/old-val/dataset_card.json: damaged: tokenizer_hash')


def test_reading_data_more_than_once_is_a_warning(write_run):
    path = write_run()
    write_card('data/old', samples=100)
    assert make_plan(load(path)).warnings == ('stage `old` reads stream `old` 4.0 times: 400 of 100 samples',)


def test_a_long_grace_period_is_a_warning(write_run):
    path = write_run(('loggers:', 'preemption: {grace_period: 2min}\nloggers:'))
    (warning,) = make_plan(load(path)).warnings
    assert '`preemption.grace_period` is 2min' in warning
    assert '30 s after a SIGTERM' in warning


@pytest.mark.parametrize('action', ['skip', 'rollback'])
def test_acting_on_jumps_as_small_as_those_of_rewarming_is_a_warning(write_run, action):
    (warning,) = make_plan(
        load(write_run(('loggers:', f'spikes: {{on_spike: {action}, min_rise: 0.2}}\nloggers:')))
    ).warnings
    assert '`spikes.min_rise` is 0.2 nat' in warning
    assert f'with `on_spike: {action}`' in warning
    for harmless in ('{on_spike: log, min_rise: 0.2}', f'{{on_spike: {action}}}'):
        assert make_plan(load(write_run(('loggers:', f'spikes: {harmless}\nloggers:')))).warnings == ()


def test_sequences_longer_than_the_model_was_made_for_are_a_warning(write_run):
    (warning,) = make_plan(load(write_run(('max_seq_len: 8', 'max_seq_len: 4096')))).warnings[:1]
    assert 'at most 2048 positions' in warning


def test_the_rate_of_a_checkpoint(write_run, problems_of):
    new = (('init_from: scratch', 'init_from: checkpoint:other/ba1'), (SCHEDULE, '{name: linear, lr: current}'))
    path = write_run(*new)
    with pytest.raises(ValueError, match='not on this machine'):
        make_plan(load(path))
    assert make_plan(load(path), previous_lr=2e-4).lr_at(0) == 2e-4
    Path('other/ba1').mkdir(parents=True)
    (problem,) = problems_of(*new)
    assert 'the checkpoint holds no rate' in problem
    Path('other/ba1/state.json').write_text(json.dumps({'batch': 1, 'lr': 1.5e-4}))
    assert make_plan(load(path)).lr_at(0) == 1.5e-4


@pytest.mark.slow
def test_loggers_are_composers():
    import inspect

    from composer import loggers

    classes = {
        'tensorboard': loggers.TensorboardLogger,
        'wandb': loggers.WandBLogger,
        'mlflow': loggers.MLFlowLogger,
        'neptune': loggers.NeptuneLogger,
        'comet_ml': loggers.CometMLLogger,
        'file': loggers.FileLogger,
        'in_memory': loggers.InMemoryLogger,
    }
    assert list(classes) == list(LOGGERS)
    named_by_the_run = {'filename', 'remote_file_name', 'overwrite'}
    for name, known in LOGGERS.items():
        parameters = {
            key: each
            for key, each in inspect.signature(classes[name]).parameters.items()
            if each.kind != inspect.Parameter.VAR_KEYWORD and not (name == 'file' and key in named_by_the_run)
        }
        if name == 'neptune':  # goes on with what `neptune.Run` takes
            assert list(parameters) == list(known)[: len(parameters)]
        else:
            assert list(parameters) == list(known), name
        for key, each in parameters.items():
            assert known[key] == _kind_of(each), f'{name}.{key}: {each}'


def _kind_of(parameter: Any) -> str:
    """The kind of an argument by what its annotation begins with."""
    text = str(parameter.annotation).replace('typing.', '').removeprefix('Optional[').removeprefix('Union[')
    kinds = {
        'bool': 'flag',
        'int': 'count',
        'list[str]': 'texts',
        'dict[': 'keys',
        'str': 'text',
        'NEPTUNE_MODE': 'text',
    }
    kinds['Literal['] = 'text'
    return next(kind for begin, kind in kinds.items() if text.removeprefix("<class '").startswith(begin))


@pytest.mark.parametrize('place', ['ftp://host/run', 'azure://container/run', 's3://', 's3://bucket', 'gs://bucket/'])
def test_a_run_folder_that_is_no_place_for_a_run(problems_of, place):
    (problem,) = problems_of(overrides=[f'run_folder={place}'])
    assert f'`run_folder`: {place} is no place for a run. Write a folder, or `s3://bucket/prefix`, `gs://' in problem


@pytest.mark.parametrize('place', ['s3://bucket/run', 'gs://bucket/a/run', 'az://container/run/', '/runs/a', 'runs/a'])
def test_places_for_a_run(problems_of, place):
    assert problems_of(overrides=[f'run_folder={place}']) == ()
