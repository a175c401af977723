from pathlib import Path

import pytest

from rewarm.config.load import dump, load
from rewarm.config.oddities import find_missing
from rewarm.config.plan import make_plan


@pytest.mark.parametrize(
    ('override', 'warning'),
    [
        ('stages.0.schedule.lr=4.0e3', 'stage `old`: `schedule.lr` is 4000; learning rates of AdamW are around 3.0e-4'),
        ('optimizer.eps=0.01', '`optimizer.eps` is 0.01; 1.0e-8 is usual'),
        ('optimizer.weight_decay=1.5', '`optimizer.weight_decay` is 1.5; 0.1 is usual'),
        ('max_grad_norm=1e30', '`max_grad_norm` is 1e+30; 1.0 is usual'),
    ],
)
def test_a_slip_is_a_warning(write_run, override, warning):
    (found,) = make_plan(load(write_run(), [override])).warnings
    assert found.startswith(warning)


def test_more_loader_processes_than_the_cores_can_run(write_run, monkeypatch):
    monkeypatch.setattr('os.cpu_count', lambda: 4)
    config = load(write_run(), ['data.num_workers=8'])
    assert make_plan(config).warnings == ()
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    (found,) = make_plan(config).warnings
    assert found.startswith('`data.num_workers` is 8 on each of 4 ranks, and this machine has 4 cores')


def test_a_secret_in_the_run_file_is_a_warning_without_it(write_run):
    given = '{neptune: {api_token: hunter2}, wandb: {init_kwargs: {settings: {api_key: hunter2}}}, tensorboard: {}}'
    config = load(write_run(('{tensorboard: {}}', given)))
    first, second = make_plan(config).warnings
    assert first == (
        '`loggers.neptune.api_token` is a secret in the run file. Put it into `NEPTUNE_API_TOKEN`, and remove it there'
    )
    assert second.startswith(
        '`loggers.wandb.init_kwargs.settings.api_key` is a secret in the run file. Put it into `WANDB_API_KEY`'
    )
    Path('again.yaml').write_text(dump(config))
    assert make_plan(load('again.yaml')).warnings == ()


def test_paths_that_are_not_on_this_machine(write_run):
    config = load(write_run(('init_from: scratch', 'init_from: checkpoint:other/ba1')))
    Path('data/old').mkdir(parents=True)
    Path('data/old/index.json').write_text('')
    assert list(find_missing(config)) == [
        '`stages.1.train.streams.0.local`: data/new is not on this machine; it must be where the run is started',
        '`eval.sets.0.local`: data/old-val is not on this machine; it must be where the run is started',
        '`tokenizer`: tokenizer.json is not on this machine; it must be where the run is started',
        '`model.init_from`: other/ba1 is not on this machine; it must be where the run is started',
    ]


@pytest.mark.parametrize('override', ['tokenizer=EleutherAI/pythia-410m', 'model.init_from=hf:EleutherAI/pythia-410m'])
def test_an_id_is_no_path_and_must_be_in_the_cache(write_run, override, tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_CACHE', str(tmp_path / 'hub'))
    key = override.partition('=')[0]
    (found,) = (text for text in find_missing(load(write_run(), [override])) if f'`{key}`' in text)
    assert "is not in this machine's Hugging Face cache; where the run is started: hf download EleutherAI" in found
    (tmp_path / 'hub' / 'models--EleutherAI--pythia-410m').mkdir(parents=True)
    assert not [text for text in find_missing(load(write_run(), [override])) if f'`{key}`' in text]


def test_a_folder_that_holds_no_dataset_names_those_below(write_run):
    for split in ('train', 'val'):
        Path('data/old', split).mkdir(parents=True)
        Path('data/old', split, 'index.json').write_text('')
    found = list(find_missing(load(write_run())))
    hint = 'data/old holds no dataset (no index.json); it has train, val below: name one of them'
    assert f'`stages.0.train.streams.0`: {hint}' in found
    cached = load(write_run(('local: data/old,', 'local: data/old, remote: s3://b/old,')))
    assert not [text for text in find_missing(cached) if '`stages.0.train' in text]
