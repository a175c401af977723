"""Which attention runs: what was asked for or a refusal, and the fastest that is right for ``auto``."""

import time

import pytest
import torch
from rewarm_kernels.attention import BACKENDS
from torch.nn.attention import SDPBackend, sdpa_kernel

from rewarm.config.errors import UserError
from rewarm.model import attention_choice as module
from rewarm.model.attention import Choice
from rewarm.model.attention_cache import cache_file
from rewarm.model.attention_choice import choose_attention, choose_backend
from tests.model.attention_backends import SHAPE, double_values, fastest, replace, wrong_backward


def test_on_a_cpu_auto_is_what_torch_takes_and_measures_nothing(monkeypatch):
    monkeypatch.setattr(module, 'Trials', None)
    choice = choose_backend('auto', 'cpu', shape=SHAPE, dtype=torch.bfloat16)
    assert choice == Choice('cpu', 'scaled_dot_product_attention, which picks its flash kernel here')
    assert not cache_file().exists()
    with sdpa_kernel(SDPBackend.MATH):
        other = choose_backend('auto', 'cpu', shape=SHAPE, dtype=torch.float32)
    assert other == Choice('math', 'the definition in plain PyTorch, since torch would use its math kernel here')


def test_what_is_asked_for_by_name_says_so():
    description = choose_attention('math', 'cpu', head_dim=16).description
    assert description.startswith('the definition in plain PyTorch, asked for by name (')
    assert description.endswith(' ms for 1 x 2 x 128 x 16 in float32, forward and backward)')


def test_what_is_asked_for_by_name_is_the_only_one_that_runs():
    with torch.profiler.profile() as profile:
        choose_attention('math', 'cpu', head_dim=16)
    assert not any('flash' in event.name for event in profile.events() or ())
    with sdpa_kernel(SDPBackend.MATH), pytest.raises(UserError, match='CPUs is switched off in this process'):
        choose_attention('flash', 'cpu')


def test_cudnn_without_a_gpu_is_refused_with_what_to_write():
    with pytest.raises(
        UserError,
        match=r"attention: cudnn` was asked for, and cuDNN's attention runs on cuda, not on cpu.*`attention: auto`",
    ):
        choose_attention('cudnn', 'cpu')


@pytest.mark.parametrize(('name', 'title'), [('fa3', 'FlashAttention 3'), ('fa4', 'FlashAttention 4')])
def test_packages_that_are_absent_are_refused(name, title, monkeypatch):
    def absent():
        raise ModuleNotFoundError("No module named 'flash'")

    replace(monkeypatch, name, load=absent)
    expected = (
        rf"{title} cannot be imported here \(No module named 'flash'\). To have it: .*otherwise write `attention: auto`"
    )
    with pytest.raises(UserError, match=expected):
        choose_attention(name, 'cpu')


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match='must be one of auto, cudnn'):
        choose_attention('fastest', 'cpu')


def test_a_slower_one_that_gives_the_same_bits_each_time_goes_first(monkeypatch):
    def slow(*arguments):
        time.sleep(0.05)
        return BACKENDS['math'].forward(*arguments)

    calls = []

    def restless(*arguments):
        calls.append(1)
        dq, dk, dv = BACKENDS['math'].backward(*arguments)
        return dq * (1 + 1e-6 * len(calls)), dk, dv

    replace(monkeypatch, 'flash', forward=slow, backward=BACKENDS['math'].backward)
    replace(monkeypatch, 'fa3', load=None, forward=BACKENDS['math'].forward, backward=restless)
    choice = fastest(('flash', 'fa3'))
    assert choice.backend == 'flash'
    assert 'the fastest that is right here and gives the same bits each time' in choice.description
    assert 'not the same bits each time' in choice.description.partition('fa3 ')[2]
    assert fastest(('fa3',)).backend == 'fa3'


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_fastest_that_is_right_is_chosen_and_every_time_is_told(dtype, monkeypatch):
    def slow(*arguments):
        time.sleep(0.05)
        return BACKENDS['math'].forward(*arguments)

    def absent():
        raise ImportError('no such package.')

    replace(monkeypatch, 'flash', forward=slow, backward=BACKENDS['math'].backward)
    replace(monkeypatch, 'fa3', load=None, forward=BACKENDS['math'].forward, backward=wrong_backward(double_values))
    replace(monkeypatch, 'fa4', load=absent)
    choice = fastest(('flash', 'fa3', 'fa4', 'cudnn', 'math'), dtype=dtype)
    assert choice.backend == 'math'
    start, _, times = choice.description.partition('. For 2 x 2 x 48 x 16 in ')
    assert start == 'the definition in plain PyTorch (math), the fastest that is right here, as measured now'
    told = dict(part.split(' ', 1) for part in times.partition(': ')[2].split('; '))
    assert float(told['flash'].removesuffix(' ms')) > max(50, float(told['math'].removesuffix(' ms')))
    assert told['fa3'].startswith('is out: it gives wrong numbers here (relative error ')
    assert told['fa4'] == 'is out: it cannot be imported here (no such package)'
    assert told['cudnn'] == 'is out: it runs on cuda, not on cpu'


def test_nothing_is_chosen_if_nothing_is_right():
    with pytest.raises(
        UserError, match=r'auto` found no kernel that is right here.*cudnn is out: .*Write `attention: math`'
    ):
        fastest(('cudnn', 'efficient'))


def test_auto_on_a_gpu_tries_every_kernel_at_the_shape_of_the_run(monkeypatch):
    asked = {}

    def record(candidates, device, **given):
        asked.update(given, candidates=candidates, device=device)
        return Choice('flash', 'because')

    monkeypatch.setattr(module, 'fastest_backend', record)
    attention = choose_attention(
        'auto', 'cuda', head_dim=64, dtype=torch.bfloat16, num_sequences=32, num_heads=16, num_tokens=2048
    )
    assert attention.backend == 'flash'
    assert asked == {
        'candidates': ('cudnn', 'flash', 'efficient', 'fa3', 'fa4'),
        'device': torch.device('cuda'),
        'shape': (32, 16, 2048, 64),
        'dtype': torch.bfloat16,
        'cache': cache_file(),
    }
