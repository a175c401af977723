"""The managed spot job, read by SkyPilot's own loader in an environment of its own: `make test-skypilot` makes it."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.end_to_end.conftest import ROOT

TASK = ROOT / 'scripts/launch/skypilot.yaml'
PYTHON = ROOT / '.venv-skypilot/bin/python'
LOAD = """
import json, sys, sky
from sky.utils import schemas
task = sky.Task.from_yaml(sys.argv[1])
(resources,) = task.resources
known = next(each for each in schemas.get_resources_schema()['properties']['job_recovery']['anyOf'] if each['type'] == 'object')
print(json.dumps({
    'nodes': task.num_nodes, 'spot': resources.use_spot, 'accelerators': resources.accelerators,
    'recovery': resources.job_recovery, 'known': list(known['properties']), 'envs': task.envs, 'run': task.run,
}))
"""


def read_by_skypilot(path: Path, home: Path) -> subprocess.CompletedProcess:
    if not PYTHON.exists():
        pytest.skip('SkyPilot is not installed: make test-skypilot')
    env = {**os.environ, 'HOME': str(home), 'SKYPILOT_DISABLE_USAGE_COLLECTION': '1'}
    command = [str(PYTHON), '-c', LOAD, str(path)]
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_skypilot_reads_it(tmp_path):
    done = read_by_skypilot(TASK, tmp_path)
    assert done.returncode == 0, done.stderr
    task = json.loads(done.stdout.splitlines()[-1])
    assert task['spot'] is True
    assert task['nodes'] == 1
    assert task['accelerators'] == {'H100': 8}
    assert {*task['recovery']} - {'strategy'} == {'recover_on_exit_codes', 'max_restarts_on_errors'}
    assert {*task['recovery']} <= {*task['known']}, 'the loader lets unknown keys through'
    assert task['envs']['RUN'] == 'yamls/preemptible/spot.yaml'
    assert 'multinode.sh' in task['run']


def test_skypilot_sees_a_wrong_key(tmp_path):
    path = tmp_path / 'task.yaml'
    path.write_text(TASK.read_text().replace('use_spot', 'use_spots'))
    done = read_by_skypilot(path, tmp_path)
    assert done.returncode != 0
    assert "did you mean 'use_spot'" in done.stderr


def test_what_an_exit_code_leads_to():
    recovery = YAML(typ='safe', pure=True).load(TASK.read_text())['resources']['job_recovery']
    # Not 137: with any node's failure SkyPilot kills the others and reports 137 for them, so even a 2 would come back for ever.
    assert recovery == {'recover_on_exit_codes': [75, 143, 241], 'max_restarts_on_errors': 3}


def test_setup_is_a_target_of_the_makefile():
    assert 'make env' in YAML(typ='safe', pure=True).load(TASK.read_text())['setup']
    assert '\nenv:' in (ROOT / 'Makefile').read_text()


@pytest.mark.slow
def test_what_it_runs_trains(make_run):
    run = make_run()
    machine = {'SKYPILOT_NUM_NODES': '1', 'SKYPILOT_NODE_RANK': '0', 'SKYPILOT_NUM_GPUS_PER_NODE': '1'}
    env = {**os.environ, **machine, 'SKYPILOT_NODE_IPS': '127.0.0.1\n', 'RUN': str(run.file), 'MASTER_PORT': '29517'}
    script = YAML(typ='safe', pure=True).load(TASK.read_text())['run']
    done = subprocess.run(
        ['bash', '-c', script], cwd=ROOT, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert run.lines('events')[-1]['event'] == 'finished'
