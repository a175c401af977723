"""Causal attention: each backend against the definition, how one is chosen, what is remembered, and the refusals."""

import dataclasses
import json
import pickle
import time

import pytest
import torch
from rewarm_kernels.attention import BACKENDS, Backend
from torch.nn.attention import SDPBackend, sdpa_kernel

from rewarm.config.errors import UserError
from rewarm.model import attention as module
from rewarm.model.attention import (
    Choice,
    attention_named,
    attention_ref,
    cache_file,
    choose_attention,
    choose_backend,
    fastest_backend,
)

SHAPE = 2, 2, 48, 16
CPU = torch.device('cpu')


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))


def inputs(num_tokens=19, head_dim=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, num_tokens, head_dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    ]


def fastest(candidates=('math', 'cpu'), shape=SHAPE, dtype=torch.float32, cache=None):
    return fastest_backend(candidates, CPU, shape=shape, dtype=dtype, cache=cache)


def replace(monkeypatch, name, **changes) -> Backend:
    changed = dataclasses.replace(BACKENDS[name], devices=('cpu',), **changes)
    monkeypatch.setitem(BACKENDS, name, changed)
    return changed


def test_definition_against_a_loop_over_positions():
    q, k, v = inputs(num_tokens=5)
    out = attention_ref(q, k, v)
    for t in range(5):
        weights = torch.softmax((k[:, :, : t + 1] @ q[:, :, t, :, None]).squeeze(-1) / 4, dim=-1)  # sqrt(16) = 4
        torch.testing.assert_close(out[:, :, t], (weights[..., None] * v[:, :, : t + 1]).sum(dim=2))


@pytest.mark.parametrize('name', ['auto', 'flash', 'math'])
@pytest.mark.parametrize('num_tokens', [1, 2, 19, 64])
def test_backends_equal_the_definition(name, num_tokens):
    q, k, v = inputs(num_tokens)
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    out = choose_attention(name, 'cpu', head_dim=16)(*leaves)
    torch.testing.assert_close(out.double(), attention_ref(q, k, v), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(out.sum(), leaves)[0].shape == q.shape


@pytest.mark.parametrize(('name', 'backend'), [('auto', 'cpu'), ('flash', 'cpu'), ('math', 'math')])
def test_the_name_of_the_backend_is_given_for_operators_that_hold_one(name, backend):
    assert choose_attention(name, 'cpu').backend == backend


def test_on_a_cpu_auto_is_what_torch_takes_and_measures_nothing(monkeypatch):
    monkeypatch.setattr(module, '_Trials', None)
    choice = choose_backend('auto', 'cpu', shape=SHAPE, dtype=torch.bfloat16)
    assert choice == Choice('cpu', 'scaled_dot_product_attention, which picks its flash kernel here')
    assert not cache_file().exists()
    with sdpa_kernel(SDPBackend.MATH):
        other = choose_backend('auto', 'cpu', shape=SHAPE, dtype=torch.float32)
    assert other == Choice('math', 'the definition in plain PyTorch, since torch would use its math kernel here')


def test_a_choice_can_be_sent_to_other_ranks():
    choice = choose_backend('math', 'cpu', shape=SHAPE, dtype=torch.float32)
    attention = attention_named(pickle.loads(pickle.dumps(choice)))
    q, k, v = inputs(dtype=torch.float32)
    assert torch.equal(attention(q, k, v), choose_attention('math', 'cpu')(q, k, v))


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


def wrong_backward(change):
    def backward(*arguments):
        grads = [grad.clone() for grad in BACKENDS['math'].backward(*arguments)]
        change(*grads)
        return tuple(grads)

    return backward


def forget_last_query(dq, dk, dv):
    dq[:, -1] = 0


def forget_last_key(dq, dk, dv):
    dk[:, -1] = 0


def double_values(dq, dk, dv):
    dv *= 2


def spoil_with_nan(dq, dk, dv):
    dv[-1, 3, -1, 2] = float('nan')


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('change', [forget_last_query, forget_last_key, double_values, spoil_with_nan])
def test_a_kernel_with_a_wrong_gradient_is_refused(change, dtype, monkeypatch):
    replace(monkeypatch, 'fa3', load=None, forward=BACKENDS['math'].forward, backward=wrong_backward(change))
    with pytest.raises(UserError, match=r'FlashAttention 3 gives wrong numbers here \(relative error .*, bound .*\)'):
        choose_attention('fa3', 'cpu', dtype=dtype, num_sequences=2)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_a_kernel_that_is_wrong_in_one_row_of_its_output_is_refused(dtype, monkeypatch):
    def forward(q, k, v, bounds):
        out, lse = BACKENDS['math'].forward(q, k, v, bounds)
        out[:, -1] = out[:, -2]
        return out, lse

    replace(monkeypatch, 'fa3', load=None, forward=forward, backward=BACKENDS['math'].backward)
    with pytest.raises(UserError, match='FlashAttention 3 gives wrong numbers here'):
        choose_attention('fa3', 'cpu', dtype=dtype)


def test_a_kernel_that_fails_is_refused_with_its_own_words(monkeypatch):
    def forward(*_):
        raise AssertionError('only sm_90 is supported\nand more')

    replace(monkeypatch, 'fa3', load=None, forward=forward)
    with pytest.raises(UserError, match=r'FlashAttention 3 does not run here \(only sm_90 is supported\)\. To have it'):
        choose_attention('fa3', 'cpu')


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


def test_gradients_that_differ_from_call_to_call_are_told_and_refused_where_determinism_is_asked_for(monkeypatch):
    def backward(*arguments):
        dq, dk, dv = BACKENDS['math'].backward(*arguments)
        return dq + 1e-7 * torch.rand(()), dk, dv

    replace(monkeypatch, 'flash', forward=BACKENDS['math'].forward, backward=backward)
    assert 'flash ' in (told := fastest(('flash',)).description)
    assert told.endswith(' ms, not the same bits each time')
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(UserError, match='flash is out: it does not give the same bits again'):
            fastest(('flash',))
    finally:
        torch.use_deterministic_algorithms(False)


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
    monkeypatch.setattr(module._Trials, 'run', None)
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


@pytest.mark.gpu
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_auto_on_a_gpu_at_full_size(dtype):
    shape = 32, 16, 2048, 64
    start = time.monotonic()
    choice = choose_backend('auto', 'cuda', shape=shape, dtype=dtype)
    print(f'{time.monotonic() - start:.1f} s: {choice.description}')
    assert choose_backend('auto', 'cuda', shape=shape, dtype=dtype).backend == choice.backend
    q, k, v = (x[:, :, :256].to('cuda', dtype) for x in inputs(256, 64))
    out = attention_named(choice)(q, k, v)
    bound = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(out.double(), attention_ref(*(x.double() for x in (q, k, v))), rtol=bound, atol=bound)
