"""The demo's arms differ from its headline run in what they are about, and in nothing else."""

from pathlib import Path
from typing import Any

import pytest

from rewarm.config.load import load

FOLDER = Path(__file__).parents[2] / 'yamls/demo'
UPSTREAM_END = 'checkpoint:runs/demo-rewarm/checkpoints/ba00001000'


def flat(name: str) -> dict[str, Any]:
    """All settings of a run file by dotted key, those of its last stage as `stage.*`."""

    def walk(prefix: str, value: Any) -> dict[str, Any]:
        if isinstance(value, dict):
            return {key: leaf for k, v in value.items() for key, leaf in walk(f'{prefix}{k}.', v).items()}
        return {prefix.rstrip('.'): value}

    settings = load(FOLDER / f'{name}.yaml').model_dump(mode='json')
    settings['stage'] = settings.pop('stages')[-1]
    settings['stage']['streams'] = [
        (s['name'], str(s['proportion'])) for s in settings['stage'].pop('train')['streams']
    ]
    return walk('', settings)


def differences(name: str) -> dict[str, Any]:
    """What a run file says otherwise than the headline's second stage; its name apart."""
    base, arm = flat('rewarm'), flat(name)
    keys = {key for key in base.keys() | arm.keys() if base.get(key) != arm.get(key)}
    assert {'run_name', 'run_folder'} <= keys
    return {key: arm.get(key) for key in keys - {'run_name', 'run_folder'}}


@pytest.mark.parametrize(
    ('name', 'about'),
    [
        ('scratch', {}),  # untrained weights, and no first stage
        ('replay', {'model.init_from': UPSTREAM_END, 'stage.streams': [('new', '0.75'), ('old', '0.25')]}),
        ('same-data', {'model.init_from': UPSTREAM_END, 'stage.streams': [('old-unseen', '1.0')]}),
    ],
)
def test_an_arm_differs_only_in_what_it_is_about(name, about):
    assert differences(name) == about
    assert len(load(FOLDER / f'{name}.yaml').stages) == 1


def test_the_constant_arm_differs_in_its_curve_and_runs_at_the_rate_that_upstream_ended_with():
    found = differences('constant')
    assert found.pop('model.init_from') == UPSTREAM_END
    assert found.pop('stage.schedule.lr') == flat('rewarm')['stage.schedule.min_lr']
    assert found.pop('stage.schedule.name') == 'constant'
    assert set(found) <= {'stage.schedule.min_lr', 'stage.schedule.warmup', 'stage.schedule.decay_until'}


def test_the_quick_run_differs_in_lengths_alone():
    assert set(differences('quick')) == {'stage.max_duration', 'eval.interval'}
    rewarm, quick = (load(FOLDER / f'{name}.yaml') for name in ('rewarm', 'quick'))
    assert quick.stages[0].schedule == rewarm.stages[0].schedule
    assert quick.stages[0].train == rewarm.stages[0].train
