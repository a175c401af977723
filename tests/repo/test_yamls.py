import glob
import shlex
from pathlib import Path
from typing import Any

import pytest

from rewarm.config.load import load
from rewarm.config.plan import Plan, check_stage_change, identity, make_plan
from rewarm.config.schema import RunConfig
from rewarm.config.show import schema_text, sketch

ROOT = Path(__file__).parents[2]
YAMLS = sorted(path.relative_to(ROOT) for path in (ROOT / 'yamls').rglob('*.yaml'))
SCHEMA = ROOT / 'yamls' / 'run.schema.json'


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv('WORLD_SIZE', raising=False)


def flatten(value: Any, way: str = '') -> dict[str, Any]:
    if isinstance(value, dict):
        return {
            key: item for name, part in value.items() for key, item in flatten(part, f'{way}.{name}'.strip('.')).items()
        }
    if isinstance(value, list):
        return {key: item for index, part in enumerate(value) for key, item in flatten(part, f'{way}.{index}').items()}
    return {way: value}


def differences(first: RunConfig, second: RunConfig) -> set[str]:
    """Dotted keys whose values differ, apart from what a run is called and where it writes."""
    left, right = flatten(first.model_dump(mode='json')), flatten(second.model_dump(mode='json'))
    found = {key for key in {*left, *right} if left.get(key) != right.get(key)}
    return found - {'run_name', 'run_folder'}


def grid() -> dict[str, list[str]]:
    """The overrides of each run of the paper, by its name."""
    lines = (ROOT / 'yamls/paper/grid.txt').read_text().splitlines()
    arms = [shlex.split(line) for line in lines if line and not line.startswith('#')]
    assert all(arm[0].startswith('run_name=') for arm in arms)
    assert len({arm[0] for arm in arms}) == len(arms)
    return {arm[0].removeprefix('run_name='): arm for arm in arms}


def arm(name: str) -> RunConfig:
    return load('yamls/paper/base.yaml', grid()[name])


@pytest.mark.parametrize('path', YAMLS, ids=str)
def test_every_run_file_plans(path: Path):
    plan = make_plan(load(path))
    assert plan.batches > 0
    assert plan.warnings == () or path.parts[1] == 'demo'  # where data exists, it may be read more than once


@pytest.mark.parametrize('path', YAMLS, ids=str)
def test_every_run_file_points_editors_to_the_schema(path: Path):
    first = path.read_text().splitlines()[0]
    marker = '# yaml-language-server: $schema='
    assert first.startswith(marker)
    assert (path.parent / first.removeprefix(marker)).resolve() == SCHEMA.resolve()


def test_the_schema_is_current():
    assert SCHEMA.read_text() == schema_text(), 'write it again: make schema'


def test_baselines_differ_from_the_headline_only_in_what_they_are_about():
    headline = load('yamls/pythia-410m/rewarm.yaml')
    curve = {f'stages.0.schedule.{key}' for key in ('name', 'lr', 'min_lr', 'warmup')}
    assert differences(headline, load('yamls/pythia-410m/constant.yaml')) == curve
    assert differences(headline, load('yamls/pythia-410m/scratch.yaml')) == {'model.init_from'}


def test_the_papers_base_is_the_headline_without_replay():
    found = differences(load('yamls/pythia-410m/rewarm.yaml'), load('yamls/paper/base.yaml'))
    assert all(key.startswith('stages.0.train.streams.') for key in found)
    assert [stream.name for stream in load('yamls/paper/base.yaml').stages[0].train.streams] == ['slimpajama']


def test_the_spot_run_differs_from_the_headline_only_in_places_and_saving():
    found = differences(load('yamls/pythia-410m/rewarm.yaml'), load('yamls/preemptible/spot.yaml'))
    assert {key for key in found if not key.endswith('.local')} == {'checkpoints.interval'}
    assert load('yamls/preemptible/spot.yaml').run_folder.startswith('s3://')


PEAK = {'stages.0.schedule.lr', 'stages.0.schedule.min_lr'}
WARMUP = {'stages.0.schedule.warmup'}
CURVE = {f'stages.0.schedule.{key}' for key in ('name', 'lr', 'min_lr', 'warmup')}
DATA = {f'stages.0.train.streams.0.{key}' for key in ('name', 'remote', 'local')}
INIT = {'model.init_from'}
REPLAY = {
    'stages.0.train.streams.0.proportion',
    *(f'stages.0.train.streams.1.{key}' for key in ('name', 'remote', 'local', 'proportion', 'shuffle')),
}
ABOUT = {
    'paper-warmup-0': WARMUP,
    'paper-warmup-0.5': WARMUP,
    'paper-warmup-2': WARMUP,
    'paper-peak-1.5e-4': PEAK,
    'paper-peak-6e-4': PEAK,
    'paper-constant': CURVE,
    'paper-scratch': INIT,
    'paper-same-data-1.5e-4': PEAK | DATA,
    'paper-same-data-3e-4': DATA,
    'paper-same-data-6e-4': PEAK | DATA,
    'paper-same-data-constant': CURVE | DATA,
    'paper-step10000': INIT,
    'paper-step10000-warmup-0': INIT | WARMUP,
    'paper-step27000': INIT,
    'paper-step27000-warmup-0': INIT | WARMUP,
    'paper-replay-0.5': REPLAY,
    'paper-replay-1': REPLAY,
    'paper-replay-5': REPLAY,
    'paper-replay-10': REPLAY,
    'paper-replay-25': REPLAY,
    'paper-replay-50': REPLAY,
}


def test_the_grid_is_the_papers():
    assert set(grid()) == set(ABOUT)


@pytest.mark.parametrize('name', ABOUT)
def test_an_arm_plans_and_differs_from_the_base_only_in_what_it_is_about(name: str):
    config = arm(name)
    assert config.run_folder == f'runs/{name}'
    assert differences(load('yamls/paper/base.yaml'), config) == ABOUT[name]
    plan = make_plan(config)
    assert (plan.batches, plan.tokens_per_batch) == (131_296, 2_260_992)


def test_the_numbers_of_the_grid():
    budget = 131_296 * 2_260_992

    def stage(name: str | None) -> Any:
        return make_plan(arm(name) if name else load('yamls/paper/base.yaml')).stages[0]

    warmups = {
        name: stage(name).schedule['warmup_tokens']
        for name in (None, 'paper-warmup-0', 'paper-warmup-0.5', 'paper-warmup-2')
    }
    assert list(warmups.values()) == [round(budget * share) for share in (0.01, 0, 0.005, 0.02)]
    for name, peak in (
        (None, 3e-4),
        ('paper-peak-1.5e-4', 1.5e-4),
        ('paper-peak-6e-4', 6e-4),
        ('paper-same-data-6e-4', 6e-4),
    ):
        assert stage(name).schedule['lr'] == peak
        assert stage(name).schedule['min_lr'] == pytest.approx(0.1 * peak)
        assert stage(name).lr(240_000_000_000) == stage(name).schedule['min_lr']  # the paper's "240B"
    assert {
        stage(name).lr(tokens) for name in ('paper-constant', 'paper-same-data-constant') for tokens in (0, budget // 2)
    } == {3e-5}
    for percent in ('0.5', '1', '5', '10', '25', '50'):
        old = stage(f'paper-replay-{percent}').streams[1]
        assert old['samples'] == round(131_296 * 1104 * float(percent) / 100)
        assert old['shuffle'] is False


def test_anneal_now_leaves_the_past_of_the_stable_run_alone():
    before, after = make_plan(load('yamls/anneal/1-stable.yaml')), make_plan(load('yamls/anneal/2-anneal-now.yaml'))
    assert before.run_name == after.run_name
    at = after.stages[0].batches
    assert check_stage_change(identity(before.stages[0]), after.stages[0], batch_in_stage=at, ended=False) == []
    assert after.stages[1].lr(0) == after.stages[0].last_lr == 1.65e-4
    assert after.stages[1].lr(after.stages[1].tokens) == 0
    found = differences(load('yamls/anneal/1-stable.yaml'), load('yamls/anneal/2-anneal-now.yaml'))
    assert {key for key in found if not key.startswith('stages.1.')} == {'stages.0.max_duration'}


def test_the_fork_anneals_as_the_run_itself_would():
    now, fork = make_plan(load('yamls/anneal/2-anneal-now.yaml')), make_plan(load('yamls/anneal/3-fork.yaml'))
    assert fork.stages[0].schedule == now.stages[1].schedule
    assert fork.stages[0].tokens == now.stages[1].tokens


def test_the_method_card_shows_the_headlines_curve():
    plan: Plan = make_plan(load('yamls/pythia-410m/rewarm.yaml'))
    card = (ROOT / 'rewarm/schedule/README.md').read_text()
    assert sketch(plan).rstrip('\n') in card


def test_the_method_card_names_every_curve_and_every_file():
    card = (ROOT / 'rewarm/schedule/README.md').read_text()
    for name in schema_names():
        assert f'`{name}`' in card, name
    for word in card.replace('`', ' ').replace(':', ' ').split():
        if word.startswith('yamls/'):
            assert glob.glob(str(ROOT / word.rstrip('.,'))), word


def schema_names() -> list[str]:
    import json

    definitions = json.loads(schema_text())['$defs']
    return [part['properties']['name']['const'] for name, part in definitions.items() if name.endswith('Schedule')]
