"""Each benchmark runs at its smallest and prints its figures; how large they are is not tested."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCH = ROOT / 'scripts' / 'bench'
WHERE = {'cpu', 'cores', 'load', 'python', 'versions', 'commit'}


def bench(name: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [sys.executable, str(BENCH / name), *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, 'OMP_NUM_THREADS': '1', **environment},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def figures(*command: str) -> list[dict]:
    found = [json.loads(line) for line in bench(*command).splitlines()]
    assert all(WHERE <= figure.keys() for figure in found)
    return found


@pytest.mark.slow
def test_trainer_compares_the_same_training_on_both_sides():
    (found,) = figures('trainer.py', '--size', 'tiny', '--rounds', '1', '--batches', '4', '--warm-up', '1')
    assert found['ratio'] > 0
    assert found['bar'] == 1.1
    assert found['largest_loss_difference'] < 1e-4
    assert found['step_ms'].keys() == found['tokens_per_second'].keys() == {'rewarm', 'bare'}
    assert min(found['tokens_per_second'].values()) > 0
    assert found['batches_of_a_round'] == 3


@pytest.mark.slow
def test_startup_tells_of_commands_of_each_kind_of_start_and_of_imports():
    plan, usage, new, resumed, resumed_cold, imports = figures('startup.py', '--repeat', '1', '--workers', '0')
    assert [each['figure'] for each in (plan, usage, new, resumed, resumed_cold, imports)] == [
        'plan', 'help', 'new', 'resumed', 'resumed_cold', 'imports',
    ]  # fmt: skip
    assert min(plan['seconds'], usage['seconds']) > 0
    for start in (new, resumed, resumed_cold):
        assert 0 < start['run_start'] < start['batch_begun'] < start['batch_done'] < start['ended']
    assert {'torch', 'composer', 'streaming', 'transformers', 'rewarm'} <= imports['seconds'].keys()
    assert imports['total'] >= sum(imports['seconds'].values()) - 0.1


@pytest.mark.slow
def test_checkpoint_tells_of_seconds_and_memory_of_saving_saving_beside_training_and_loading():
    written, beside, loaded = figures('checkpoint.py', '--size', 'tiny')
    assert [each['process'] for each in (written, beside, loaded)] == ['write', 'background', 'load']
    assert len(beside['stall_seconds']) == len(beside['save_seconds']) == len(beside['training_speed']) == 3
    assert all(0 < stall < save for stall, save in zip(beside['stall_seconds'], beside['save_seconds'], strict=True))
    assert written['seconds'].keys() == {'files', 'hash', 'flush', 'total'}
    assert loaded['seconds'].keys() == {'verify', 'build', 'load'}
    assert loaded['mapped_after'] == 0
    for found in (written, beside, loaded):
        assert found['bytes_of_tensors']['optimizer'] > 2 * found['bytes_of_tensors']['model']
        assert found['bytes_on_disk'] > sum(found['bytes_of_tensors'].values())
        assert found['memory']['peak_rss'] > found['memory']['peak_anonymous'] > 0


@pytest.mark.slow
def test_agreement_is_measured_for_each_number_of_ranks():
    one, two = figures('agreement.py', '--ranks', '1', '2', '--calls', '50')
    assert (one['ranks'], two['ranks']) == (1, 2)
    assert 0 < one['median_us'] < two['median_us'] <= two['p99_us']


def test_order_prints_its_figures():
    lines = bench('order.py', '--samples', '1e6').splitlines()
    assert [line.split(':')[0].strip() for line in lines[1:4]] == ['start', 'middle', 'end']


def test_conversion_without_corpora_is_skipped_unless_they_were_asked_for(tmp_path):
    assert 'skipped' in bench('convert.py', REWARM_DATA=str(tmp_path))
    asked = subprocess.run([sys.executable, str(BENCH / 'convert.py'), '--data', str(tmp_path)], capture_output=True)
    assert asked.returncode == 1


@pytest.mark.parametrize('script', sorted(path.name for path in BENCH.glob('[!_]*.py')))
def test_help_teaches_and_nothing_must_be_given(script):
    usage = bench(script, '--help')
    assert len(usage.split('options:')[0].split('\n')) > 3
    assert f'usage: {script} [-h]' in usage
    assert 'positional' not in usage


def test_make_bench_goes_on_after_a_failure_and_tells_of_it(tmp_path):
    (line,) = [
        line.strip().removeprefix('@').replace('$$', '$').replace('$(BIN)/python', sys.executable)
        for line in (ROOT / 'Makefile').read_text().splitlines()
        if 'scripts/bench' in line
    ]
    folder = tmp_path / 'scripts' / 'bench'
    folder.mkdir(parents=True)
    for name, body in (('_common', 'print("no benchmark")'), ('a', 'raise SystemExit(1)'), ('b', 'print("went on")')):
        (folder / f'{name}.py').write_text(body)
    result = subprocess.run(['bash', '-c', line], cwd=tmp_path, capture_output=True, text=True)
    assert result.stdout == '== scripts/bench/a.py\n== scripts/bench/b.py\nwent on\n'
    assert result.returncode == 1
