"""Our recipe on a real Slurm: preempted, its node lost, its time over; each ends as the run that nothing ever broke.

Starts daemons, needs root and Debian's slurm-wlm and munge: `make test-slurm`.
"""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, Run
from tests.launch.slurm_cluster import SlurmCluster, wait_until
from tests.launch.test_loop import number_of_batches

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

RECIPE = 'scripts/launch/slurm.sbatch'
BATCHES = 4000  # 80 s on an idle machine: Slurm looks at time limits every 30 s
LONGER = (
    f'stages.0.max_duration={BATCHES // 2}ba',
    f'stages.1.max_duration={BATCHES // 2}ba',
    'checkpoints.interval=50ba',
    'eval.interval=1000ba',
)


@pytest.fixture(scope='module')
def cluster():
    assert shutil.which('slurmctld'), (
        'needs Slurm: apt-get install --no-install-recommends slurm-wlm slurm-client munge'
    )
    folder = Path(tempfile.mkdtemp(prefix='slurm', dir='/tmp'))
    cluster = SlurmCluster(folder, nodes=2)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope='module')
def straight(tmp_path_factory: pytest.TempPathFactory, data: Path) -> Run:
    """The same run, long enough to be interrupted, that nothing interrupts."""
    run = Run(tmp_path_factory.mktemp('straight'), data)
    run.finish(*LONGER)
    return run


class Job:
    """Our recipe, submitted for a run as its head says, on one rank a node and without GPUs."""

    def __init__(self, cluster: SlurmCluster, run: Run, *options: str) -> None:
        self.cluster, self.run = cluster, run
        self.log = run.file.parent / 'log'
        options = ('--gpus-per-node=0', '--partition=spot', f'--output={self.log}', '--time=30', *options)
        environment = '--export=ALL,GPUS_PER_NODE=1,OMP_NUM_THREADS=1'
        self.number = cluster.submit(environment, *options, RECIPE, str(run.file), *LONGER, cwd=ROOT)

    def __getitem__(self, key: str) -> str:
        return self.cluster.job(self.number)[key]

    def wait_for_batch(self, batch: int) -> None:
        wait_until(lambda: number_of_batches(self.run) >= batch, 90, lambda: f'batch {batch}: {self.text()}')

    def wait_for_state(self, state: str, seconds: float) -> None:
        wait_until(
            lambda: self['JobState'] == state,
            seconds,
            lambda: f'{state}: {self.cluster.job(self.number)} {self.text()}',
        )

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ''

    def start_now(self) -> None:
        """A requeued job would wait two minutes; a node refuses it only within the second in which it ended the last start."""
        self.wait_for_state('PENDING', 90)
        self.cluster.run('scontrol', 'update', f'JobId={self.number}', 'StartTime=now+3')

    def finish(self) -> None:
        self.start_now()
        self.wait_for_state('COMPLETED', 120)


def assert_equal(run: Run, straight: Run) -> None:
    assert len(straight.losses()) == BATCHES
    assert run.losses() == straight.losses()
    assert run.evals() == straight.evals()
    assert run.weights() == straight.weights()


def events(run: Run, name: str) -> list[dict]:
    return [line for line in run.lines('events') if line['event'] == name]


def test_preempted_by_a_higher_tier(cluster, make_run, straight):
    run = make_run()
    job = Job(cluster, run, '--nodes=1')
    job.wait_for_batch(60)
    urgent = cluster.submit(
        '--partition=urgent', '--nodes=2', '--output=/dev/null', '--wrap', 'sleep 3', cwd=run.file.parent
    )
    wait_until(lambda: cluster.job(urgent)['JobState'] == 'COMPLETED', 90, lambda: 'the urgent job')
    (preempted,) = events(run, 'preempted') or pytest.fail(job.text())
    assert preempted['signal'] == 'SIGTERM'
    job.finish()
    assert job['Restarts'] == '1'
    assert events(run, 'resume')[0]['lost_batches'] == 0
    assert_equal(run, straight)


def test_a_node_is_lost(cluster, make_run, straight):
    run = make_run()
    job = Job(cluster, run, '--nodes=1')
    job.wait_for_batch(120)  # a save, and some batches that are lost
    lost = job['BatchHost']
    cluster.lose_node(lost)
    try:
        job.finish()
        assert job['BatchHost'] != lost
    finally:
        cluster.start_node(lost)
        wait_until(lambda: cluster.states()[lost] == 'idle', 60, lambda: f'{lost} back')
    assert job['Restarts'] == '1'
    assert events(run, 'resume')[0]['lost_batches'] > 0
    assert_equal(run, straight)


def test_the_time_limit(cluster, make_run, straight):
    run = make_run()
    job = Job(cluster, run, '--nodes=1', '--signal=B:USR1@300')
    job.wait_for_batch(60)
    minutes = int(job['RunTime'].split(':')[1])
    cluster.run('scontrol', 'update', f'JobId={job.number}', f'TimeLimit={minutes + 3}')  # less than 300 s are left
    job.wait_for_state('PENDING', 90)
    cluster.run('scontrol', 'update', f'JobId={job.number}', 'TimeLimit=30')
    (preempted,) = events(run, 'preempted') or pytest.fail(job.text())
    assert preempted['batch'] < BATCHES
    job.finish()
    assert 'ended with code 75' in job.text()
    assert events(run, 'resume')[0]['lost_batches'] == 0
    assert_equal(run, straight)


def test_scancel_is_not_undone(cluster, make_run):
    run = make_run()
    job = Job(cluster, run, '--nodes=1')
    job.wait_for_batch(60)
    cluster.run('scancel', job.number)
    job.wait_for_state('CANCELLED', 60)
    assert job['Restarts'] == '0'
