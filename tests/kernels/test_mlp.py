"""mlp: values and gradients with GELU kept and computed again, what is kept, and the contract of an operator."""

import functools
import importlib

import pytest
import torch
from rewarm_kernels.launch import INTERPRETED
from rewarm_kernels.mlp import mlp, mlp_ref
from torch.utils.checkpoint import checkpoint

from tests.kernels.yardstick import DTYPES, assert_bit_equal, check, outputs_and_grads

PARAMETERS = ['weight_in', 'bias_in', 'weight_out']

# Rows, width, features, outputs: odd sizes; rows in a second partial sum of the bias gradient. Enough rows that the
# largest of a few errors of rounding (weights, h, g, all of one size) is no matter of luck.
SHAPES = [((67, 17), 33, 5), ((2, 66, 24), 40, 24)]
SMALL = (2, 3, 32), 72, 32


def inputs(shape: tuple[int, ...], features: int, outputs: int) -> dict[str, torch.Tensor]:
    return {
        'y': torch.randn(*shape),
        'weight_in': torch.randn(features, shape[-1]) / shape[-1] ** 0.5,
        'bias_in': torch.randn(features),
        'weight_out': torch.randn(outputs, features) / features**0.5,
    }


def grads(function, dtype: torch.dtype, shape: tuple[int, ...], features: int, outputs: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    dtypes = {'y': dtype, **dict.fromkeys(PARAMETERS, torch.float32)}
    return outputs_and_grads(function, inputs(shape, features, outputs), dtypes, differentiate=('y', *PARAMETERS))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('form', ['none', 'tanh'])
@pytest.mark.parametrize(('shape', 'features', 'outputs'), SHAPES)
def test_values_and_all_gradients(shape, features, outputs, form, dtype):
    functions = functools.partial(mlp, approximate=form), functools.partial(mlp_ref, approximate=form)
    check(*functions, inputs(shape, features, outputs), dtype, activations=['y'], parameters=PARAMETERS)


@pytest.mark.parametrize('shape', [(1, 1), (1, 17)])
def test_one_row(shape):
    check(mlp, mlp_ref, inputs(shape, 1, 1), torch.float32, activations=['y'], parameters=PARAMETERS)


@pytest.mark.parametrize('dtype', DTYPES)
def test_values_and_all_gradients_at_the_width_of_the_model(dtype):
    check(mlp, mlp_ref, inputs((19, 1024), 4096, 1024), dtype, activations=['y'], parameters=PARAMETERS)


@pytest.mark.gpu
@pytest.mark.parametrize('form', ['none', 'tanh'])
def test_values_and_all_gradients_at_full_size(form):
    functions = functools.partial(mlp, approximate=form), functools.partial(mlp_ref, approximate=form)
    values = inputs((65536, 1024), 4096, 1024)
    check(*functions, values, torch.bfloat16, activations=['y'], parameters=PARAMETERS)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('form', ['none', 'tanh'])
def test_kept_and_computed_again_give_the_same_bits(form, dtype):
    kept, again = (
        grads(functools.partial(mlp, approximate=form, recompute=recompute), dtype, *SMALL)
        for recompute in (False, True)
    )
    assert_bit_equal(again, kept)


def kept_shapes(**options) -> list[tuple[int, ...]]:
    kept = []
    values = {name: value.requires_grad_() for name, value in inputs((6, 32), 72, 48).items()}
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        mlp(**values, **options)
    return sorted({tensor.data_ptr(): tuple(tensor.shape) for tensor in kept}.values())


def test_one_tensor_of_features_is_kept_for_each_row_or_two():
    common = [(6, 32), (48, 72), (72,), (72, 32)]
    assert kept_shapes() == sorted([*common, (6, 72)])
    assert kept_shapes(recompute=False) == sorted([*common, (6, 72), (6, 72)])


def test_gradients_of_parameters_are_not_rounded_to_bf16():
    found = grads(mlp, torch.bfloat16, (64, 32), 72, 32)
    for name in ('dweight_in', 'dbias_in', 'dweight_out'):
        assert found[name].dtype is torch.float32
        assert not torch.equal(found[name], found[name].bfloat16().float())


LAYOUTS = [lambda y: y.transpose(0, 1), lambda y: y[::2, :, 3:40], lambda y: y[:, 1:2].expand(-1, 3, -1)]


@pytest.mark.parametrize('layout', LAYOUTS, ids=['transposed', 'sliced', 'expanded'])
def test_y_and_gradients_of_any_layout(layout):
    y = torch.randn(5, 6, 64)
    values = inputs(layout(y).shape, 24, 9) | {'y': y}
    values['bias_in'] = torch.randn(48)[::2]

    def around(function):
        return lambda y, **parameters: function(layout(y), **parameters).sum(-1)

    check(around(mlp), around(mlp_ref), values, torch.float32, activations=['y'], parameters=PARAMETERS)


@pytest.mark.parametrize('recompute', [True, False])
def test_no_rows(recompute):
    found = grads(functools.partial(mlp, recompute=recompute), torch.bfloat16, (0, 24), 40, 8)
    assert found['out0'].shape == (0, 8)
    assert found['dy'].shape == (0, 24)
    for name in PARAMETERS:
        assert not found[f'd{name}'].any()


@pytest.mark.filterwarnings('ignore:(overflow|invalid value) encountered:RuntimeWarning')
def test_nan_and_infinity_stay_in_their_rows():
    values = inputs((9, 33), 40, 7)
    values['y'][2, 5], values['y'][4, 7] = float('nan'), float('inf')
    values['y'].requires_grad_()
    out = mlp(**values)
    out.sum().backward()
    assert (~out.isfinite()).any(1).nonzero().flatten().tolist() == [2, 4]
    assert (~values['y'].grad.isfinite()).any(1).nonzero().flatten().tolist() == [2, 4]


def test_two_runs_are_equal_bit_for_bit():
    assert_bit_equal(grads(mlp, torch.bfloat16, (131, 24), 40, 24), grads(mlp, torch.bfloat16, (131, 24), 40, 24))


@pytest.mark.parametrize('recompute', [True, False])
def test_compiled_and_checkpointed_are_equal_to_plain(recompute):
    function = functools.partial(mlp, recompute=recompute)
    plain = grads(function, torch.bfloat16, *SMALL)
    assert_bit_equal(grads(torch.compile(function, fullgraph=True, backend='aot_eager'), torch.bfloat16, *SMALL), plain)
    assert_bit_equal(grads(functools.partial(checkpoint, function, use_reentrant=False), torch.bfloat16, *SMALL), plain)


def test_operators_are_well_formed():
    values = list(inputs((6, 32), 72, 48).values())
    casts = [values[1].clone(), values[3].clone()]
    leaves = [value.clone().requires_grad_() for value in values]
    for recompute in (True, False):
        torch.library.opcheck(torch.ops.rewarm.mlp.default, (*leaves, *casts, 'none', recompute))
    dout, h, g = torch.randn(6, 48), torch.randn(6, 72), torch.randn(6, 72)
    for kept in (g, None):
        args = dout, values[0], h, kept, values[2], *casts, 'tanh'
        torch.library.opcheck(torch.ops.rewarm.mlp_backward.default, args)


def test_exports():
    class Module(torch.nn.Module):
        def forward(self, y, weight_in, bias_in, weight_out):
            return mlp(y, weight_in, bias_in, weight_out)

    values = inputs(*SMALL)
    exported = torch.export.export(Module(), tuple(values.values()))
    assert torch.equal(exported.module()(*values.values()), mlp(**values))


@pytest.mark.skipif(not INTERPRETED, reason='operators run on tensors of a GPU')
def test_the_definition_runs_where_kernels_do_not(monkeypatch):
    monkeypatch.setattr('rewarm_kernels.launch.INTERPRETED', False)
    module = importlib.import_module('rewarm_kernels.mlp')  # in the package the name is the function's
    monkeypatch.setattr(module, '_mlp', None)
    values = inputs(*SMALL)
    assert torch.equal(mlp(**values), mlp_ref(**values))


def test_what_does_not_fit_is_refused():
    def call(weight_in=(8, 4), bias_in=(8,), weight_out=(4, 8), **options):
        mlp(torch.randn(2, 4), torch.randn(weight_in), torch.randn(bias_in), torch.randn(weight_out), **options)

    with pytest.raises(ValueError, match=r'weight_in \(8, 3\), y \(2, 4\)'):
        call(weight_in=(8, 3))
    with pytest.raises(ValueError, match=r'bias_in \(7,\), weight_in \(8, 4\)'):
        call(bias_in=(7,))
    with pytest.raises(ValueError, match=r'weight_out \(4, 9\), weight_in \(8, 4\)'):
        call(weight_out=(4, 9))
    with pytest.raises(ValueError, match="'erf'"):
        call(approximate='erf')
