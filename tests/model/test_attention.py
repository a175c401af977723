"""Causal attention: each backend against the definition, and the refusals."""

import sys
import types

import pytest
import torch

from rewarm.config.errors import UserError
from rewarm.model.attention import attention_ref, choose_attention


def inputs(num_tokens=19, head_dim=16, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(2, 3, num_tokens, head_dim, generator=generator, dtype=torch.float64).to(dtype) for _ in range(3)
    ]


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
    out = choose_attention(name, 'cpu', head_dim=16)(q.float(), k.float(), v.float())
    torch.testing.assert_close(out.double(), attention_ref(q, k, v), rtol=1e-5, atol=1e-5)


def test_auto_says_which_kernel_runs():
    assert choose_attention('auto', 'cpu').description == (
        'scaled_dot_product_attention, which picks its flash kernel here'
    )


def test_a_backend_asked_for_by_name_is_the_only_one_allowed():
    assert choose_attention('math', 'cpu').description == 'scaled_dot_product_attention, held to its math kernel'
    q, k, v = inputs(dtype=torch.float32)
    with torch.profiler.profile() as profile:
        choose_attention('math', 'cpu', head_dim=16)
        profile_names = {event.name for event in profile.events() or ()}
    assert q.dtype == k.dtype == v.dtype
    assert not any('flash' in name for name in profile_names)


def test_cudnn_without_a_gpu_is_refused_with_what_to_write():
    with pytest.raises(
        UserError, match=r'attention: cudnn` was asked for, and it does not run on this cpu.*`attention: auto`'
    ):
        choose_attention('cudnn', 'cpu')


@pytest.mark.parametrize(('name', 'title'), [('fa3', 'FlashAttention 3'), ('fa4', 'FlashAttention 4')])
def test_packages_that_are_absent_are_refused(name, title, monkeypatch):
    monkeypatch.setitem(sys.modules, {'fa3': 'flash_attn_interface', 'fa4': 'flash_attn.cute'}[name], None)
    with pytest.raises(UserError, match=f'{title} cannot be imported here.*otherwise write `attention: auto`'):
        choose_attention(name, 'cpu')


def fake_package(monkeypatch, function):
    module = types.ModuleType('flash_attn_interface')
    module.flash_attn_func = function
    monkeypatch.setitem(sys.modules, 'flash_attn_interface', module)


def test_a_package_gets_its_layout_and_may_return_more_than_the_output(monkeypatch):
    def flash_attn_func(q_BTHK, k_BTHK, v_BTHK, *, causal):
        assert causal
        assert q_BTHK.shape[1] in (19, 128)
        return attention_ref(*(x.transpose(1, 2) for x in (q_BTHK, k_BTHK, v_BTHK))).transpose(1, 2), None, None

    fake_package(monkeypatch, flash_attn_func)
    attention = choose_attention('fa3', 'cpu', head_dim=16)
    assert attention.description == 'FlashAttention 3, from the package flash_attn_interface'
    q, k, v = inputs()
    assert torch.equal(attention(q, k, v), attention_ref(q, k, v))


def test_a_kernel_with_wrong_numbers_is_refused(monkeypatch):
    fake_package(monkeypatch, lambda q, k, v, causal: v + 0 * (q + k))
    with pytest.raises(UserError, match='gives wrong numbers here'):
        choose_attention('fa3', 'cpu')


def test_a_kernel_that_fails_is_refused_with_its_own_words(monkeypatch):
    def fails(q, k, v, causal):
        raise RuntimeError('only sm_90 is supported')

    fake_package(monkeypatch, fails)
    with pytest.raises(UserError, match='only sm_90 is supported'):
        choose_attention('fa3', 'cpu')


def test_unknown_names_are_refused():
    with pytest.raises(UserError, match='must be one of auto, cudnn'):
        choose_attention('fastest', 'cpu')
