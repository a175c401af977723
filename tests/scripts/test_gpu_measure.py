"""What all sections share: records, failures that end nothing, times, and steps in smaller microbatches."""

import argparse
import json
from contextlib import contextmanager

import bench_measure
import pytest
import torch
from bench_cases import TINY
from bench_measure import Records, arguments, begin, kernel_spans, relative_error

from scripts.gpu.models import our_model, set_weights
from scripts.gpu.step import measure_step

CPU = torch.device('cpu')


@pytest.fixture
def records(tmp_path) -> Records:
    return Records('section', tmp_path / 'records', 100.0)


def lines(records: Records) -> list[dict]:
    assert records.path is not None
    return [json.loads(line) for line in records.path.read_text().splitlines()]


def test_failures_are_recorded_and_the_rest_goes_on(records):
    with records.attempt('absent'):
        import package_that_nobody_has  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert not records.failed
    with records.attempt('late'):
        records.need(50)
        records.need(1000)
        raise AssertionError('never reached')
    assert not records.failed
    with records.attempt('wrong', 'triton'):
        raise ValueError('of no use')
    assert records.failed
    with records.attempt('large'):
        raise torch.OutOfMemoryError('2 GiB more')
    found = {line['item']: line for line in lines(records)}
    assert found['absent']['skipped'] == 'package_that_nobody_has is not importable'
    assert '1000 needed' in found['late']['skipped']
    assert found['wrong'] == {
        'section': 'section',
        'item': 'wrong',
        'implementation': 'triton',
        'error': 'ValueError: of no use',
    }
    assert found['large']['error'].startswith('out of memory')


def test_a_package_of_ours_that_is_missing_is_an_error(records):
    with records.attempt('ours'):
        import rewarm_kernels.nothing  # noqa: F401  # pyright: ignore[reportMissingImports]
    assert records.failed


def test_nothing_runs_in_a_process_whose_device_is_lost(records):
    with pytest.raises(SystemExit), records.attempt('lost'):
        raise RuntimeError('CUDA error: an illegal memory access was encountered')
    assert 'illegal memory access' in lines(records)[0]['error']


def test_what_is_not_right_fails_and_numbers_are_short_and_valid_json(records):
    records.add('right', ok=True, value=1 / 3, none=float('nan'))
    assert not records.failed
    records.add('wrong', ok=False)
    assert records.failed
    assert lines(records)[0] | {'value': 0.333333, 'none': 'nan'} == lines(records)[0]


def test_without_a_gpu_only_a_dry_run_begins(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setenv('TRITON_INTERPRET', '1')
    assert begin('section', arguments('words').parse_args(['--dry']))[1] == CPU
    with pytest.raises(SystemExit, match='--dry'):
        begin('section', argparse.Namespace(dry=False, records=None, seconds=1.0))


def test_an_error_with_nan_is_infinite():
    assert relative_error(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 5.0])) == pytest.approx(0.2)
    assert relative_error(torch.tensor([float('nan')]), torch.tensor([1.0])) == float('inf')


def test_only_what_runs_on_the_device_counts_as_a_kernel(monkeypatch):
    class Trace:
        def export_chrome_trace(self, path: str) -> None:
            events = [
                {'cat': 'kernel', 'name': 'second', 'ts': 30, 'dur': 5},
                {'cat': 'cuda_runtime', 'name': 'cudaLaunchKernel', 'ts': 1, 'dur': 2},
                {'cat': 'kernel', 'name': 'first', 'ts': 10, 'dur': 5},
                {'cat': 'gpu_user_annotation', 'name': 'all of it', 'ts': 10, 'dur': 30},
                {'cat': 'gpu_memcpy', 'name': 'Memcpy DtoD', 'ts': 40, 'dur': 1},
                {'name': 'process_name', 'ph': 'M'},
            ]
            with open(path, 'w') as file:
                json.dump({'traceEvents': events}, file)

    @contextmanager
    def profile(activities):
        yield Trace()

    monkeypatch.setattr(bench_measure, 'profile', profile)
    monkeypatch.setattr(torch.cuda, 'synchronize', lambda: None)
    spans = kernel_spans(lambda: None, torch.device('cuda'))
    assert spans == [('first', 10, 15), ('second', 30, 35), ('Memcpy DtoD', 40, 41)]


def test_a_batch_that_does_not_fit_comes_in_the_largest_microbatch_that_does(records):
    trainee = our_model('torch', TINY, CPU, torch.float32)
    set_weights(trainee.model)
    plain, tried = trainee.loss, []

    def loss(ids, labels):
        tried.append(len(ids))
        if len(ids) > 1:
            raise torch.OutOfMemoryError('does not fit')
        return plain(ids, labels)

    trainee.loss = loss
    values = measure_step(records, 'torch', trainee, TINY, CPU)
    assert tried[:3] == [2, 1, 1]
    assert (values['sequences'], values['microbatch']) == (2, 1)


def test_a_batch_of_which_not_one_sequence_fits_is_an_error(records):
    trainee = our_model('torch', TINY, CPU, torch.float32)
    set_weights(trainee.model)

    def loss(ids, labels):
        raise torch.OutOfMemoryError('does not fit')

    trainee.loss = loss
    with records.attempt('410M', 'torch'):
        measure_step(records, 'torch', trainee, TINY, CPU)
    assert lines(records)[0]['error'] == 'out of memory: does not fit'
