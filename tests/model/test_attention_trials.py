"""A kernel is tried before a run relies on it: what is wrong, fails or does not repeat its bits is found."""

import pytest
import torch
from rewarm_kernels.attention import BACKENDS

from rewarm.config.errors import UserError
from rewarm.model.attention_choice import choose_attention
from tests.model.attention_backends import double_values, fastest, replace, wrong_backward


def forget_last_query(dq, dk, dv):
    dq[:, -1] = 0


def forget_last_key(dq, dk, dv):
    dk[:, -1] = 0


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
