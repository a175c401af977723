"""The operations against fp64 definitions written another way, and the memory of the loss."""

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rewarm.config.errors import UserError
from rewarm.model import ops
from rewarm.model.ops import IGNORED_LABEL, choose_ops, linear_cross_entropy


def rand(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def loss_case(num_rows, width, vocab, ignored, dtype=torch.float32):
    hidden = rand(num_rows, width, seed=1, dtype=dtype).requires_grad_()
    weight = (0.3 * rand(vocab, width, seed=2)).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(0, vocab, (num_rows,), generator=generator)
    labels[torch.rand(num_rows, generator=generator) < ignored] = IGNORED_LABEL
    return hidden, weight, labels


def relative_error(got, want):
    return ((got.double() - want).norm() / want.norm().clamp(min=1e-30)).item()


class TestLinearCrossEntropy:
    @pytest.mark.parametrize('ignored', [0.0, 0.2])
    @pytest.mark.parametrize(
        ('num_rows', 'width', 'vocab'),
        [
            (1, 8, 11),
            (256, 16, 50_304),
            (257, 16, 50_304),
            (700, 24, 13_001),
        ],  # under, at, just over and several chunks
    )
    def test_loss_and_both_gradients_equal_fp64(self, num_rows, width, vocab, ignored):
        hidden, weight, labels = loss_case(num_rows, width, vocab, ignored)
        loss = linear_cross_entropy(hidden, weight, labels)
        grads = torch.autograd.grad(0.37 * loss, (hidden, weight))  # a factor, as Composer's share of the batch

        doubles = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
        true_loss = F.cross_entropy(doubles[0] @ doubles[1].T, labels, reduction='sum', ignore_index=IGNORED_LABEL)
        true_grads = torch.autograd.grad(0.37 * true_loss, doubles)
        assert loss.dtype == torch.float64
        assert relative_error(loss, true_loss) < 1e-6
        for got, want in zip(grads, true_grads, strict=True):
            assert got.dtype == torch.float32
            assert relative_error(got, want) < 1e-6

    def test_bf16_is_no_worse_than_the_plain_way_in_bf16(self):
        hidden, weight, labels = loss_case(600, 64, 20_011, 0.1, torch.bfloat16)
        doubles = hidden.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
        true_loss = F.cross_entropy(doubles[0] @ doubles[1].T, labels, reduction='sum')
        true_grads = torch.autograd.grad(true_loss, doubles)
        loss = linear_cross_entropy(hidden, weight, labels)
        grads = torch.autograd.grad(loss, (hidden, weight))
        plain_loss = F.cross_entropy((hidden @ weight.bfloat16().T).float(), labels, reduction='sum')
        plain_grads = torch.autograd.grad(plain_loss, (hidden, weight))
        assert relative_error(loss, true_loss) <= 2 * relative_error(plain_loss, true_loss) + 1e-4
        for got, plain, want in zip(grads, plain_grads, true_grads, strict=True):
            assert relative_error(got, want) <= 1.2 * relative_error(plain, want)

    def test_ignored_rows_count_nothing_even_when_all_are(self):
        hidden, weight, _ = loss_case(40, 8, 50, 0.0)
        loss = linear_cross_entropy(hidden, weight, torch.full((40,), IGNORED_LABEL))
        loss.backward()
        assert loss == 0
        assert not hidden.grad.any()
        assert not weight.grad.any()

    def test_extreme_logits_stay_finite(self):
        hidden, weight, labels = loss_case(30, 8, 50, 0.0)
        loss = linear_cross_entropy(hidden * 1e4, weight, labels)
        grads = torch.autograd.grad(loss, (hidden, weight))
        assert loss.isfinite()
        assert all(grad.isfinite().all() for grad in grads)

    def test_two_runs_give_the_same_bits(self):
        hidden, weight, labels = loss_case(700, 24, 13_001, 0.1)
        runs = []
        for _ in range(2):
            loss = linear_cross_entropy(hidden, weight, labels)
            runs.append((loss, *torch.autograd.grad(loss, (hidden, weight))))
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))

    def test_backward_twice_gives_the_same_gradient_twice(self):
        hidden, weight, labels = loss_case(20, 8, 50, 0.1)
        loss = linear_cross_entropy(hidden, weight, labels) / 3
        first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
        second = torch.autograd.grad(loss, (hidden, weight))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_evaluation_gives_the_same_loss_and_keeps_no_gradient(self):
        hidden, weight, labels = loss_case(600, 8, 13_001, 0.1)
        with torch.no_grad(), LargestTensors() as largest:
            loss = linear_cross_entropy(hidden, weight, labels)
        assert torch.equal(loss, linear_cross_entropy(hidden, weight, labels).detach())
        assert not loss.requires_grad
        assert (13_001, 8) not in {shape for _, shape in largest.made}, 'a gradient of the weight was made'

    def test_full_logits_never_exist(self):
        # 4,096 rows at Pythia's vocabulary: full fp32 logits are 824 MB. Everything made here is seen, backward included.
        num_rows, vocab, width = 4096, 50_304, 16
        hidden, weight, labels = loss_case(num_rows, width, vocab, 0.0)
        with LargestTensors() as largest:
            (linear_cross_entropy(hidden, weight, labels) / num_rows).backward()
        assert largest.bytes == 256 * vocab * 4  # a chunk of logits: 1/16 of all, 51.5 MB
        assert hidden.grad is not None
        with LargestTensors() as plain:  # and this test would see them
            F.cross_entropy(F.linear(hidden[:512], weight), labels[:512])
        assert plain.bytes == 512 * vocab * 4

    @pytest.mark.parametrize(
        ('vocab', 'device', 'rows'),
        [(50_304, 'cpu', 256), (4096, 'cpu', 512), (1024, 'cpu', 2048), (50_304, 'cuda', 5312), (10**7, 'cuda', 256)],
    )
    def test_chunk_rows(self, vocab, device, rows):
        assert ops.logits_chunk_rows(vocab, torch.device(device)) == rows


class LargestTensors(TorchDispatchMode):
    """Records the bytes and shape of every tensor that an operation returns, in the backward pass too."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.made += [
            (x.numel() * x.element_size(), tuple(x.shape)) for x in tree_leaves(out) if isinstance(x, torch.Tensor)
        ]
        return out

    @property
    def bytes(self):
        return max(size for size, _ in self.made)


def test_rotary_turns_pairs_by_position_and_leaves_the_rest():
    # Written with complex numbers: dimension r and r + R are one plane, turned by position * base^(-r / R).
    num_tokens, num_heads, head_dim, half, base = 7, 3, 10, 2, 100.0
    qkv = rand(2, num_tokens, num_heads, 3 * head_dim)
    cos, sin = ops.rotary_tables(num_tokens, 2 * half, base, torch.device('cpu'))
    q, k, v = ops.rotary(qkv, cos, sin)
    angles = torch.arange(num_tokens).double()[:, None] * base ** (-torch.arange(half).double() / half)
    turn = torch.polar(torch.ones_like(angles), angles)[:, None, :]
    for got, raw in ((q, qkv[..., :head_dim]), (k, qkv[..., head_dim : 2 * head_dim])):
        plane = torch.complex(raw[..., :half].double(), raw[..., half : 2 * half].double()) * turn
        want = torch.cat((plane.real, plane.imag, raw[..., 2 * half :].double()), dim=-1).transpose(1, 2)
        torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=1e-6)
    assert torch.equal(v, qkv[..., 2 * head_dim :].transpose(1, 2))


def test_layer_norm_of_bf16_is_fp32_rounded_once():
    x = rand(5, 64, dtype=torch.bfloat16) + 100  # a large mean, which bf16 statistics would lose
    weight, bias = 1 + rand(64, seed=1), rand(64, seed=2)
    want = F.layer_norm(x.double(), (64,), weight.double(), bias.double(), 1e-5)
    got = ops.layer_norm(x, weight, bias, 1e-5)
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got, want.float().bfloat16(), rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize(('kernels', 'words'), [('torch', 'as asked for'), ('auto', 'only implementation')])
def test_choice_is_described(kernels, words):
    assert words in choose_ops(kernels, 'cpu').description


def test_triton_is_refused_with_what_to_write():
    with pytest.raises(UserError, match=r'no Triton kernels. Write `kernels: torch` or `kernels: auto`'):
        choose_ops('triton', 'cpu')


def test_unknown_kernels_are_refused():
    with pytest.raises(UserError, match='must be one of auto, triton, torch'):
        choose_ops('fast', 'cpu')
