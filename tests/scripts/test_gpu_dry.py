"""Each section of the GPU command runs on a CPU and records what the tables are made of; no figure means anything here."""

import json
import sys
from importlib import import_module

import bench
import pytest

from scripts.gpu import run

pytestmark = pytest.mark.slow


@pytest.fixture
def records(tmp_path, monkeypatch):
    """Runs a section as run.py would, in this process; returns its records by item and implementation."""
    path = tmp_path / 'records'

    def call(main, *arguments: str, failed: bool = False) -> dict[tuple[str, str], dict]:
        monkeypatch.setattr(sys, 'argv', ['section', *arguments, '--dry', '--records', str(path), '--seconds', '500'])
        assert bool(main()) is failed
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        assert [line for line in lines if 'error' in line] == []
        return {(line['item'], line['implementation']): line for line in lines}

    return call


def main_of(section: str):
    return import_module(f'scripts.gpu.{section}').main


def test_facts(records):
    found = records(main_of('facts'))
    assert found['copy', '2147 MB']['gb_per_second'] > 0
    assert found['product square', '']['tflops'] > 0
    assert found['products of a step', '']['ms'] > 0
    assert found['fp32 products', '']['ok'] is True
    for name in ('qkv', 'dense', 'fc1', 'fc2', 'head'):
        assert {'tflops_forward', 'tflops_dx', 'tflops_dw_fp32'} <= found[f'product {name}', ''].keys()


def test_attention(records):
    found = records(lambda: bench.main(), 'attention')
    assert {('causal', name) for name in ('sdpa', 'cpu', 'math')} == found.keys()
    for record in found.values():
        assert {'tflops_forward', 'tflops_both', 'ms_a_step', 'error_out', 'error_grads', 'kernels'} <= record.keys()
        assert record['bit_equal'] is True
        assert record['error_grads'] < 0.02


def test_ops(records):
    found = records(lambda: bench.main(), 'ops')
    for name, make in bench.CASES.items():
        case = make(bench.TINY, bench.torch.device('meta'))
        for way in case.ways:
            record = found[name, way]
            if 'skipped' in record:
                assert way == 'liger' or 'F.linear_cross_entropy' in way
                continue
            for done in case.moved:
                assert {f'ms_{done}', f'gb_per_second_{done}', f'percent_of_copy_{done}'} <= record.keys()
            for done in case.flops:
                assert {f'ms_{done}', f'tflops_{done}'} <= record.keys()


@pytest.mark.parametrize('way', ['triton', 'torch', 'hf-amp', 'triton-compiled', 'hf-compiled'])
def test_step(records, way):
    found = records(main_of('step'), way)
    keys = {'tokens_per_second', 'mfu_causal', 'mfu_palm', 'mfu_foundry', 'ms', 'peak_gb', 'microbatch', 'computed_by'}
    assert keys <= found['410M', way].keys()
    parts = {f'ms_{part}' for part in ('gemm', 'attention', 'elementwise', 'loss', 'optimizer', 'other', 'gap')}
    assert parts <= found['breakdown', way].keys()


def test_parity(records):
    found = records(main_of('parity'))
    for name in ('triton fp32', 'torch bf16', 'triton bf16'):
        assert found['gradients', name]['ok'] is True
        assert 0 < found['gradients', name]['share_of_bound'] <= 1
    assert found['bit equal', 'triton bf16']['ok'] is True


def test_curve(records):
    found = records(main_of('curve'))
    assert len(found['losses', 'triton bf16']['losses']) == 3
    difference = found['difference', 'triton bf16 - torch bf16']
    assert difference['ok'] is True
    assert 0 < difference['largest'] <= difference['bound']


def test_trainer(records):
    found = records(main_of('trainer'))
    overhead = found['overhead', '']
    assert {'ms_rewarm_train', 'ms_bare', 'percent_slower', 'within_bar', 'tokens_per_second'} <= overhead.keys()
    assert 'Triton kernels' in overhead['computed_by']


def test_resume(records):
    killed = records(main_of('resume'))['killed', '']
    assert killed['ok'] is True
    assert killed['killed_after'] < killed['batches'] == len(killed['losses'])
    assert 'Triton kernels' in killed['computed_by']


def test_save(records):
    save = records(main_of('save'))['background', '']
    assert save['ok'] is True
    assert 0 < save['stall_seconds'] < save['save_seconds'] + 1
    assert {'bar_seconds', 'within_bar', 'bytes', 'memory_ready_seconds'} <= save.keys()


def test_the_command_itself(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(sys, 'argv', ['run.py', '--dry', '--only', 'facts,tests', '--out', str(tmp_path)])
    assert run.main() == 0
    lines = [json.loads(line) for line in (tmp_path / 'dry.jsonl').read_text().splitlines()]
    ended = {line['item']: line['ended'] for line in lines if line['section'] == 'run'}
    assert ended == {'facts': 0, 'tests': 0}
    assert any(line['section'] == 'tests' and line['item'] == 'small' and line['passed'] >= 1 for line in lines)
    printed = capfd.readouterr().out
    assert '| tests of kernels | ' in printed
    assert 'Nothing is wrong.' in printed
