"""Causal attention: each backend against the definition, built here or from another rank's choice."""

import pickle
import time

import pytest
import torch

from rewarm.model.attention import attention_named, attention_ref
from rewarm.model.attention_choice import choose_attention, choose_backend
from tests.model.attention_backends import SHAPE


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
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    out = choose_attention(name, 'cpu', head_dim=16)(*leaves)
    torch.testing.assert_close(out.double(), attention_ref(q, k, v), rtol=1e-5, atol=1e-5)
    assert torch.autograd.grad(out.sum(), leaves)[0].shape == q.shape


@pytest.mark.parametrize(('name', 'backend'), [('auto', 'cpu'), ('flash', 'cpu'), ('math', 'math')])
def test_the_name_of_the_backend_is_given_for_operators_that_hold_one(name, backend):
    assert choose_attention(name, 'cpu').backend == backend


def test_a_choice_can_be_sent_to_other_ranks():
    choice = choose_backend('math', 'cpu', shape=SHAPE, dtype=torch.float32)
    attention = attention_named(pickle.loads(pickle.dumps(choice)))
    q, k, v = inputs(dtype=torch.float32)
    assert torch.equal(attention(q, k, v), choose_attention('math', 'cpu')(q, k, v))


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
