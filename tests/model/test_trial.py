"""Kernels are tried before a run relies on them: right ones run, wrong ones are found and replaced, or named."""

import dataclasses

import pytest
import rewarm_kernels
import torch
from rewarm_kernels.launch import INTERPRETED

from rewarm.config.errors import UserError
from rewarm.config.schema import KernelsConfig
from rewarm.config.shapes import ModelShape
from rewarm.model import ops, trial
from rewarm.model.attention_choice import choose_attention
from rewarm.model.ops import FUSED_OPS, choose_ops
from rewarm.model.trial import try_ops
from tests.kernels.interpreter import correct

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
SHAPE = ModelShape(48, 2, 3, 80, vocab_size=101, rotary_pct=0.5)
FUNCTIONS = {
    'add_dual_layer_norm': 'add_dual_layer_norm',
    'rotary': 'qkv_attention',
    'bias_gelu': 'mlp',
    'linear_cross_entropy': 'linear_cross_entropy',
}

pytestmark = pytest.mark.skipif(not INTERPRETED and DEVICE == 'cpu', reason='no GPU, and kernels are not interpreted')


@pytest.fixture(scope='module', autouse=True)
def corrected_interpreter():
    correct()


@pytest.fixture
def as_on_a_gpu(monkeypatch):
    """`auto` takes kernels here, as it does where they are compiled."""
    monkeypatch.setattr(ops, 'INTERPRETED', False)
    monkeypatch.setattr(ops, '_obstacle', lambda device: None)


def tried(*, shape=SHAPE, gelu='tanh', dtype=torch.float32, **kernels) -> dict[str, str]:
    attention = choose_attention('math', DEVICE, head_dim=16, dtype=dtype)
    return try_ops(KernelsConfig(**kernels).choices, DEVICE, attention, shape=shape, gelu=gelu, dtype=dtype)


def chosen(faults, **kernels):
    return choose_ops(KernelsConfig(**kernels).choices, DEVICE, choose_attention('math', DEVICE), faults)


def break_op(monkeypatch, op, harm):
    """Puts `harm(results)` in place of what a kernel gives."""
    right = getattr(rewarm_kernels, FUNCTIONS[op])
    monkeypatch.setattr(rewarm_kernels, FUNCTIONS[op], lambda *args, **kwargs: harm(right(*args, **kwargs)))


def first(change):
    """Harm to the first output."""

    def harm(results):
        return (change(results[0]), *results[1:]) if isinstance(results, tuple) else change(results)

    return harm


class WrongGradient(torch.autograd.Function):
    """The right output, and the gradient with the wrong sign."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return -grad


def last_columns_lost(x):
    """What a kernel without the last, incomplete block gives."""
    return torch.cat((x[..., :-4], torch.zeros_like(x[..., -4:])), dim=-1) if x.ndim else x * 0.9


def last_row_lost(x):
    return torch.cat((x[:, :-1], torch.zeros_like(x[:, -1:])), dim=1) if x.ndim else x * 0.9


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('parallel', [True, False], ids=['parallel', 'sequential'])
@pytest.mark.parametrize('gelu', ['tanh', 'erf'])
def test_right_kernels_are_found_right(gelu, parallel, dtype):
    shape = dataclasses.replace(SHAPE, use_parallel_residual=parallel)
    assert tried(shape=shape, gelu=gelu, dtype=dtype, default='triton') == {}


HARMS = {
    'sign': first(torch.neg),
    'gradient': first(WrongGradient.apply),
    'columns': first(last_columns_lost),
    'row': first(last_row_lost),
    'NaN': first(lambda x: x * float('nan')),
}


@pytest.mark.parametrize('harm', HARMS)
@pytest.mark.parametrize('op', FUSED_OPS)
def test_a_wrong_kernel_is_left_to_plain_pytorch_by_auto_and_the_log_says_why(as_on_a_gpu, monkeypatch, op, harm):
    break_op(monkeypatch, op, HARMS[harm])
    faults = tried()
    assert list(faults) == [op]
    assert faults[op].startswith('gives wrong numbers here (')
    assert ('gradient' if harm == 'gradient' else 'output 0') in faults[op]
    found = chosen(faults)
    for each, function in FUNCTIONS.items():
        if each != 'rotary':  # a closure either way
            assert getattr(found, function) is getattr(rewarm_kernels, f'{function}_ref' if each == op else function)
    assert found.description == (
        f'Triton kernels, each tried now and right, but plain PyTorch for {op}, whose kernel {faults[op]}'
    )


def test_a_rotation_that_fails_is_left_out_of_the_model(as_on_a_gpu, monkeypatch):
    break_op(monkeypatch, 'rotary', HARMS['sign'])
    faults = tried()
    monkeypatch.setattr(rewarm_kernels, 'qkv_attention', None)
    width = SHAPE.hidden_size
    y, weight = torch.randn(1, 8, width, device=DEVICE), torch.randn(3 * width, width, device=DEVICE)
    tables = ops.rotary_tables(8, 8, 1e4, torch.device(DEVICE))
    chosen(faults).qkv_attention(y, weight, torch.zeros(3 * width, device=DEVICE), *tables, 3)


def test_a_kernel_that_does_not_compile_or_launch_is_left_to_plain_pytorch(as_on_a_gpu, monkeypatch):
    def harm(results):
        raise RuntimeError('out of resource: shared memory\nRequired: 300000')

    break_op(monkeypatch, 'bias_gelu', harm)
    assert tried() == {'bias_gelu': 'does not run here (RuntimeError: out of resource: shared memory)'}


def test_all_kernels_failing_leaves_plain_pytorch(as_on_a_gpu, monkeypatch):
    for op in FUSED_OPS:
        break_op(monkeypatch, op, HARMS['sign'])
    faults = tried()
    assert list(faults) == list(FUSED_OPS)
    description = chosen(faults).description
    assert description.startswith('plain PyTorch for add_dual_layer_norm, whose kernel gives wrong numbers here')
    assert 'Triton' not in description


def test_a_kernel_that_was_asked_for_by_name_and_fails_stops_the_run_and_says_what_to_write(monkeypatch):
    break_op(monkeypatch, 'bias_gelu', HARMS['sign'])
    with pytest.raises(
        UserError,
        match=r'and that of `bias_gelu` gives wrong numbers here \(output 0: relative error 2, bound \S+\)\. '
        r'Write `kernels: \{bias_gelu: torch\}`, or `kernels: auto`',
    ):
        tried(default='triton')
    assert tried(default='triton', bias_gelu='torch') == {}


@pytest.mark.skipif(DEVICE != 'cpu', reason='a GPU is there')
@pytest.mark.parametrize('kernels', ['auto', 'torch'])
def test_where_no_kernel_runs_nothing_is_tried(monkeypatch, kernels):
    monkeypatch.setattr(trial, '_try', None)
    assert tried(default=kernels) == {}
    assert chosen({}, default=kernels).description.startswith('plain PyTorch, ')
