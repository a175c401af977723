"""The Job for Kubernetes: right for several minor versions, at one with itself, with the launcher and with the run file it starts."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from rewarm.config.checks import LAUNCHER_GRACE_SECONDS
from rewarm.config.load import load
from tests.end_to_end.conftest import ROOT

MANIFEST = ROOT / 'scripts/launch/kubernetes.yaml'
VERSIONS = ('1.30', '1.32', '1.34', '1.37')


def with_volume(text: str) -> str:
    """The manifest with the shared volume that its head speaks of: the lines about `runs` uncommented."""
    found, count = re.subn(
        r'^( +)# (- name: runs|- \{name: runs|  persistentVolumeClaim)', r'\1\2', text, flags=re.MULTILINE
    )
    assert count == 3
    return found


def validate(path: Path, version: str) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).parent / 'kubernetes-validate'), '--strict', '-k', version, str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize('version', VERSIONS)
@pytest.mark.parametrize('variant', [str, with_volume])
def test_every_version_takes_it(tmp_path, version, variant):
    path = tmp_path / 'job.yaml'
    path.write_text(variant(MANIFEST.read_text()))
    done = validate(path, version)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (done.stdout + done.stderr).count('passed for resource') == 2


def test_the_validation_sees_a_wrong_key(tmp_path):
    path = tmp_path / 'job.yaml'
    path.write_text(MANIFEST.read_text().replace('backoffLimit', 'backofLimit'))
    done = validate(path, VERSIONS[-1])
    assert done.returncode != 0
    assert 'backofLimit' in done.stdout + done.stderr


@pytest.fixture(scope='module')
def service_and_job() -> tuple[dict, dict]:
    service, job = YAML(typ='safe', pure=True).load_all(MANIFEST.read_text())
    return service, job


@pytest.fixture(scope='module')
def pod(service_and_job) -> dict:
    return service_and_job[1]['spec']['template']


def action(job: dict, code: int) -> str:
    """What Kubernetes does with a container that left with a code: the first rule that fits, else it counts."""
    for rule in job['spec']['podFailurePolicy']['rules']:
        if code in rule.get('onExitCodes', {}).get('values', ()):
            return rule['action']
    return 'Count'


def test_what_an_exit_code_leads_to(service_and_job):
    _, job = service_and_job
    assert {code: action(job, code) for code in (75, 143, 241, 1, 137, 247, 2)} == {
        75: 'Ignore',
        143: 'Ignore',
        241: 'Ignore',
        1: 'Count',
        137: 'Count',
        247: 'Count',
        2: 'FailJob',
    }
    conditions = [
        rule['onPodConditions'] for rule in job['spec']['podFailurePolicy']['rules'] if 'onPodConditions' in rule
    ]
    assert conditions == [[{'type': 'DisruptionTarget', 'status': 'True'}]]


def test_rules_are_about_a_container_that_exists(service_and_job, pod):
    names = {container['name'] for container in pod['spec']['containers']}
    rules = service_and_job[1]['spec']['podFailurePolicy']['rules']
    assert {rule['onExitCodes']['containerName'] for rule in rules if 'onExitCodes' in rule} == names


def test_a_pod_is_given_the_time_that_a_save_may_take(pod):
    (command,) = (container['command'] for container in pod['spec']['containers'])
    grace = load(ROOT / command[1], world_size=1).preemption.grace_period.seconds
    assert grace < LAUNCHER_GRACE_SECONDS < pod['spec']['terminationGracePeriodSeconds']


def test_what_a_pod_starts_is_there(pod):
    (command,) = (container['command'] for container in pod['spec']['containers'])
    assert (ROOT / command[0]).stat().st_mode & 0o111
    assert load(ROOT / command[1], world_size=8).run_folder.startswith('s3://')


def test_nodes_and_gpus_are_the_same_everywhere(service_and_job, pod):
    spec = service_and_job[1]['spec']
    (container,) = pod['spec']['containers']
    env = {item['name']: item.get('value') for item in container['env']}
    assert spec['completions'] == spec['parallelism'] == int(env['NODES'])
    assert container['resources']['limits']['nvidia.com/gpu'] == int(env['GPUS_PER_NODE'])
    assert spec['completionMode'] == 'Indexed'


def test_pods_find_node_0(service_and_job, pod):
    service, job = service_and_job
    (container,) = pod['spec']['containers']
    env = {item['name']: item.get('value') for item in container['env']}
    assert pod['spec']['subdomain'] == service['metadata']['name']
    assert env['MASTER_ADDR'] == f'{job["metadata"]["name"]}-0.{service["metadata"]["name"]}'
    assert service['spec']['selector'].items() <= pod['metadata']['labels'].items()
    assert service['spec']['clusterIP'] == 'None'
