"""The numbers of ranks that run a batch, against counting: a batch runs on n ranks if it is n equal shares of whole microbatches."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.config.ranks import explain_choice, largest_world_size, ranks_command
from rewarm.config.schema import RunConfig
from rewarm.config.world_sizes import find_world_sizes, fitting_microbatch, nearest_batches

PAPER = (('global_train_batch_size: 4', 'global_train_batch_size: 1104'), ('size: 2', 'size: 23'))


@pytest.fixture
def paper(write_run) -> RunConfig:
    """A run with the paper's batch: 1,104 = 23 x 48 sequences."""
    return load(write_run(*PAPER), world_size=1)


def with_batch(config: RunConfig, batch: int, micro: int) -> RunConfig:
    return config.model_copy(update={'global_train_batch_size': batch, 'device_train_microbatch_size': micro})


def runs(batch: int, micro: int, ranks: int) -> bool:
    """Deals microbatches out to the ranks, round by round, until the batch is gone."""
    left = batch
    while left > 0:
        left -= micro * ranks
    return left == 0


@pytest.mark.parametrize(('batch', 'micro'), [(1104, 23), (1104, 24), (48, 4), (7, 1), (12, 12)])
def test_largest_number_is_what_trying_all_of_them_gives(paper, batch, micro):
    config = with_batch(paper, batch, micro)
    assert find_world_sizes(config) == [ranks for ranks in range(1, batch + 1) if runs(batch, micro, ranks)]
    for available in range(1, 70):
        tried = [ranks for ranks in range(1, available + 1) if runs(batch, micro, ranks)]
        assert largest_world_size(config, available) == tried[-1]


@pytest.mark.parametrize('nodes', range(1, 9))
def test_whole_nodes_only(paper, nodes):
    fitting = [count for count in range(1, nodes + 1) if runs(1104, 23, count * 8)]
    assert largest_world_size(paper, nodes * 8 + 7, gpus_per_node=8) == 8 * fitting[-1]


@pytest.mark.parametrize(('batch', 'micro'), [(1104, 23), (48, 4), (7, 1)])
def test_nearest_batches_run_on_the_ranks_and_nothing_between_does(paper, batch, micro):
    for ranks in range(1, 70):
        if runs(batch, micro, ranks):
            continue
        near = nearest_batches(with_batch(paper, batch, micro), ranks)
        assert all(runs(each, micro, ranks) for each in near)
        between = range(near[0] + 1 if len(near) == 2 else 1, near[-1])
        assert batch in between
        assert not any(runs(each, micro, ranks) for each in between)


def test_a_fitting_microbatch_is_the_largest_that_is_not_larger(paper):
    for ranks in range(1, 70):
        tried = [micro for micro in range(1, 24) if runs(1104, micro, ranks)]
        assert fitting_microbatch(paper, ranks) == (max(tried) if tried else None)


def test_says_why_not_all_are_used_and_what_would_use_them(paper):
    assert explain_choice(paper, 5, 4) == (
        'global_train_batch_size 1104 with microbatch 23 does not divide among 5 ranks; using 4. '
        'To use all 5: global_train_batch_size 1035 or 1150 (before its first batch)'
    )
    assert explain_choice(paper, 40, 24, gpus_per_node=8) == (
        'global_train_batch_size 1104 with microbatch 23 does not divide among 40 ranks; using 24 (3 nodes of 8). '
        'To use all 40: global_train_batch_size 920 or 1840 (before its first batch)'
    )
    assert explain_choice(paper, 17, 16, gpus_per_node=8) == '17 GPUs are 2 whole nodes of 8; using 16'
    assert 'To use all 46: device_train_microbatch_size 12, or' in explain_choice(paper, 46, 24)


def test_nodes_whose_gpus_do_not_divide_the_batch(paper):
    with pytest.raises(UserError, match=r'does not divide among 5 ranks, .* Use 4 GPUs of each node .* 1035 or 1150'):
        largest_world_size(paper, 10, gpus_per_node=5)
    with pytest.raises(UserError, match='--available 7: less than one node of 8 GPUs'):
        largest_world_size(paper, 7, gpus_per_node=8)


def test_what_is_chosen_is_a_world_size_that_the_run_file_loads_with(write_run):
    path = write_run(*PAPER)
    for available in (1, 5, 7, 31, 64):
        load(path, world_size=largest_world_size(load(path, world_size=1), available))


def test_prints_one_number_whatever_ranks_the_environment_has(write_run, monkeypatch, capsys):
    monkeypatch.setenv('WORLD_SIZE', '5')
    ranks_command(write_run(*PAPER), available=8)
    assert capsys.readouterr() == ('8\n', '')


def test_the_command_answers_at_once_and_without_torch(write_run):
    path = write_run(*PAPER)
    code = (
        'import json, sys; from rewarm.cli import app; '
        f'app(["ranks", {str(path)!r}, "--available", "5"], standalone_mode=False); '
        'json.dump([name for name in ("torch", "composer") if name in sys.modules], sys.stderr)'
    )
    began = time.monotonic()
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == '4\n'
    words, loaded = result.stderr.splitlines()
    assert 'using 4' in words
    assert json.loads(loaded) == []
    assert time.monotonic() - began < 5  # 0.3 s on a quiet machine


def test_a_wrong_run_file_leaves_with_code_2(tmp_path: Path):
    (tmp_path / 'run.yaml').write_text('run_name: x\n')
    command = [sys.executable, '-m', 'rewarm', 'ranks', str(tmp_path / 'run.yaml'), '--available', '4']
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (result.returncode, result.stdout) == (2, '')
    assert 'Traceback' not in result.stderr


def test_a_huge_batch_is_divided_at_once(write_run):
    config = load(
        write_run(), ['global_train_batch_size=2_000_000_000', 'device_train_microbatch_size=1'], world_size=1
    )
    sizes = find_world_sizes(config)
    assert len(sizes) == 110
    assert sizes == sorted(sizes)
    assert fitting_microbatch(config, 1024) == 1
