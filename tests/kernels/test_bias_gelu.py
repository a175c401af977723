"""bias_gelu: values and gradients, the fit of the normal distribution, and the contract of an operator."""

import functools
import importlib

import pytest
import torch
from rewarm_kernels.bias_gelu import bias_gelu, bias_gelu_ref, gelu_backward, gelu_forward
from rewarm_kernels.launch import INTERPRETED
from torch.utils.checkpoint import checkpoint

from tests.kernels.yardstick import DTYPES, assert_bit_equal, check, error, outputs_and_grads

FORMS = ['none', 'tanh']

# One element; odd rows and width; rows in a second partial sum (128 each) and a width without wide loads; the model's.
SHAPES = [(1, 1), (3, 17), (131, 130), (2, 5, 1000), (70, 4096)]


def inputs(*shape: int) -> dict[str, torch.Tensor]:
    return {'h': 1.5 * torch.randn(*shape), 'bias': torch.randn(shape[-1])}


def both(form: str):
    return functools.partial(bias_gelu, approximate=form), functools.partial(bias_gelu_ref, approximate=form)


def grads(function, dtype: torch.dtype, *shape: int) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    dtypes = {'h': dtype, 'bias': torch.float32}
    return outputs_and_grads(function, inputs(*shape), dtypes, differentiate=('h', 'bias'))


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('shape', SHAPES)
def test_values_and_both_gradients(shape, form, dtype):
    check(*both(form), inputs(*shape), dtype, activations=['h'], parameters=['bias'])


@pytest.mark.gpu
@pytest.mark.parametrize('form', FORMS)
def test_values_and_both_gradients_at_full_size(form):
    check(*both(form), inputs(65536, 4096), torch.bfloat16, activations=['h'], parameters=['bias'])


def around(function, before=lambda h: h, after=lambda g: g):
    return lambda h, bias: after(function(before(h), bias))


LAYOUTS = [lambda h: h.transpose(0, 1), lambda h: h[::2, :, 3:40], lambda h: h[:, 1:2].expand(-1, 3, -1)]


@pytest.mark.parametrize('layout', LAYOUTS, ids=['transposed', 'sliced', 'expanded'])
def test_h_of_any_layout(layout):
    h = torch.randn(5, 6, 64)
    values = {'h': h, 'bias': torch.randn(layout(h).shape[-1])}
    functions = around(bias_gelu, before=layout), around(bias_gelu_ref, before=layout)
    check(*functions, values, torch.float32, activations=['h'], parameters=['bias'])


@pytest.mark.parametrize(
    'after', [torch.sum, lambda g: (g.t() * torch.arange(6.0)).sum(1)], ids=['expanded', 'transposed']
)
def test_a_gradient_of_any_layout(after):
    functions = around(bias_gelu, after=after), around(bias_gelu_ref, after=after)
    check(*functions, inputs(6, 32), torch.float32, activations=['h'], parameters=['bias'])


def test_no_rows():
    found = grads(bias_gelu, torch.bfloat16, 0, 24)
    assert found['out0'].shape == found['dh'].shape == (0, 24)
    assert torch.equal(found['dbias'], torch.zeros(24))


def normal(x: torch.Tensor) -> torch.Tensor:
    return torch.special.erfc(-x.double() * 0.5**0.5) / 2


def test_the_fit_is_as_good_as_erf_in_fp32_everywhere():
    # On both sides of 0, to where Phi(-x) vanishes in fp32 and beyond; 0 is not among them.
    x = torch.linspace(-16, 16, 2**18).reshape(64, 4096)
    leaf = x.clone().requires_grad_()
    torch_g = torch.nn.functional.gelu(leaf)
    torch_g.sum().backward()
    slope, _, g = gelu_backward(x, torch.zeros(4096), torch.ones_like(x), 'none', recompute=True, in_place=False)
    truth = normal(x)
    assert error(g / x, truth) <= 2 * error(torch_g.detach() / x, truth)
    density = torch.exp(-0.5 * x.double() ** 2) * 0.3989422804014327
    assert error(slope, truth + x * density) <= 2 * error(leaf.grad, truth + x * density)
    # The tail keeps its digits, where 1 + erf cancels: to 1 % at -6, where Phi is 1e-9.
    tail = (x < -0.1) & (x > -6)
    assert ((g / x)[tail].double() / truth[tail] - 1).abs().max() < 0.01


def test_each_bf16_number_gives_the_nearest_or_the_next():
    x = torch.arange(-(2**15), 2**15).to(torch.int16).view(torch.bfloat16)
    x = x[
        x.isfinite() & (x.abs() > 1e-30) & (x > -5) & (x < 1e4)
    ]  # below, |g| < 2e-6; a device may flush what is subnormal
    x = torch.cat([x, x[-1:].expand(-len(x) % 256)]).reshape(-1, 256)
    nearest = (x.double() * normal(x)).bfloat16()
    steps = gelu_forward(x, torch.zeros(256), 'none').view(torch.int16).int() - nearest.view(torch.int16).int()
    assert steps.abs().max() <= 1
    assert (steps != 0).double().mean() < 1e-3


@pytest.mark.filterwarnings('ignore:overflow encountered:RuntimeWarning')  # numpy's, of exp2 that should give infinity
@pytest.mark.parametrize('form', FORMS)
def test_large_numbers_saturate(form):
    h = torch.tensor([[-1e15, -1e4, -40.0, 40.0, 1e4, 1e15]], requires_grad=True)
    g = bias_gelu(h, torch.zeros(6), form)
    g.sum().backward()
    assert torch.equal(g.detach(), h.detach().clamp(min=0))
    assert torch.equal(h.grad, (h.detach() > 0).float())


@pytest.mark.filterwarnings('ignore:(overflow|invalid value) encountered:RuntimeWarning')
@pytest.mark.parametrize('form', FORMS)
def test_nan_and_infinity_stay_where_they_are(form):
    values = inputs(9, 33)
    values['h'][2, 5], values['h'][4, 7], values['h'][6, 9] = float('nan'), float('inf'), float('-inf')
    check(*both(form), values, torch.float32, activations=['h'], parameters=['bias'])
    found = outputs_and_grads(both(form)[0], values, dict.fromkeys(values, torch.float32), differentiate=('h', 'bias'))
    assert found['out0'].isnan().nonzero().tolist() == [[2, 5], [6, 9]]  # -inf * 0, as in PyTorch
    assert found['dh'].isnan().nonzero().tolist() == [[2, 5], [4, 7], [6, 9]]
    assert found['dbias'].isnan().nonzero().tolist() == [[5], [7], [9]]


@pytest.mark.parametrize('form', FORMS)
def test_recomputed_and_in_place_give_the_same_bits(form):
    h, dg, bias = torch.randn(131, 96).bfloat16(), torch.randn(131, 96).bfloat16(), torch.randn(96)
    dh, dbias, none = gelu_backward(h, bias, dg, form, recompute=False, in_place=False)
    again, dbias_again, g = gelu_backward(h, bias, dg, form, recompute=True, in_place=True)
    assert none is None
    assert again is dg
    assert torch.equal(again, dh)
    assert torch.equal(dbias_again, dbias)
    assert torch.equal(g, gelu_forward(h, bias, form))


@pytest.mark.parametrize('form', FORMS)
def test_the_gradient_of_the_bias_is_summed_before_that_of_h_is_rounded(form):
    h, dg, bias = torch.randn(131, 96).bfloat16(), torch.randn(131, 96).bfloat16(), torch.randn(96)
    _, dbias, _ = gelu_backward(h, bias, dg, form, recompute=False, in_place=False)
    truth = bias.double().requires_grad_()
    bias_gelu_ref(h.double(), truth, form).backward(dg.double())
    assert error(dbias, truth.grad) < 1e-6


def test_two_runs_are_equal_bit_for_bit():
    assert_bit_equal(grads(bias_gelu, torch.bfloat16, 131, 96), grads(bias_gelu, torch.bfloat16, 131, 96))


def test_compiled_and_checkpointed_are_equal_to_plain():
    compiled = torch.compile(bias_gelu, fullgraph=True, backend='aot_eager')
    plain = grads(bias_gelu, torch.bfloat16, 2, 3, 32)
    assert_bit_equal(grads(compiled, torch.bfloat16, 2, 3, 32), plain)
    assert_bit_equal(
        grads(lambda h, bias: checkpoint(bias_gelu, h, bias, use_reentrant=False), torch.bfloat16, 2, 3, 32), plain
    )


def test_operators_are_well_formed():
    h, dg, bias = torch.randn(6, 32), torch.randn(6, 32), torch.randn(32)
    leaves = h.clone().requires_grad_(), bias.clone().requires_grad_()
    torch.library.opcheck(torch.ops.rewarm.bias_gelu.default, (*leaves, 'tanh'))
    torch.library.opcheck(torch.ops.rewarm.bias_gelu_backward.default, (h, bias, dg, 'none'))


def test_exports():
    class Module(torch.nn.Module):
        def forward(self, h, bias):
            return bias_gelu(h, bias)

    values = inputs(2, 3, 32)
    exported = torch.export.export(Module(), tuple(values.values()))
    assert torch.equal(exported.module()(*values.values()), bias_gelu(**values))


@pytest.mark.skipif(not INTERPRETED, reason='kernels run on tensors of a GPU')
def test_the_definition_runs_where_kernels_do_not(monkeypatch):
    monkeypatch.setattr('rewarm_kernels.launch.INTERPRETED', False)
    module = importlib.import_module('rewarm_kernels.bias_gelu')  # in the package the name is the function's
    monkeypatch.setattr(module, '_bias_gelu', None)
    values = inputs(3, 17)
    assert torch.equal(bias_gelu(**values), bias_gelu_ref(**values))


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r'bias \(3,\), h \(2, 4\)'):
        bias_gelu(torch.randn(2, 4), torch.randn(3))
    with pytest.raises(ValueError, match="'erf'"):
        bias_gelu(torch.randn(2, 4), torch.randn(4), approximate='erf')
