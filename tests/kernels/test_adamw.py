"""AdamW and its clipping against ``torch.optim.AdamW`` and ``clip_grad_norm_``, in fp64 and fp32, over several steps.

Grid rationale: 200,003 elements are four programs of the step and of the norm here, the last one ragged and no multiple
of 16; 528 are one; in the two buffers of a test one decays and the other does not.
"""

import pytest
import torch
from rewarm_kernels import adamw as module
from rewarm_kernels.adamw import adamw_, adamw_ref, squared_norm, squared_norm_ref
from rewarm_kernels.launch import INTERPRETED
from torch import nn

from tests.kernels.yardstick import assert_bit_equal, compare, error

SETTINGS = {'lr': 1e-2, 'betas': (0.9, 0.95), 'eps': 1e-8}
DECAYS = (0.1, 0.0)
NUM_STEPS = 4


def start_and_grads(sizes):
    start = [torch.randn(size) for size in sizes]
    # One row of gradients is tiny, where eps counts; their size changes, so that clipping does at some steps only.
    scales = torch.logspace(-9, 0, max(sizes))
    grads = [[10.0 ** (step - 3) * torch.randn(size) * scales[:size] for size in sizes] for step in range(NUM_STEPS)]
    return start, grads


def torchs(start, grads, max_norm, dtype, **more):
    """What PyTorch makes of them in a dtype."""
    params = [nn.Parameter(tensor.to(dtype, copy=True)) for tensor in start]
    groups = [{'params': [param], 'weight_decay': decay} for param, decay in zip(params, DECAYS, strict=False)]
    optimizer = torch.optim.AdamW(groups, **SETTINGS, **more)
    for grads_of_step in grads:
        for param, grad in zip(params, grads_of_step, strict=True):
            param.grad = grad.to(dtype, copy=True)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(params, max_norm)
        optimizer.step()
    moments = [optimizer.state[param] for param in params]
    return named(params, *([state[key] for state in moments] for key in ('exp_avg', 'exp_avg_sq')))


def ours(start, grads, max_norm, *, function=adamw_, norm=squared_norm):
    params = [tensor.clone() for tensor in start]
    first, second = ([torch.zeros_like(tensor) for tensor in start] for _ in range(2))
    for step, grads_of_step in enumerate(grads, 1):
        total = None if max_norm is None else torch.stack([norm(grad) for grad in grads_of_step]).sum()
        for *buffers, decay in zip(params, grads_of_step, first, second, DECAYS, strict=False):
            clipping = {'grad_squared_norm': total, 'max_norm': max_norm}
            function(*buffers, **SETTINGS, weight_decay=decay, step=step, **clipping)
    return named(params, first, second)


def named(params, first, second):
    lists = {'param': params, 'exp_avg': first, 'exp_avg_sq': second}
    return {f'{name}{index}': tensor.detach() for name, of in lists.items() for index, tensor in enumerate(of)}


def out_of_place(param, grad, exp_avg, exp_avg_sq, **settings):
    after = adamw_ref(param, grad, exp_avg, exp_avg_sq, **settings)
    for old, new in zip((param, exp_avg, exp_avg_sq), after, strict=True):
        old.copy_(new)


@pytest.mark.parametrize('max_norm', [None, 1e-4, 0.5, 1e6])  # clipped: never, at each step, at some, at none
@pytest.mark.parametrize('sizes', [(200_003, 528), (1, 2)])
@pytest.mark.parametrize('function', [adamw_, out_of_place])
def test_steps_are_those_of_torch(sizes, max_norm, function):
    start, grads = start_and_grads(sizes)
    before = [grad.clone() for of_step in grads for grad in of_step]
    found = ours(start, grads, max_norm, function=function)
    theirs = torchs(start, grads, max_norm, torch.float32)
    compare(found, theirs, torchs(start, grads, max_norm, torch.float64), torch.float32)
    assert all(torch.equal(grad, old) for grad, old in zip([g for s in grads for g in s], before, strict=True))


@pytest.mark.parametrize('max_norm', [None, 0.5])
def test_definition_is_exact_in_fp64(max_norm):
    start, grads = start_and_grads((1000, 64))
    start, grads = [tensor.double() for tensor in start], [[grad.double() for grad in of_step] for of_step in grads]
    found = ours(start, grads, max_norm, function=out_of_place, norm=squared_norm_ref)
    truth = torchs(start, grads, max_norm, torch.float64)
    assert max(error(found[name], truth[name]) for name in truth) < 1e-14


@pytest.mark.parametrize('size', [0, 1, 528, 200_003])
@pytest.mark.parametrize('function', [squared_norm, squared_norm_ref])
def test_squared_norm(function, size):
    flat = torch.randn(size) * torch.logspace(-6, 3, size)
    found = function(flat)
    assert (found.shape, found.dtype, found.device) == ((), torch.float32, flat.device)
    torch.testing.assert_close(found.double(), flat.double().square().sum(), rtol=1e-6, atol=0)


@pytest.mark.filterwarnings('ignore::RuntimeWarning')  # of numpy, in the interpreter
@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('function', [adamw_, out_of_place])
def test_a_gradient_that_is_not_finite_does_what_it_does_in_torch(function, value):
    start, grads = start_and_grads((528, 48))
    grads[1][0][5] = value
    found, theirs = ours(start, grads, 1.0, function=function), torchs(start, grads, 1.0, torch.float32)
    for name in theirs:
        assert torch.equal(found[name].isnan(), theirs[name].isnan()), name
    assert found['param0'][5].isnan()
    assert found['param1'].isnan().all() == (value != float('inf'))  # NaN in the norm reaches all; infinity makes it 0


def test_without_clipping_a_nan_stays_where_it_is():
    start, grads = start_and_grads((528,))
    grads[1][0][5] = float('nan')
    found = ours(start, grads, None)
    assert all(tensor.isnan().nonzero().tolist() == [[5]] for tensor in found.values())


def test_step_counts_far_and_a_first_step_from_nothing():
    param, grad = torch.randn(528), torch.randn(528)
    moments = torch.randn(528), torch.rand(528)
    for step in (1, 143_000):
        found, theirs, truth = (
            [tensor.to(dtype, copy=True) for tensor in (param, grad, *moments)]
            for dtype in (torch.float32, torch.float32, torch.float64)
        )
        settings = {**SETTINGS, 'weight_decay': 0.1, 'step': step}
        adamw_(*found, **settings)
        out_of_place(*theirs, **settings)
        out_of_place(*truth, **settings)
        compare(*(dict(enumerate(tensors)) for tensors in (found, theirs, truth)), torch.float32)


def test_slices_of_one_buffer_and_parameters_that_want_gradients():
    whole = nn.Parameter(torch.randn(1024))
    start, grads = [whole.detach()[:528].clone(), whole.detach()[528:].clone()], [[torch.randn(528), torch.randn(496)]]
    want = ours(start, grads, None)
    for part, grad, decay in zip((slice(528), slice(528, 1024)), grads[0], DECAYS, strict=True):
        adamw_(whole[part], grad, *torch.zeros(2, len(grad)).unbind(), **SETTINGS, weight_decay=decay, step=1)
    assert torch.equal(whole.detach(), torch.cat([want['param0'], want['param1']]))
    assert whole.requires_grad
    adamw_(whole, torch.randn(1024), *torch.zeros(2, 1024).unbind(), **SETTINGS, weight_decay=0.1, step=1)


def test_empty_buffer():
    adamw_(*torch.empty(4, 0).unbind(), **SETTINGS, weight_decay=0.1, step=1)
    assert squared_norm(torch.empty(0)) == 0


def test_two_runs_give_the_same_bits():
    start, grads = start_and_grads((200_003, 528))
    assert_bit_equal(ours(start, grads, 0.5), ours(start, grads, 0.5))


def test_compiling_changes_nothing():
    start, grads = start_and_grads((528, 48))
    torch.compiler.reset()
    step, norm = (torch.compile(op, fullgraph=True, backend='aot_eager') for op in (adamw_, squared_norm))
    assert_bit_equal(ours(start, grads, 0.5, function=step, norm=norm), ours(start, grads, 0.5))


def test_operators_are_registered_correctly():
    buffers = [torch.randn(528), torch.randn(528), torch.randn(528), torch.rand(528)]
    torch.library.opcheck(torch.ops.rewarm.squared_norm.default, (buffers[0],))
    for clipping in ((torch.tensor(3.0), 0.5), (None, None)):
        arguments = (*buffers, clipping[0], 1e-2, 0.9, 0.95, 1e-8, 0.1, 3, clipping[1])
        torch.library.opcheck(torch.ops.rewarm.adamw_.default, arguments)


def test_buffers_that_do_not_fit():
    good, settings = torch.randn(32), {**SETTINGS, 'weight_decay': 0.1, 'step': 1}

    def call(*buffers, **more):
        adamw_(*buffers, **{**settings, **more})

    with pytest.raises(ValueError, match=r'grad \(31,\) and param \(32,\) must have the same shape'):
        call(good, good[:31], good, good)
    with pytest.raises(ValueError, match=r'param must be flat and contiguous.* \(4, 8\)'):
        call(*[good.view(4, 8)] * 4)
    with pytest.raises(ValueError, match=r'exp_avg must be flat and contiguous.* \(2,\)'):
        call(good, good, torch.randn(64)[::2], good)
    with pytest.raises(ValueError, match=r'grad must be fp32, and is torch.bfloat16'):
        call(good, good.bfloat16(), good, good)
    with pytest.raises(ValueError, match='step counts from 1, and is 0'):
        call(good, good, good, good, step=0)
    with pytest.raises(ValueError, match='give both or neither'):
        call(good, good, good, good, max_norm=1.0)
    with pytest.raises(ValueError, match=r'flat must be flat and contiguous'):
        squared_norm(good.view(4, 8))


@pytest.mark.skipif(not INTERPRETED, reason='without the interpreter only tensors on a CPU take this path')
def test_without_kernels_the_definition_runs(monkeypatch):
    start, grads = start_and_grads((528, 48))
    want = ours(start, grads, 0.5, function=out_of_place, norm=squared_norm_ref)
    monkeypatch.setattr(module, 'runs_kernels', lambda *tensors: False)
    assert_bit_equal(ours(start, grads, 0.5), want)


@pytest.mark.gpu
def test_the_models_size():
    """405,334,016 parameters: Pythia-410M's, decayed and not, against PyTorch's fused step."""
    start = [torch.randn(size) for size in (405_012_480, 321_536)]
    grads = [[torch.randn_like(tensor) for tensor in start] for _ in range(2)]
    runs = (
        ours(start, grads, 1.0),
        *(torchs(start, grads, 1.0, dtype, fused=True) for dtype in (torch.float32, torch.float64)),
    )
    compare(*({name: tensor[-1_000_000:] for name, tensor in run.items()} for run in runs), torch.float32)
