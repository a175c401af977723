"""add_dual_layer_norm against its definition in fp64, and what every operator promises."""

import importlib

import pytest
import torch
from rewarm_kernels.add_dual_layer_norm import add_dual_layer_norm, add_dual_layer_norm_ref
from torch.utils.checkpoint import checkpoint

from tests.kernels.yardstick import DTYPES, assert_bit_equal, check, error, outputs_and_grads

module = importlib.import_module('rewarm_kernels.add_dual_layer_norm')  # in the package the name is the function's

ACTIVATIONS = ['x', 'attn', 'mlp']
PARAMETERS = ['attn_bias', 'mlp_bias', 'weight_1', 'bias_1', 'weight_2', 'bias_2']

# Interpreted, a program has 64 rows and the backward 2 programs: 130 rows are two steps of it, the last of them of 2 rows.
CASES = [
    ((130, 1024), 'attn mlp dual'),  # the model's width
    ((3, 13, 128), 'attn mlp dual'),  # leading dimensions; one program, some of its rows masked
    ((5, 100), 'attn mlp dual'),  # a width that is no power of two
    ((33, 768), 'dual'),  # a first block: nothing to add; a width of three quarters of a block
    ((33, 64), 'attn mlp'),  # the last norm
    ((9, 40), 'attn dual'),  # one branch
    ((9, 40), 'mlp'),
    ((8,), ''),  # one row, no leading dimension
]


def make_inputs(shape=(70, 96), has='attn mlp dual'):
    width = shape[-1]
    attn, mlp, dual = (name in has.split() for name in ('attn', 'mlp', 'dual'))
    return {
        'x': torch.randn(shape) * 2 + 0.5,
        'attn': torch.randn(shape) if attn else None,
        'mlp': torch.randn(shape) if mlp else None,
        'attn_bias': torch.randn(width) if attn else None,
        'mlp_bias': torch.randn(width) if mlp else None,
        'weight_1': 1 + 0.2 * torch.randn(width),
        'bias_1': torch.randn(width),
        'weight_2': 1 + 0.2 * torch.randn(width) if dual else None,
        'bias_2': torch.randn(width) if dual else None,
    }


def run(function, inputs, dtype=torch.float32):
    """Outputs and gradients with activations of a dtype."""
    dtypes = {name: dtype if name in ACTIVATIONS else torch.float32 for name in inputs}
    return outputs_and_grads(function, inputs, dtypes, differentiate=list(inputs))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(('shape', 'has'), CASES)
def test_outputs_and_gradients(shape, has, dtype):
    inputs = make_inputs(shape, has)
    check(
        add_dual_layer_norm,
        add_dual_layer_norm_ref,
        inputs,
        dtype,
        activations=ACTIVATIONS,
        parameters=PARAMETERS,
    )


@pytest.mark.gpu
@pytest.mark.parametrize('has', ['attn mlp dual', 'attn mlp', 'dual'])
def test_outputs_and_gradients_of_a_whole_batch(has):
    check(
        add_dual_layer_norm,
        add_dual_layer_norm_ref,
        make_inputs((65536, 1024), has),
        torch.bfloat16,
        activations=ACTIVATIONS,
        parameters=PARAMETERS,
    )


@pytest.mark.parametrize('width', [128, 2048, 5120, 8192])
@pytest.mark.gpu
def test_outputs_and_gradients_of_other_widths(width):
    check(
        add_dual_layer_norm,
        add_dual_layer_norm_ref,
        make_inputs((4097, width)),
        torch.bfloat16,
        activations=ACTIVATIONS,
        parameters=PARAMETERS,
    )


def test_a_large_mean_does_not_cancel_the_variance():
    inputs = make_inputs((16, 256), 'dual')
    inputs['x'] = inputs['x'] + 1000
    check(
        add_dual_layer_norm,
        add_dual_layer_norm_ref,
        inputs,
        torch.float32,
        activations=ACTIVATIONS,
        parameters=PARAMETERS,
    )


def test_the_norms_are_of_the_sum_that_is_returned():
    inputs = {name: value.bfloat16() if name in ACTIVATIONS else value for name, value in make_inputs((20, 96)).items()}
    total, *normed = add_dual_layer_norm(**inputs)
    alone = dict.fromkeys(['attn', 'mlp', 'attn_bias', 'mlp_bias'])
    for found, want in zip(normed, add_dual_layer_norm(**{**inputs, 'x': total, **alone})[1:], strict=True):
        assert torch.equal(found, want)


def test_without_branches_the_sum_is_x_itself():
    inputs = make_inputs(has='dual')
    assert add_dual_layer_norm(**inputs)[0] is inputs['x']
    assert add_dual_layer_norm_ref(**inputs)[0] is inputs['x']


def test_without_a_second_norm_there_is_none():
    inputs = make_inputs(has='attn mlp')
    assert add_dual_layer_norm(**inputs)[2] is None
    assert add_dual_layer_norm_ref(**inputs)[2] is None


@pytest.mark.parametrize('used', [(0,), (1,), (2,), (1, 2)])
def test_an_output_that_is_not_used_counts_as_zero_in_the_gradients(used):
    def part(function):
        return lambda **inputs: tuple(function(**inputs)[index] for index in used)

    check(
        part(add_dual_layer_norm),
        part(add_dual_layer_norm_ref),
        make_inputs((20, 64)),
        torch.float32,
        activations=ACTIVATIONS,
        parameters=PARAMETERS,
    )


def test_any_layout_of_inputs_and_upstream_gradients():
    packed = make_inputs((6, 5, 32))

    def strided(function):
        def call(x, attn, mlp, **parameters):
            parameters = {name: torch.stack((value, value), 1)[:, 0] for name, value in parameters.items()}
            outputs = function(
                x.transpose(0, 1), attn.mT.contiguous().mT.transpose(0, 1), mlp.transpose(0, 1), **parameters
            )
            return tuple(output.transpose(0, 1) for output in outputs)

        return call

    check(
        strided(add_dual_layer_norm),
        strided(add_dual_layer_norm_ref),
        packed,
        torch.float32,
        activations=ACTIVATIONS,
        parameters=PARAMETERS,
    )
    x = packed['x'].requires_grad_()
    add_dual_layer_norm(**packed)[1].sum().backward()  # an upstream gradient of strides 0
    first = x.grad.clone()
    x.grad = None
    add_dual_layer_norm_ref(**packed)[1].sum().backward()
    torch.testing.assert_close(first, x.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('shape', [(0, 64), (2, 0, 64)])
def test_an_empty_batch(shape):
    found = run(add_dual_layer_norm, make_inputs(shape))
    assert found['out0'].shape == found['out2'].shape == found['dmlp'].shape == shape
    assert all(not found[f'd{name}'].any() for name in PARAMETERS)


@pytest.mark.filterwarnings('ignore:invalid value encountered:RuntimeWarning')  # NumPy's, of Inf - Inf, interpreted
@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_bad_row_spoils_no_other(bad):
    inputs = make_inputs((40, 100))
    inputs['attn'][7, 3] = bad
    found = run(add_dual_layer_norm, inputs, torch.bfloat16)
    for name in ('out1', 'out2', 'dx', 'dattn', 'dmlp'):
        is_bad = ~found[name].isfinite()
        assert is_bad[7].all(), name
        assert is_bad.sum() == 100, name
    assert (~found['out0'].isfinite()).sum() == 1


def test_gradients_of_parameters_are_summed_before_that_of_x_is_rounded():
    inputs = make_inputs((130, 96))
    for name in ('attn', 'mlp', 'attn_bias', 'mlp_bias'):
        inputs[name] = torch.zeros_like(inputs[name])  # the sum is then x, and the same in bf16 and fp64
    upstream = torch.randn(3, 130, 96).bfloat16()

    def grads(function, of_activations, of_parameters):
        leaves = {
            name: value.bfloat16().to(of_activations) if name in ACTIVATIONS else value.to(of_parameters)
            for name, value in inputs.items()
        }
        parameters = [leaves[name].requires_grad_() for name in PARAMETERS]
        return torch.autograd.grad(function(**leaves), parameters, [grad.to(of_activations) for grad in upstream])

    found = grads(add_dual_layer_norm, torch.bfloat16, torch.float32)
    for name, ours, truth in zip(PARAMETERS, found, grads(add_dual_layer_norm_ref, torch.float64, torch.float64)):
        assert error(ours, truth) < 1e-5, name


def test_two_runs_are_equal_bit_for_bit():
    inputs = make_inputs((130, 96))
    assert_bit_equal(*(run(add_dual_layer_norm, inputs, torch.bfloat16) for _ in range(2)))


@pytest.mark.parametrize('has', ['attn mlp dual', 'attn', 'dual'])
def test_compiled_it_is_the_same(has):
    torch._dynamo.reset()
    compiled = torch.compile(add_dual_layer_norm, fullgraph=True, backend='aot_eager')
    inputs = make_inputs((10, 32), has)
    assert_bit_equal(run(add_dual_layer_norm, inputs, torch.bfloat16), run(compiled, inputs, torch.bfloat16))


def test_recomputed_in_a_checkpoint_it_is_the_same():
    def checkpointed(**inputs):
        return checkpoint(lambda: add_dual_layer_norm(**inputs), use_reentrant=False)

    inputs = make_inputs((10, 32))
    assert_bit_equal(run(add_dual_layer_norm, inputs), run(checkpointed, inputs))


@pytest.mark.parametrize('has', ['attn mlp dual', 'mlp', 'dual'])
def test_operators_are_registered_correctly(has):
    inputs = make_inputs((6, 32), has)
    leaves = [None if value is None else value.requires_grad_() for value in inputs.values()]
    torch.library.opcheck(module._add_dual_layer_norm, (*leaves, 1e-5))
    total, dy_1, dtotal = torch.randn(3, 6, 32)
    dual = 'dual' in has
    weights = (inputs['weight_1'].detach(), inputs['weight_2'].detach() if dual else None)
    arguments = (total, dy_1, dy_1 if dual else None, dtotal if 'mlp' in has else None, *weights, *torch.rand(2, 6))
    torch.library.opcheck(module._add_dual_layer_norm_backward, arguments)


@pytest.mark.parametrize(
    ('name', 'value', 'match'),
    [
        ('attn', torch.zeros(70, 95), r'attn is \(70, 95\) and x is \(70, 96\): the shapes must be equal'),
        ('mlp', torch.zeros(69, 96), r'mlp is \(69, 96\) and x is \(70, 96\)'),
        ('attn_bias', torch.zeros(95), r'attn_bias is \(95,\) and x is \(70, 96\): it must be \(96,\), the width of x'),
        ('weight_1', torch.zeros(1, 96), r'weight_1 is \(1, 96\) and x is'),
        ('bias_2', torch.zeros(192), r'bias_2 is \(192,\) and x is'),
        ('mlp', None, 'mlp is None and mlp_bias is not: give both or neither'),
        ('attn_bias', None, 'attn_bias is None and attn is not'),
        ('bias_2', None, 'bias_2 is None and weight_2 is not'),
    ],
)
def test_wrong_shapes_are_refused(name, value, match):
    with pytest.raises(ValueError, match=match):
        add_dual_layer_norm(**{**make_inputs(), name: value})


def test_it_exports():
    class Module(torch.nn.Module):
        def forward(self, *tensors):
            return add_dual_layer_norm(*tensors)

    values = tuple(make_inputs((2, 3, 32)).values())
    exported = torch.export.export(Module(), values).module()
    for got, want in zip(exported(*values), add_dual_layer_norm(*values), strict=True):
        assert torch.equal(got, want)
