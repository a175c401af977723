"""Nodes on this machine, each with its own composer launcher and its own /dev/shm, as `multinode.sh` starts them."""

import os
import socket
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT, Run

SCRIPT = ROOT / 'scripts/launch/multinode.sh'

# Two machines do not share it, and Streaming counts on that.
OWN_SHARED_MEMORY = ('unshare', '--mount', 'sh', '-c', 'mount -t tmpfs shm /dev/shm && exec "$@"', 'node')


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return listener.getsockname()[1]


def start(run: Run, *arguments: str, **settings: object) -> subprocess.Popen:
    env = {**os.environ, 'OMP_NUM_THREADS': '1', **{key: str(value) for key, value in settings.items()}}
    command = [*OWN_SHARED_MEMORY, str(SCRIPT), str(run.file), *arguments]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


def finish(process: subprocess.Popen, code: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=240)
    finally:
        process.kill()
    assert process.returncode == code, output
    return output


@pytest.fixture
def _separate_nodes():
    done = subprocess.run([*OWN_SHARED_MEMORY, 'true'], capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        pytest.skip(f'needs the right to mount a /dev/shm for each node: {done.stderr.strip()}')


@pytest.mark.slow
@pytest.mark.usefixtures('_separate_nodes')
def test_three_nodes_of_which_two_divide_the_batch(make_run):
    by_hand = make_run('by_hand')
    by_hand.finish(ranks=2)
    run = make_run()
    where = {'NODES': 3, 'GPUS_PER_NODE': 1, 'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': free_port()}
    nodes = [start(run, NODE_RANK=node, **where) for node in range(3)]
    idle = finish(nodes[2])
    assert 'does not divide among 3 ranks; using 2 (2 nodes of 1)' not in idle  # of one GPU each, ranks say it all
    assert 'does not divide among 3 ranks; using 2.' in idle
    assert 'node 2 is not needed' in idle
    for node in nodes[:2]:
        finish(node)
    assert {event['world_size'] for event in run.lines('events') if event['event'] == 'run_start'} == {2}
    assert run.losses() == by_hand.losses()
    assert run.weights() == by_hand.weights()


@pytest.mark.slow
@pytest.mark.usefixtures('_separate_nodes')
def test_a_single_node_needs_no_variable_and_uses_the_gpus_that_divide_the_batch(make_run):
    run = make_run()
    assert 'using 2' in finish(start(run, GPUS_PER_NODE=3, MASTER_PORT=free_port()))
    assert {event['world_size'] for event in run.lines('events') if event['event'] == 'run_start'} == {2}


def test_a_wrong_run_file_leaves_with_2_before_anything_starts(tmp_path: Path):
    (tmp_path / 'run.yaml').write_text('run_name: x\n')
    done = subprocess.run(
        [str(SCRIPT), str(tmp_path / 'run.yaml')], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2
    assert 'run.yaml' in done.stderr


def test_several_nodes_need_the_address_of_the_first(tmp_path: Path):
    env = {**os.environ, 'NODES': '2'}
    done = subprocess.run([str(SCRIPT), 'run.yaml'], env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert 'MASTER_ADDR: write the address of node 0' in done.stderr
