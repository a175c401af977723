"""linear: values, gradients, the one cast and the fp32 gradient of its weight, and the contract of an operator."""

import importlib

import pytest
import torch
from rewarm_kernels.launch import INTERPRETED
from rewarm_kernels.linear import linear, linear_ref
from torch.utils.checkpoint import checkpoint

from tests.kernels.yardstick import DTYPES, assert_bit_equal, check, error, outputs_and_grads

# One element; odd sizes; two leading dimensions; the model's width.
SHAPES = [((1, 1), 1), ((3, 17), 5), ((2, 5, 48), 130), ((33, 1024), 1024)]


def inputs(shape: tuple[int, ...], outputs: int) -> dict[str, torch.Tensor]:
    return {'x': torch.randn(*shape), 'weight': torch.randn(outputs, shape[-1]) / shape[-1] ** 0.5}


def grads(function, dtype: torch.dtype, shape: tuple[int, ...], outputs: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    dtypes = {'x': dtype, 'weight': torch.float32}
    return outputs_and_grads(function, inputs(shape, outputs), dtypes, differentiate=('x', 'weight'))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('shape', 'outputs'), SHAPES)
def test_values_and_both_gradients(shape, outputs, dtype):
    check(linear, linear_ref, inputs(shape, outputs), dtype, activations=['x'], parameters=['weight'])


@pytest.mark.gpu
def test_values_and_both_gradients_at_full_size():
    values = inputs((65536, 1024), 1024)
    check(linear, linear_ref, values, torch.bfloat16, activations=['x'], parameters=['weight'])


def test_the_gradient_of_the_weight_is_not_rounded_to_bf16():
    found = grads(linear, torch.bfloat16, (64, 48), 32)['dweight']
    assert found.dtype is torch.float32
    torch.manual_seed(5)
    x = inputs((64, 48), 32)['x'].bfloat16()
    upstream = torch.randn(64, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).bfloat16()
    assert error(found, upstream.double().to(x.device).t() @ x.double()) < 1e-6
    assert not torch.equal(found, found.bfloat16().float())


def test_the_weight_is_cast_once_and_kept_for_the_backward():
    kept = []
    x, weight = (torch.randn(8, 8, requires_grad=True) for _ in range(2))
    with torch.autograd.graph.saved_tensors_hooks(
        lambda tensor: kept.append(tensor.dtype) or tensor, lambda kept: kept
    ):
        y = linear(x.bfloat16(), weight)
    assert kept == [torch.bfloat16, torch.bfloat16]
    y.sum().backward()
    assert weight.grad.dtype is torch.float32


LAYOUTS = [lambda x: x.transpose(0, 1), lambda x: x[::2, :, 3:40], lambda x: x[:, 1:2].expand(-1, 3, -1)]


@pytest.mark.parametrize('layout', LAYOUTS, ids=['transposed', 'sliced', 'expanded'])
def test_x_and_gradients_of_any_layout(layout):
    x = torch.randn(5, 6, 64)
    values = {'x': x, 'weight': torch.randn(layout(x).shape[-1], 9)}
    functions = [
        lambda x, weight, linear=linear: linear(layout(x), weight.t()).sum(-1) for linear in (linear, linear_ref)
    ]
    check(*functions, values, torch.float32, activations=['x'], parameters=['weight'])


def test_no_rows():
    found = grads(linear, torch.bfloat16, (0, 24), 8)
    assert found['out0'].shape == (0, 8)
    assert found['dx'].shape == (0, 24)
    assert torch.equal(found['dweight'], torch.zeros(8, 24))


def test_nan_and_infinity_stay_in_their_rows():
    values = inputs((9, 33), 7)
    values['x'][2, 5], values['x'][4, 7] = float('nan'), float('inf')
    y = linear(**values)
    assert (~y.isfinite()).any(1).nonzero().flatten().tolist() == [2, 4]


def test_two_runs_are_equal_bit_for_bit():
    assert_bit_equal(grads(linear, torch.bfloat16, (33, 64), 48), grads(linear, torch.bfloat16, (33, 64), 48))


def test_compiled_and_checkpointed_are_equal_to_plain():
    compiled = torch.compile(linear, fullgraph=True, backend='aot_eager')
    plain = grads(linear, torch.bfloat16, (2, 3, 32), 8)
    assert_bit_equal(grads(compiled, torch.bfloat16, (2, 3, 32), 8), plain)
    again = grads(lambda x, weight: checkpoint(linear, x, weight, use_reentrant=False), torch.bfloat16, (2, 3, 32), 8)
    assert_bit_equal(again, plain)


def test_operators_are_well_formed():
    x, weight = torch.randn(6, 32), torch.randn(8, 32)
    leaves = x.clone().requires_grad_(), weight.clone().requires_grad_()
    torch.library.opcheck(torch.ops.rewarm.linear.default, (*leaves, weight))
    torch.library.opcheck(torch.ops.rewarm.linear_backward.default, (torch.randn(6, 8), x, weight))


def test_exports():
    class Module(torch.nn.Module):
        def forward(self, x, weight):
            return linear(x, weight)

    values = inputs((2, 3, 32), 8)
    exported = torch.export.export(Module(), tuple(values.values()))
    assert torch.equal(exported.module()(*values.values()), linear(**values))


@pytest.mark.skipif(not INTERPRETED, reason='operators run on tensors of a GPU')
def test_the_definition_runs_where_kernels_do_not(monkeypatch):
    monkeypatch.setattr('rewarm_kernels.launch.INTERPRETED', False)
    module = importlib.import_module('rewarm_kernels.linear')  # in the package the name is the function's
    monkeypatch.setattr(module, '_linear', None)
    values = inputs((3, 17), 5)
    assert torch.equal(linear(**values), linear_ref(**values))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r'weight \(4, 3\), x \(2, 4\)'):
        linear(torch.randn(2, 4), torch.randn(4, 3))
    with pytest.raises(ValueError, match=r'weight \(4,\), x \(2, 4\)'):
        linear(torch.randn(2, 4), torch.randn(4))
