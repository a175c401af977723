"""What somebody does who has installed rewarm's wheel and has no checkout: each command in an empty folder, over the locked packages."""

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from rewarm.report.arms import last_stage_arm
from rewarm.report.run_folder import read_run
from tests.end_to_end.demo_runs import check_preempted_and_whole, records

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


class Installed:
    """An environment of its own with rewarm from a wheel.

    Its other packages are those of this environment, by a path: the files there that would lead to the checkout are not read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check', '-q']
        subprocess.run(
            [*pip, 'wheel', '--no-index', '--no-deps', '--no-build-isolation', '-w', str(folder), str(ROOT)], check=True
        )
        (self.wheel,) = folder.glob('rewarm-*.whl')
        venv.create(folder / 'env', with_pip=False, symlinks=True)
        (packages,) = folder.glob('env/lib/python*/site-packages')
        (packages / 'locked.pth').write_text(sysconfig.get_path('purelib'))
        subprocess.run(
            [*pip, '--python', str(folder / 'env'), 'install', '--no-index', '--no-deps', str(self.wheel)], check=True
        )
        launcher = Path(sys.executable).with_name('composer').read_text().splitlines(keepends=True)
        (folder / 'env/bin/composer').write_text(''.join([f'#!{folder}/env/bin/python\n', *launcher[1:]]))
        (folder / 'env/bin/composer').chmod(0o755)

    def run(self, command: str, *, at: Path, code: int = 0) -> str:
        """Runs a command line in a folder; returns what it wrote to both streams."""
        hidden = {'PYTHONPATH', 'TRITON_INTERPRET', 'VIRTUAL_ENV'}
        env = {key: value for key, value in os.environ.items() if key not in hidden}
        env |= {'PATH': f'{self.folder}/env/bin:{env["PATH"]}', 'OMP_NUM_THREADS': '1', 'PYTHONWARNINGS': 'ignore'}
        done = subprocess.run(
            ['bash', '-c', command],
            cwd=at,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == code, done.stdout
        return done.stdout


@pytest.fixture(scope='module')
def installed(tmp_path_factory) -> Installed:
    return Installed(tmp_path_factory.mktemp('wheel'))


@pytest.fixture(scope='module')
def demo(installed, tmp_path_factory) -> tuple[Path, str]:
    """The folder in which the quick demo has run, and what it printed."""
    place = tmp_path_factory.mktemp('journey')
    return place / 'rewarm-demo', installed.run('rewarm demo', at=place)


def test_it_is_the_wheel_and_not_the_checkout(installed, tmp_path):
    where = 'import rewarm, rewarm_kernels; print(rewarm.__file__, rewarm_kernels.__file__)'
    for path in installed.run(f'python -c "{where}"', at=tmp_path).split():
        assert path.startswith(str(installed.folder))
    version = re.match(r'rewarm-([^-]+)-', installed.wheel.name)
    assert version is not None
    assert installed.run('rewarm --version', at=tmp_path) == f'rewarm {version[1]}\n'


def test_examples_plan_and_recipes_can_be_started(installed, tmp_path):
    lines = installed.run('rewarm examples my/examples', at=tmp_path).splitlines()
    assert len(lines) > 15
    there = tmp_path / 'my/examples'
    assert 'pythia-410m-rewarm' in installed.run('rewarm plan yamls/pythia-410m/rewarm.yaml --gpus 8', at=there)
    installed.run('rewarm examples .', at=there, code=2)
    said = installed.run('scripts/launch/multinode.sh yamls/nothing.yaml', at=there, code=2)
    assert 'there is no such file' in said


def test_the_demo_is_preempted_goes_on_and_reports(demo):
    place, printed = demo
    check_preempted_and_whole(place, 'quick')
    page = place / 'runs/demo.html'
    assert page.stat().st_size > 100_000
    assert f'Open {page}' in printed
    arm = last_stage_arm(read_run(place / 'runs/demo-quick'))
    assert arm is not None
    assert arm.old is not None
    assert arm.new is not None
    assert arm.old.rise is not None
    assert arm.old.rise > 0.1  # code is forgotten
    assert arm.new.adaptation is not None
    assert arm.new.adaptation > 0.5  # prose is learned


@pytest.fixture(scope='module')
def trained(installed, demo) -> Path:
    """The demo's folder after a run of a new run file there, on two ranks."""
    place, _ = demo
    new = 'rewarm new again --data new=data/demo/new --replay old=data/demo/old:25% --model checkpoint:runs/demo-quick'
    installed.run(f'{new} --budget 6ba --global-batch-size 8 --gpus 2', at=place)
    assert 'again' in installed.run('rewarm plan again.yaml --gpus 2', at=place)
    installed.run('composer -n 2 -m rewarm train again.yaml data.num_workers=0', at=place)
    return place


def test_a_new_run_file_trains_on_two_ranks_and_forgetting_is_measured(trained):
    lines = records(trained / 'runs/again/metrics.jsonl')
    assert [line['batch'] for line in lines] == list(range(1, 7))
    assert lines[-1]['samples'] == {'new': 36, 'old': 12}
    starts = [event for event in records(trained / 'runs/again/events.jsonl') if event['event'] == 'run_start']
    assert [start['world_size'] for start in starts] == [2]
    before = {each['set']: each['loss'] for each in records(trained / 'runs/again/evals.jsonl') if each['batch'] == 0}
    learned = {each['set']: each['loss'] for each in records(trained / 'runs/demo-quick/evals.jsonl')}
    assert before.keys() == {'old', 'new'}
    for name, loss in before.items():
        assert loss == pytest.approx(learned[name], abs=1e-3), 'it starts from the weights that the demo ended with'


def test_the_command_line_s_package_trains_too(installed, trained):
    """As somebody types it who has seen `rewarm.cli` in a traceback."""
    overrides = 'run_name=once-more stages.0.max_duration=2ba eval.sets=[] data.num_workers=0'
    installed.run(f'composer -n 2 -m rewarm.cli train again.yaml {overrides}', at=trained)
    assert len(records(trained / 'runs/once-more/metrics.jsonl')) == 2


def test_a_run_is_looked_at(installed, trained):
    assert json.loads(installed.run('rewarm status runs/again --json', at=trained))['batch'] == 6
    installed.run('rewarm report runs/again runs/demo-quick --out page.html', at=trained)
    assert (trained / 'page.html').stat().st_size > 100_000
