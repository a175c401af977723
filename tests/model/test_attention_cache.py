"""What was measured is kept for the next start, and used under the same conditions only."""

import json

import pytest
import torch

from rewarm.model import attention_cache as module
from rewarm.model.attention_cache import cache_file
from rewarm.model.attention_trials import Trials
from tests.model.attention_backends import SHAPE, fastest, replace


def test_the_cache_is_where_the_desktop_says(tmp_path, monkeypatch):
    assert cache_file() == tmp_path / 'cache/rewarm/attention.json'
    monkeypatch.delenv('XDG_CACHE_HOME')
    monkeypatch.setenv('HOME', str(tmp_path))
    assert cache_file() == tmp_path / '.cache/rewarm/attention.json'


def test_a_measurement_is_kept_and_used_again(monkeypatch):
    cache = cache_file()
    first = fastest(cache=cache)
    assert f'as measured now and kept in {cache}. For' in first.description
    assert [path.name for path in cache.parent.iterdir()] == ['attention.json'], 'a file was left half written'
    monkeypatch.setattr(Trials, 'run', None)
    second = fastest(cache=cache)
    assert second.backend == first.backend
    assert f'as measured at an earlier start, from {cache}. For' in second.description
    assert second.description.partition('. For')[2] == first.description.partition('. For')[2]


@pytest.mark.parametrize('change', ['shape', 'dtype', 'candidates', 'torch', 'package', 'deterministic', 'probe'])
def test_anything_else_is_measured_anew_beside_what_is_kept(change, monkeypatch):
    cache = cache_file()
    fastest(cache=cache)
    given = {}
    if change == 'shape':
        given = {'shape': (1, *SHAPE[1:])}
    elif change == 'dtype':
        given = {'dtype': torch.bfloat16}
    elif change == 'candidates':
        given = {'candidates': ('math',)}
    elif change == 'torch':
        monkeypatch.setattr(torch, '__version__', '9.9')
    elif change == 'package':
        monkeypatch.setattr(module, '_version', lambda name: '4.0')
    elif change == 'deterministic':
        monkeypatch.setattr(torch, 'are_deterministic_algorithms_enabled', lambda: True)
    else:
        monkeypatch.setattr(module, '_PROBE_VERSION', -1)
    assert 'as measured now' in fastest(cache=cache, **given).description
    assert len(json.loads(cache.read_text())['trials']) == 2
    assert 'as measured at an earlier start' in fastest(cache=cache, **given).description


@pytest.mark.parametrize('content', ['{"trials', '[]', '{}', '{"trials": {"KEY": {"math": {"milliseconds": "soon"}}}}'])
def test_an_unreadable_cache_is_ignored_and_said_and_replaced(content):
    cache = cache_file()
    cache.parent.mkdir(parents=True)
    cache.write_text(content)
    description = fastest(cache=cache).description
    assert f'. {cache} could not be read and was ignored (' in description
    assert 'as measured now' in description
    assert 'as measured at an earlier start' in fastest(cache=cache).description


def test_a_cache_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / 'cache').write_text('not a folder')
    choice = fastest(cache=cache_file())
    assert choice.backend in ('math', 'cpu')
    assert f'The measurement could not be kept in {cache_file()} (' in choice.description


def test_a_measurement_that_ran_out_of_memory_is_not_kept(monkeypatch):
    def forward(*_):
        raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB.')

    replace(monkeypatch, 'flash', forward=forward)
    description = fastest(('flash', 'math'), cache=cache_file()).description
    assert 'flash is out: it does not run here (CUDA out of memory' in description
    assert not cache_file().exists()
