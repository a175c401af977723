"""The loss against autograd of the plain formula, its handling of labels, its extremes and its memory.

Grid rationale: V = 401 and 2,003 are one ragged block, 50,304 is four (16,384 logits are a block here); 40 rows are three
chunks of 16 with a ragged last one, since a program (a row) costs the interpreter 10 ms. The definition meets its real
chunks: under one, one, just over one, several. No chunk is a single row: PyTorch takes a matrix-vector product for it,
which is less accurate.
"""

import importlib
import math

import pytest
import torch
from rewarm_kernels.launch import INTERPRETED
from rewarm_kernels.linear_cross_entropy import (
    cross_entropy_,
    linear_cross_entropy,
    linear_cross_entropy_ref,
    logits_chunk_rows,
)
from torch.utils.checkpoint import checkpoint

from tests.kernels.yardstick import DTYPES, assert_bit_equal, check, compare, error, outputs_and_grads

module = importlib.import_module('rewarm_kernels.linear_cross_entropy')  # in the package the name is the function's

# The interpreter computes with numpy, which warns where a GPU goes on.
numpy_warns = pytest.mark.filterwarnings('ignore::RuntimeWarning')

MIXED = {'hidden': torch.bfloat16, 'weight': torch.float32}


def plain(hidden, weight, labels, z_loss=0.0, ignore_index=-100):
    """The formula, with all logits and autograd."""
    logits = hidden @ weight.to(hidden.dtype).T
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    counts = labels != ignore_index
    lse = logits.logsumexp(-1)
    losses = lse - logits.gather(1, labels.where(counts, 0)[:, None])[:, 0] + z_loss * lse.square()
    return losses.where(counts, 0.0).sum(dtype=torch.float64), counts.sum()


def case(num_rows, width, vocab, ignored=0.0, *, z_loss=0.0):
    labels = torch.randint(vocab, (num_rows,))
    labels[torch.rand(num_rows) < ignored] = -100
    return {
        'hidden': torch.randn(num_rows, width),
        'weight': 2 * torch.randn(vocab, width) / width**0.5,
        'labels': labels,
        'z_loss': z_loss,
    }


def run(function, inputs, dtypes=MIXED):
    return outputs_and_grads(function, inputs, dtypes, differentiate=['hidden', 'weight'])


@pytest.fixture
def small_chunks(monkeypatch):
    """16 rows at once, whatever the vocabulary."""
    monkeypatch.setattr(module, 'MIN_CHUNK_ROWS', 16)
    monkeypatch.setattr(module, 'CPU_LOGITS_BYTES', 1)
    monkeypatch.setattr(module, 'GPU_LOGITS_BYTES', 1)


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('num_rows', 'width', 'vocab', 'ignored', 'z_loss'),
    [
        (1, 8, 11, 0.0, 0.0),
        (40, 48, 401, 0.2, 1e-2),
        (20, 1024, 2003, 0.2, 0.0),
        (6, 64, 50_304, 0.0, 1e-4),
        (18, 16, 64, 1.0, 1e-4),
    ],
)
@pytest.mark.usefixtures('small_chunks')
def test_loss_and_both_gradients(num_rows, width, vocab, ignored, z_loss, dtype):
    inputs = case(num_rows, width, vocab, ignored, z_loss=z_loss)
    check(linear_cross_entropy, plain, inputs, dtype, activations=['hidden'], parameters=['weight'])


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize(
    ('num_rows', 'width', 'vocab', 'ignored', 'z_loss'),
    [
        (1, 8, 11, 0.0, 0.0),
        (256, 16, 50_304, 0.2, 0.0),
        (260, 16, 50_304, 0.0, 1e-4),
        (700, 24, 13_001, 0.2, 1e-2),
        (300, 16, 64, 1.0, 1e-4),
    ],
)
def test_definition_equals_autograd_of_the_formula(num_rows, width, vocab, ignored, z_loss, dtype):
    inputs = case(num_rows, width, vocab, ignored, z_loss=z_loss)
    check(linear_cross_entropy_ref, plain, inputs, dtype, activations=['hidden'], parameters=['weight'])


def test_definition_is_exact_in_fp64():
    inputs = case(300, 16, 1000, 0.2, z_loss=1e-2)
    fp64 = dict.fromkeys(inputs, torch.float64)
    found, truth = run(linear_cross_entropy_ref, inputs, fp64), run(plain, inputs, fp64)
    assert {value.dtype for name, value in found.items() if name != 'out1'} == {torch.float64}
    assert max(error(found[name], truth[name]) for name in truth) < 1e-13


@pytest.mark.parametrize('function', [linear_cross_entropy, linear_cross_entropy_ref])
class TestBoth:
    """What holds for the kernel and for the definition."""

    def test_all_ignored_is_exactly_nothing(self, function):
        found = run(function, case(5, 8, 50, 1.0))
        assert all(not value.any() for value in found.values())

    def test_an_ignored_row_counts_nothing_whatever_is_in_it(self, function):
        inputs = case(9, 16, 50, z_loss=1e-2)
        inputs['labels'][[2, 5]] = -100
        clean = run(function, inputs)
        inputs['hidden'][2], inputs['hidden'][5, 3] = float('nan'), float('inf')
        assert_bit_equal(run(function, inputs), clean)

    def test_another_ignore_index(self, function):
        inputs = case(9, 16, 50)
        inputs['labels'][3] = 7
        seven = run(function, {**inputs, 'ignore_index': 7})
        inputs['labels'][inputs['labels'] == 7] = -100
        assert_bit_equal(seven, run(function, inputs))

    @pytest.mark.parametrize('label', [50, 10**9, 2**40, -1, -101])
    def test_an_unknown_label_makes_its_row_nan_and_no_other(self, function, label):
        inputs = case(6, 16, 50)
        clean = run(function, inputs)
        inputs['labels'][4] = label
        found = run(function, inputs)
        assert found['out0'].isnan()
        assert found['out1'] == 6
        assert found['dhidden'][4].isnan().all()
        assert torch.equal(found['dhidden'][[0, 1, 2, 3, 5]], clean['dhidden'][[0, 1, 2, 3, 5]])
        assert found['dweight'].isnan().any()

    @numpy_warns
    @pytest.mark.parametrize('value', [float('nan'), float('inf'), float('-inf')])
    def test_nan_and_infinity_stay_in_their_row(self, function, value):
        inputs = case(6, 16, 50, z_loss=1e-4)
        clean = run(function, inputs)
        inputs['hidden'][2, 3] = value
        found = run(function, inputs)
        assert found['out0'].isnan()
        assert found['dhidden'][2].isnan().all()
        assert torch.equal(found['dhidden'][[0, 1, 3, 4, 5]], clean['dhidden'][[0, 1, 3, 4, 5]])

    def test_logits_of_ten_thousand(self, function):
        inputs = case(8, 8, 50)
        inputs['hidden'] *= 1e4
        found, truth = run(function, inputs), run(plain, inputs, dict.fromkeys(inputs, torch.float64))
        inputs['hidden'] = inputs['hidden'].bfloat16()
        truth = run(plain, inputs, dict.fromkeys(inputs, torch.float64))
        compare(found, run(plain, inputs), truth, torch.bfloat16)
        assert all(value.isfinite().all() for value in found.values())

    def test_the_upstream_gradient_scales_both_and_the_backward_can_run_twice(self, function):
        inputs = case(9, 16, 50)
        hidden, weight = inputs['hidden'].bfloat16().requires_grad_(), inputs['weight'].requires_grad_()
        loss_sum, num_targets = function(hidden, weight, inputs['labels'])
        loss = (loss_sum / num_targets).float()
        first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        second = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        whole = torch.autograd.grad(loss_sum, (hidden, weight))
        scale = 1.0 / num_targets.float()  # 1/9, which bf16 would round
        for one, other, unscaled in zip(first, second, whole, strict=True):
            assert torch.equal(one, other)
            torch.testing.assert_close(one, (unscaled.float() * scale).to(one.dtype), rtol=1e-6, atol=0)

    def test_second_derivatives_are_refused(self, function):
        inputs = case(3, 8, 20)
        hidden = inputs['hidden'].requires_grad_()
        loss_sum, _ = function(hidden, inputs['weight'], inputs['labels'])
        (grad,) = torch.autograd.grad(loss_sum, hidden, create_graph=True)
        with pytest.raises(RuntimeError, match=r'no autograd formula|does not require grad'):
            grad.sum().backward()

    @pytest.mark.parametrize('wanted', ['hidden', 'weight'])
    def test_one_gradient_alone(self, function, wanted):
        inputs = case(9, 16, 50, 0.2)
        both = run(function, inputs)
        alone = outputs_and_grads(function, inputs, MIXED, differentiate=[wanted])
        assert_bit_equal(alone, {name: both[name] for name in ('out0', 'out1', f'd{wanted}')})

    def test_without_gradients_the_loss_is_the_same(self, function):
        inputs = case(9, 16, 50, 0.2)
        leaves = inputs['hidden'].bfloat16().requires_grad_(), inputs['weight'].requires_grad_(), inputs['labels']
        with torch.no_grad():
            loss_sum, num_targets = function(*leaves)
        assert not loss_sum.requires_grad
        assert (loss_sum.dtype, num_targets.dtype) == (torch.float64, torch.int64)
        assert torch.equal(loss_sum, function(*leaves)[0].detach())

    def test_empty_batch(self, function):
        found = run(function, case(0, 16, 50))
        assert found['dhidden'].shape == (0, 16)
        assert found['dweight'].shape == (50, 16)
        assert all(not value.any() for value in found.values())

    def test_leading_dimensions_and_strides(self, function):
        inputs = case(12, 16, 50, 0.2)
        flat = run(function, inputs)

        def strided(hidden, weight, labels, z_loss):
            hidden = hidden.unflatten(0, (3, 4)).transpose(0, 1).contiguous().transpose(0, 1)
            labels = labels.unflatten(0, (3, 4)).T.contiguous().T
            assert not hidden.is_contiguous()
            return function(hidden, weight.T.contiguous().T, labels, z_loss)

        compare(run(strided, inputs), flat, flat, torch.float32)

    def test_strides_of_labels_in_one_dimension(self, function):
        inputs = case(12, 16, 50, 0.2)
        strided = {**inputs, 'labels': torch.stack((inputs['labels'], inputs['labels'].flip(0)), dim=1)[:, 0]}
        assert_bit_equal(run(function, strided), run(function, inputs))

    def test_the_sum_of_losses_has_more_digits_than_fp32(self, function):
        loss_sum = function(**case(12, 16, 50))[0]
        assert loss_sum != loss_sum.float()

    def test_two_runs_give_the_same_bits(self, function):
        inputs = case(20, 24, 401, 0.1, z_loss=1e-4)
        assert_bit_equal(run(function, inputs), run(function, inputs))

    def test_checkpointing_changes_nothing(self, function):
        inputs = case(9, 16, 50, 0.2)
        again = run(lambda **given: checkpoint(function, use_reentrant=False, **given), inputs)
        assert_bit_equal(again, run(function, inputs))

    def test_compiling_changes_nothing(self, function):
        inputs = case(9, 16, 50, 0.2, z_loss=1e-4)
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, backend='aot_eager')
        assert_bit_equal(run(compiled, inputs), run(function, inputs))

    def test_shapes_that_do_not_fit(self, function):
        hidden, weight, labels = torch.randn(4, 16), torch.randn(50, 16), torch.zeros(4, dtype=torch.int64)
        with pytest.raises(ValueError, match=r'hidden \(4, 16\) and weight \(50, 8\) must be .* the same D'):
            function(hidden, weight[:, :8], labels)
        with pytest.raises(ValueError, match=r'hidden \(4, 16\) and labels \(3,\) must be .* the same rows'):
            function(hidden, weight, labels[:3])


class TestRows:
    """The kernel on logits, where they can be anything."""

    @pytest.mark.parametrize('z_loss', [0.0, 1e-2])
    def test_losses_and_gradients(self, z_loss):
        logits = 5 * torch.randn(12, 129)
        logits[1], logits[2], logits[3] = 1e4, -1e4, 1e4 * torch.randn(129)
        logits[4, 3:], logits[5, 7] = float('-inf'), float('-inf')
        labels = torch.randint(3, (12,))
        labels[5], labels[6] = 7, -100  # the label's logit is -inf; ignored
        leaf = logits.double().requires_grad_()
        lse = leaf.logsumexp(-1)
        truth = (lse - leaf.gather(1, labels.clamp(min=0)[:, None])[:, 0] + z_loss * lse**2).where(labels >= 0, 0.0)
        truth.sum().backward()
        losses = cross_entropy_(logits, labels, z_loss)
        torch.testing.assert_close(losses, truth.detach().float(), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(logits, leaf.grad.float(), rtol=1e-5 if z_loss else 1e-6, atol=1e-6)
        assert losses[5] == math.inf
        assert not logits[6].any()

    def test_a_first_block_of_minus_infinity_is_no_nan(self):
        logits = torch.randn(1, 20_000)
        logits[:, :16_500] = float('-inf')
        want = torch.nn.functional.cross_entropy(logits, torch.tensor([17_000]))
        torch.testing.assert_close(cross_entropy_(logits, torch.tensor([17_000]))[0], want)
        assert not logits[:, :16_500].any()
        assert logits.isfinite().all()

    @numpy_warns
    def test_a_row_without_a_distribution_is_nan(self):
        logits = torch.randn(4, 40)
        logits[0], logits[1, 5], logits[2, 6] = float('-inf'), float('inf'), float('nan')
        losses = cross_entropy_(logits, torch.full((4,), 3))
        assert losses.isnan().tolist() == [True, True, True, False]
        assert logits.isnan().all(-1).tolist() == [True, True, True, False]

    def test_logits_are_only_read_if_no_gradient_is_wanted(self):
        logits = torch.randn(3, 40)
        before = logits.clone()
        cross_entropy_(logits, torch.zeros(3, dtype=torch.int64), make_grad=False)
        assert torch.equal(logits, before)


@pytest.mark.usefixtures('small_chunks')
@pytest.mark.parametrize('function', [linear_cross_entropy, linear_cross_entropy_ref])
def test_memory_is_a_chunk_of_logits_and_two_gradients(function, device):
    # 80 rows x 13,001 in fp32 are 4.2 MB, a chunk of 16 rows 0.8 MB. Plain autograd holds all of them several times.
    inputs = case(80, 16, 13_001, 0.1)
    hidden, weight = inputs['hidden'].requires_grad_(), inputs['weight'].requires_grad_()

    def step(loss):
        loss(hidden, weight, inputs['labels'])[0].backward()

    chunk, gradient = 16 * 13_001 * 4, weight.numel() * 4
    copies = 1 if function is linear_cross_entropy else 2  # log_softmax writes another
    assert peak_bytes(step, function, device) < copies * chunk + 2 * gradient + 100_000
    assert peak_bytes(step, plain, device) > 80 * 13_001 * 4


def peak_bytes(step, function, device):
    """The most bytes that are allocated at once while ``step(function)`` runs."""
    step(function)  # keeps the gradients of the leaves, so that they are not counted
    if device.type == 'cuda':
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(function)
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step(function)
    held = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]':
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize(
    ('vocab', 'device', 'element_size', 'rows'),
    [
        (50_304, 'cpu', 4, 256),
        (4096, 'cpu', 4, 512),
        (1024, 'cpu', 4, 2048),
        (50_304, 'cuda', 2, 4096),
        (50_304, 'cuda', 4, 2048),
        (10**7, 'cuda', 2, 256),
    ],
)
def test_chunk_rows(vocab, device, element_size, rows):
    assert logits_chunk_rows(vocab, torch.device(device), element_size) == rows


def test_operators_are_registered_correctly():
    hidden, weight = torch.randn(6, 16, requires_grad=True), torch.randn(40, 16, requires_grad=True)
    labels = torch.tensor([1, 2, -100, 4, 5, 39])
    for wants in ((True, True), (False, False)):
        arguments = (hidden, weight, weight.detach().clone(), labels, 1e-4, -100, *wants)
        torch.library.opcheck(torch.ops.rewarm.linear_cross_entropy.default, arguments)
    scale = torch.tensor(0.3, dtype=torch.float64)
    torch.library.opcheck(torch.ops.rewarm.linear_cross_entropy_backward.default, (weight.detach(), scale))


def test_export():
    class Head(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.randn(40, 16))

        def forward(self, hidden, labels):
            return linear_cross_entropy(hidden, self.weight, labels)

    head, hidden, labels = Head(), torch.randn(6, 16), torch.randint(40, (6,))
    program = torch.export.export(head, (hidden, labels))
    assert torch.equal(program.module()(hidden, labels)[0], head(hidden, labels)[0])


@pytest.mark.gpu
def test_the_models_size_in_bf16():
    """65,536 rows at V = 50,304: gradients of some rows and of part of the weight against fp64, and memory."""
    num_rows, width, vocab = 65_536, 1024, 50_304
    inputs = case(num_rows, width, vocab, 0.2, z_loss=1e-4)
    hidden, weight = inputs['hidden'].bfloat16().requires_grad_(), inputs['weight'].requires_grad_()
    labels = inputs['labels']

    def step(function):
        loss_sum, num_targets = function(hidden, weight, labels, 1e-4)
        return loss_sum.detach(), num_targets, *torch.autograd.grad(loss_sum / num_targets, (hidden, weight))

    assert peak_bytes(step, linear_cross_entropy, hidden.device) < 10**9
    loss_sum, num_targets, grad_hidden, grad_weight = step(linear_cross_entropy)

    true_loss = 0.0
    true_hidden = torch.empty(num_rows, width, dtype=torch.float64)
    true_weight = torch.zeros(512, width, dtype=torch.float64)
    weight_fp64 = weight.detach().bfloat16().double()
    for rows in torch.arange(num_rows).split(2048):
        logits = (hidden[rows].detach().double() @ weight_fp64.T).requires_grad_()
        counts = labels[rows] != -100
        lse = logits.logsumexp(-1)
        losses = lse - logits.gather(1, labels[rows].clamp(min=0)[:, None])[:, 0] + 1e-4 * lse**2
        loss = losses.where(counts, 0.0).sum()
        (grad_logits,) = torch.autograd.grad(loss / num_targets, logits)
        true_loss += loss.detach()
        true_hidden[rows] = grad_logits @ weight_fp64
        true_weight += grad_logits[:, :512].T @ hidden[rows].detach().double()
    assert abs(loss_sum / true_loss - 1) < 1e-4
    assert error(grad_hidden, true_hidden) < 2e-2
    assert error(grad_weight[:512], true_weight) < 1e-2
    assert num_targets == (labels != -100).sum()


@pytest.mark.skipif(not INTERPRETED, reason='without the interpreter only tensors on a CPU take this path')
def test_without_kernels_the_definition_runs(monkeypatch):
    monkeypatch.setattr(module, 'runs_kernels', lambda *tensors: False)
    inputs = case(9, 16, 50, 0.2)
    assert_bit_equal(run(linear_cross_entropy, inputs), run(linear_cross_entropy_ref, inputs))
