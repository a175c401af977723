"""The whole demo as a user runs it, and what it must show: signs and half of the measured differences, never values.

The differences on three seeds are in the comments; they are 2.5 to 16 times their own range over seeds.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from rewarm.report.arms import Arm, last_stage_arm
from rewarm.report.findings import findings
from rewarm.report.outcome import Outcome
from rewarm.report.run_folder import read_run
from tests.end_to_end.demo_runs import check_preempted_and_whole, records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def run_demo(place: Path) -> str:
    """Runs the whole demo in a folder of its own. Returns what it printed."""
    command = [sys.executable, '-m', 'rewarm', 'demo', str(place), '--full']
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope='module')
def demo(tmp_path_factory) -> tuple[Path, str]:
    place = tmp_path_factory.mktemp('demo')
    return place, run_demo(place)


@pytest.fixture(scope='module')
def arms(demo) -> dict[str, Arm]:
    place, _ = demo
    found = {name: last_stage_arm(read_run(place / f'runs/demo-{name}')) for name in load_names()}
    return {name: arm for name, arm in found.items() if arm}


def load_names() -> list[str]:
    return [path.stem for path in (ROOT / 'yamls/demo').glob('*.yaml') if path.stem != 'quick']


def old(arm: Arm) -> Outcome:
    assert arm.old is not None
    return arm.old


def new(arm: Arm) -> Outcome:
    assert arm.new is not None
    return arm.new


def forgetting(arm: Arm) -> float:
    value = old(arm).forgetting
    assert value is not None
    return value


def rise(arm: Arm) -> float:
    value = old(arm).rise
    assert value is not None
    return value


@pytest.mark.demo
def test_demo_is_preempted_goes_on_and_reports_every_arm(demo, arms):
    place, printed = demo
    check_preempted_and_whole(place, 'rewarm')
    assert sorted(arms) == ['constant', 'replay', 'rewarm', 'same-data', 'scratch']
    assert str(place / 'runs/demo.html') in printed
    assert all(f'{name} finished' in printed for name in arms)
    found = findings([*arms.values()])
    assert [each.claim for each in found if each.verdict == 'seen'] == [
        're-warmed ends below constant on new data',
        're-warmed ends below scratch on new data',
        're-warmed forgets more than constant',
        'replay reduces forgetting',
        're-warming raises the loss on the same data',
    ]
    assert len(found) == 6  # constant never leads here: the shift is strong


@pytest.mark.demo
def test_arms_start_from_the_weights_that_upstream_ended_with(arms):
    for name in ('constant', 'replay', 'same-data'):
        assert old(arms[name]).before == old(arms['rewarm']).before
        if name != 'same-data':  # which trains nothing new
            assert new(arms[name]).before == new(arms['rewarm']).before
    assert arms['same-data'].new is None


@pytest.mark.demo
def test_rewarming_ends_below_constant_and_scratch_on_new_data(arms):
    assert new(arms['rewarm']).end - new(arms['constant']).end < -0.13  # -0.28 to -0.26
    assert new(arms['rewarm']).end - new(arms['scratch']).end < -0.08  # -0.20 to -0.17


@pytest.mark.demo
def test_rewarming_forgets_and_more_than_constant(arms):
    assert rise(arms['rewarm']) > 0.5  # 1.16 to 1.21
    assert forgetting(arms['constant']) > 0.25  # 0.57 to 0.65
    assert forgetting(arms['rewarm']) - forgetting(arms['constant']) > 0.15  # 0.33 to 0.35
    assert old(arms['rewarm']).peak - old(arms['rewarm']).end > 0.05  # and it recovers in part


@pytest.mark.demo
def test_replay_saves_most_of_the_old_at_little_cost_to_the_new(arms):
    assert old(arms['replay']).end - old(arms['rewarm']).end < -0.4  # -0.90 to -0.83
    assert new(arms['replay']).end - new(arms['rewarm']).end < 0.12  # 0.04 to 0.06
    samples = records(arms['replay'].run.folder / 'metrics.jsonl')[-1]['samples']
    assert samples == {'new': 4680, 'old': 1560}  # exactly a quarter of 6,240


@pytest.mark.demo
def test_rewarming_raises_the_loss_even_on_the_same_data_and_it_recovers(arms):
    assert rise(arms['same-data']) > 0.15  # 0.30 to 0.34
    assert forgetting(arms['same-data']) < 0  # -0.18 to -0.16
