"""qkv_attention: values and gradients by each backend, what is kept, and the contract of an operator."""

import functools
import importlib

import pytest
import torch
from rewarm_kernels.attention import attention
from rewarm_kernels.linear import linear
from rewarm_kernels.qkv_attention import _qkv_attention, _qkv_attention_backward, qkv_attention, qkv_attention_ref
from rewarm_kernels.rotary import rotary, rotary_ref
from torch.utils.checkpoint import checkpoint

from tests.kernels.yardstick import DTYPES, assert_bit_equal, check, compare, outputs_and_grads

PARAMETERS = ['weight', 'bias']

# Sequences, tokens, width, heads, head dimension, half of the rotated ones: odd sizes; a width that is not the heads'; no
# rotation and a whole one; two blocks of tokens.
SHAPES = [(2, 19, 24, 3, 8, 2), (1, 1, 8, 1, 8, 4), (2, 70, 32, 2, 16, 0), (1, 33, 40, 5, 20, 3)]
SMALL = (2, 5, 16, 2, 8, 2)


@pytest.fixture
def backends(device):
    return ['math', 'cpu'] if device.type == 'cpu' else ['math', 'efficient']


def inputs(num_sequences, num_tokens, width, num_heads, head_dim, half):
    features = num_heads * 3 * head_dim
    angles = torch.arange(num_tokens, dtype=torch.float64)[:, None] / 10 ** torch.arange(half, dtype=torch.float64)
    return {
        'y': torch.randn(num_sequences, num_tokens, width),
        'weight': torch.randn(features, width) / width**0.5,
        'bias': torch.randn(features),
        'cos': angles.cos(),
        'sin': angles.sin(),
        'num_heads': num_heads,
    }


def grads(function, dtype, shape=SMALL):
    torch.manual_seed(5)
    dtypes = {'y': dtype, **dict.fromkeys([*PARAMETERS, 'cos', 'sin'], torch.float32)}
    return outputs_and_grads(function, inputs(*shape), dtypes, differentiate=('y', *PARAMETERS))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('which', [0, 1])
def test_values_and_all_gradients(which, shape, dtype, backends):
    ours = functools.partial(qkv_attention, backend=backends[which])
    check(ours, qkv_attention_ref, inputs(*shape), dtype, activations=['y'], parameters=PARAMETERS)


@pytest.mark.parametrize('dtype', DTYPES)
def test_values_and_all_gradients_at_the_width_of_the_model(dtype, backends):
    ours = functools.partial(qkv_attention, backend=backends[1])
    values = inputs(1, 40, 1024, 16, 64, 8)
    check(ours, qkv_attention_ref, values, dtype, activations=['y'], parameters=PARAMETERS)


def test_documents():
    bounds = torch.tensor([0, 3, 25, 38], dtype=torch.int32)
    ours = functools.partial(qkv_attention, backend='math', cu_seqlens=bounds)
    definition = functools.partial(qkv_attention_ref, cu_seqlens=bounds)
    check(ours, definition, inputs(*SHAPES[0]), torch.float32, activations=['y'], parameters=PARAMETERS)


def test_equals_the_three_operators_one_after_the_other(backends):
    values = inputs(*SMALL)

    def composed(y, weight, bias, cos, sin, num_heads):
        qkv = (linear(y, weight) + bias).unflatten(-1, (num_heads, 3, -1))
        return attention(rotary(qkv, cos, sin), backends[1])

    dtypes = dict.fromkeys(['y', *PARAMETERS, 'cos', 'sin'], torch.float32)
    found = (
        outputs_and_grads(function, values, dtypes, differentiate=('y', *PARAMETERS))
        for function in (functools.partial(qkv_attention, backend=backends[1]), composed)
    )
    wide = dict.fromkeys(dtypes, torch.float64)
    compare(*found, outputs_and_grads(qkv_attention_ref, values, wide, differentiate=('y', *PARAMETERS)), torch.float32)


def test_any_strides(backends):
    values = inputs(*SMALL)
    strided = {**values, 'y': values['y'].transpose(0, 1).contiguous().transpose(0, 1)}
    strided['weight'] = values['weight'].t().contiguous().t()
    strided['cos'], strided['sin'] = torch.stack((values['cos'], values['sin']), dim=-1).unbind(-1)
    dtypes = dict.fromkeys(['y', *PARAMETERS, 'cos', 'sin'], torch.float32)
    ours = functools.partial(qkv_attention, backend=backends[0])
    plain, other = (
        outputs_and_grads(ours, given, dtypes, differentiate=('y', *PARAMETERS)) for given in (values, strided)
    )
    for name in plain:
        torch.testing.assert_close(plain[name], other[name], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('shape', [(0, 5, 16, 2, 8, 2), (2, 0, 16, 2, 8, 2)])
def test_empty_batch(shape, backends):
    found = grads(functools.partial(qkv_attention, backend=backends[1]), torch.float32, shape)
    assert found['out0'].shape == (*shape[:2], 16)
    assert found['dy'].shape == shape[:3]
    assert not found['dweight'].any()
    assert not found['dbias'].any()


def test_not_a_number_stays_in_its_sequence(backends):
    values = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in inputs(*SMALL).items()}
    values['y'][1, 2, 3] = float('nan')
    for backend in backends:
        y = values['y'].clone().requires_grad_()
        out = qkv_attention(**{**values, 'y': y}, backend=backend)
        out.sum().backward()
        assert y.grad is not None
        assert out[0].isfinite().all()
        assert y.grad[0].isfinite().all()
        assert out[1, 2:].isnan().all()
        if backend == 'math':  # a flash kernel multiplies what is masked by zero
            assert y.grad[1].isnan().any()


def test_only_inputs_output_and_the_packed_tensor_are_kept(backends):
    values = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in inputs(2, 8, 16, 2, 8, 2).items()}
    values['y'] = values['y'].bfloat16().requires_grad_()
    values['weight'].requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda x: (kept.append(x.numel() * x.element_size()), x)[1], lambda x: x
    ):
        qkv_attention(**values, backend=backends[1])
    tokens, width, features = 16, 16, 48
    y, weight, tables = tokens * width * 2, features * width * 2, 2 * 8 * 2 * 4
    assert sum(kept) == y + weight + tables + tokens * (features + width) * 2 + tokens * 2 * 4


def test_compiled_checkpointed_and_repeated_alike(backends):
    torch._dynamo.reset()  # other tests of this process may have filled its cache of this function
    for backend in backends:
        ours = functools.partial(qkv_attention, backend=backend)
        plain = grads(ours, torch.bfloat16)
        assert_bit_equal(plain, grads(ours, torch.bfloat16))
        assert_bit_equal(plain, grads(torch.compile(ours, fullgraph=True, backend='aot_eager'), torch.bfloat16))
        assert_bit_equal(plain, grads(functools.partial(checkpoint, ours, use_reentrant=False), torch.bfloat16))


class Module(torch.nn.Module):
    def forward(self, y, weight, bias, cos, sin):
        return qkv_attention(y, weight, bias, cos, sin, 2, 'math')


def test_export():
    values = tuple(x.float() for x in inputs(*SMALL).values() if isinstance(x, torch.Tensor))
    exported = torch.export.export(Module(), values)
    assert torch.equal(exported.module()(*values), Module()(*values))


def test_operators_are_registered_correctly(backends):
    values = [x.float() for x in inputs(*SMALL).values() if isinstance(x, torch.Tensor)]
    y, weight, bias, cos, sin = values
    backend = backends[1]
    leaves = [x.clone().requires_grad_() for x in (y, weight, bias)]
    torch.library.opcheck(_qkv_attention, (*leaves, weight, cos, sin, 2, backend, None))
    out, qkv, lse = _qkv_attention(y, weight, bias, weight, cos, sin, 2, backend, None)
    saved = (torch.randn_like(out), y, weight, cos, sin, out, qkv, lse, None, backend)
    torch.library.opcheck(_qkv_attention_backward, saved)


def test_without_kernels_the_operators_run_one_after_the_other(backends, monkeypatch):
    module = importlib.import_module('rewarm_kernels.qkv_attention')  # whose name in the package is the function's
    monkeypatch.setattr(module, 'runs_kernels', lambda *_: False)
    values = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in inputs(*SMALL).items()}
    bounds = torch.tensor([0, 3, 10], dtype=torch.int32)
    for cu_seqlens in (None, bounds):
        out = qkv_attention(**values, backend='math', cu_seqlens=cu_seqlens)
        torch.testing.assert_close(out, qkv_attention_ref(**values, cu_seqlens=cu_seqlens), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match='no attention backend'):
        qkv_attention(**values, backend='fastest')


def test_wrong_shapes_are_refused():
    values = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in inputs(*SMALL).items()}

    def call(backend='math', cu_seqlens=None, **changed):
        return qkv_attention(**{**values, **changed}, backend=backend, cu_seqlens=cu_seqlens)

    with pytest.raises(ValueError, match=r'weight \(H \* 3 \* K, D\): y \(2, 5, 17\), weight \(48, 16\)'):
        call(y=torch.randn(2, 5, 17))
    with pytest.raises(ValueError, match=r'y must be \(B, T, D\).* y \(5, 16\)'):
        call(y=torch.randn(5, 16))
    with pytest.raises(ValueError, match=r'3 \* K rows for each of 5 heads: weight \(48, 16\)'):
        call(num_heads=5)
    with pytest.raises(ValueError, match=r'bias \(47,\), weight \(48, 16\)'):
        call(bias=torch.randn(47))
    with pytest.raises(ValueError, match=r'\(T, R\) for the T of y: cos \(6, 2\), sin \(5, 2\), y \(2, 5, 16\)'):
        call(cos=torch.randn(6, 2))
    with pytest.raises(ValueError, match=r'of which there are 8: cos \(5, 5\), weight \(48, 16\)'):
        call(cos=torch.randn(5, 5), sin=torch.randn(5, 5))
    with pytest.raises(ValueError, match="no attention backend 'fastest'"):
        call(backend='fastest')
    with pytest.raises(ValueError, match="'cudnn' cannot keep documents apart"):
        call(backend='cudnn', cu_seqlens=torch.tensor([0, 10], dtype=torch.int32))
    with pytest.raises(ValueError, match=r'cu_seqlens must be .* in int32'):
        call(cu_seqlens=torch.tensor([0, 10]))


@pytest.mark.gpu
@pytest.mark.parametrize('backend', ['cudnn', 'flash', 'efficient'])
def test_values_and_all_gradients_at_full_size(backend):
    """65,536 tokens of the model's width; the truth is made of four sequences at a time."""
    values = inputs(32, 2048, 1024, 16, 64, 8)
    values = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in values.items()}
    values['y'] = values['y'].bfloat16()
    upstream = torch.randn(32, 2048, 1024).bfloat16()

    def run(function, dtype, parameters, rows):
        leaves = {
            name: x.to(dtype if name == 'y' else parameters, copy=True) if isinstance(x, torch.Tensor) else x
            for name, x in values.items()
        }
        weight, bias = leaves['weight'].requires_grad_(), leaves['bias'].requires_grad_()
        found = {'out0': [], 'dy': []}
        for start in range(0, 32, rows):
            y = leaves['y'][start : start + rows].clone().requires_grad_()
            out = function(**{**leaves, 'y': y})
            out.backward(upstream[start : start + rows].to(dtype))
            found['out0'].append(out.detach())
            found['dy'].append(y.grad)
        joined = {name: torch.cat(parts) for name, parts in found.items()}
        return {**joined, 'dweight': weight.grad, 'dbias': bias.grad}

    ours = run(functools.partial(qkv_attention, backend=backend), torch.bfloat16, torch.float32, 32)
    theirs = run(in_plain_bf16, torch.bfloat16, torch.float32, 4)
    truth = run(qkv_attention_ref, torch.float64, torch.float64, 1)
    compare(ours, theirs, truth, torch.bfloat16)


def in_plain_bf16(y, weight, bias, cos, sin, num_heads):
    """What plain PyTorch makes of the definition where attention, too, is in the dtype of its inputs."""
    qkv = torch.nn.functional.linear(y, weight.to(y.dtype), bias.to(y.dtype)).unflatten(-1, (num_heads, 3, -1))
    q, k, v = rotary_ref(qkv, cos, sin).permute(3, 0, 2, 1, 4)
    is_future = torch.ones(q.shape[2], q.shape[2], dtype=torch.bool).triu(1)
    scores = (q @ k.mT * q.shape[-1] ** -0.5).masked_fill(is_future, float('-inf'))
    return (scores.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
