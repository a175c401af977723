"""Which implementation of each operation runs, and the definitions against other ways to write them."""

import pytest
import rewarm_kernels
import torch
from rewarm_kernels.launch import INTERPRETED

from rewarm.config.errors import UserError
from rewarm.config.schema import KernelsConfig
from rewarm.model import ops
from rewarm.model.attention_choice import choose_attention
from rewarm.model.ops import FUSED_OPS, choose_ops


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def choose(**kernels):
    return choose_ops(KernelsConfig(**kernels).choices, 'cpu', choose_attention('math', 'cpu'))


def test_every_operation_can_be_chosen_in_the_run_file():
    assert tuple(KernelsConfig().choices) == FUSED_OPS


def test_plain_pytorch_as_asked_for():
    chosen = choose(default='torch')
    assert chosen.description == 'plain PyTorch, as asked for'
    assert chosen.mlp is rewarm_kernels.mlp_ref


@pytest.mark.skipif(not INTERPRETED, reason='kernels are compiled here, not interpreted')
def test_interpreted_kernels_run_only_where_they_are_asked_for():
    assert choose(default='auto').description == 'plain PyTorch, since Triton kernels would be interpreted'
    chosen = choose(default='triton', rotary='torch')
    assert chosen.description == (
        'Triton kernels, interpreted on the CPU, which is for tests, but plain PyTorch for rotary, as asked for'
    )
    assert chosen.mlp is rewarm_kernels.mlp
    assert chosen.linear is rewarm_kernels.linear_ref


def test_without_a_gpu_auto_says_why_and_triton_is_refused_with_what_to_write(monkeypatch):
    monkeypatch.setattr(ops, 'INTERPRETED', False)
    why = 'they need a CUDA device, and this is a cpu'
    assert choose(default='auto').description == f'plain PyTorch, since Triton kernels cannot run: {why}'
    with pytest.raises(
        UserError, match=rf'asks for Triton kernels, and {why}. Write `kernels: auto` or `kernels: torch`'
    ):
        choose(bias_gelu='triton')


def test_rotary_turns_pairs_by_position_and_leaves_the_rest():
    # Written with complex numbers: dimension r and r + R are one plane, turned by position * base^(-r / R).
    num_tokens, num_heads, head_dim, half, base = 7, 3, 10, 2, 100.0
    qkv = rand(2, num_tokens, num_heads, 3, head_dim)
    cos, sin = ops.rotary_tables(num_tokens, 2 * half, base, torch.device('cpu'))
    turned = rewarm_kernels.rotary_ref(qkv, cos, sin)
    angles = torch.arange(num_tokens).double()[:, None] * base ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]
    for part in (0, 1):
        got, raw = turned[..., part, :], qkv[..., part, :]
        plane = torch.complex(raw[..., :half].double(), raw[..., half : 2 * half].double()) * turn
        want = torch.cat((plane.real, plane.imag, raw[..., 2 * half :].double()), dim=-1)
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    assert torch.equal(turned[..., 2, :], qkv[..., 2, :])
