"""Attention: the backends of a CPU against the definition, those of a GPU by the shapes they promise and the calls they make.

Shapes: one token; an odd number of them; heads of 64 as Pythia-410M has, of 80 and of 16; more than one block of a kernel.
"""

import functools
import importlib.metadata
import sys
import types

import pytest
import torch
from rewarm_kernels.attention import (
    BACKENDS,
    _attention,
    _attention_backward,
    _fa3,
    _fa4,
    attend,
    attention,
    attention_backward,
    attention_forward,
    attention_ref,
    document_bounds,
)
from torch._subclasses import FakeTensorMode
from torch.utils.checkpoint import checkpoint

from tests.kernels.yardstick import DTYPES, FLOOR, assert_bit_equal, check, error, outputs_and_grads

SHAPES = [(1, 1, 1, 8), (2, 37, 3, 16), (2, 130, 2, 64), (1, 48, 2, 80)]
ON_CPU = ['math', 'cpu']
ON_GPU = [name for name, backend in BACKENDS.items() if 'cuda' in backend.devices]


@pytest.fixture
def here(device):
    """The backends that are tried on this device."""
    return ON_CPU if device.type == 'cpu' else ['math']


def packed(num_sequences=2, num_tokens=37, num_heads=3, head_dim=16, dtype=torch.float32):
    return torch.randn(num_sequences, num_tokens, num_heads, 3, head_dim).to(dtype)


def boundaries(*at):
    return torch.tensor(at, dtype=torch.int32)


def test_definition_against_a_loop_over_positions(device):
    qkv = packed(2, 6, 2, 4, torch.float64)
    out = attention_ref(qkv, boundaries(0, 2, 9, 12)).unflatten(-1, (2, 4))
    first_of_document = [[0, 0, 2, 2, 2, 2], [0, 0, 0, 3, 3, 3]]  # the document from 2 to 9 is cut at 6
    for b in range(2):
        for t in range(6):
            seen = slice(first_of_document[b][t], t + 1)
            for h in range(2):
                q, k, v = qkv[b, t, h, 0], qkv[b, seen, h, 1], qkv[b, seen, h, 2]
                torch.testing.assert_close(out[b, t, h], torch.softmax(k @ q / 2, dim=0) @ v)  # sqrt(4) = 2


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('shape', SHAPES)
@pytest.mark.parametrize('backend', ON_CPU)
def test_backends_against_the_definition(backend, shape, dtype, here):
    if backend not in here:
        pytest.skip('not on this device')
    check(
        functools.partial(attention, backend=backend),
        attention_ref,
        {'qkv': packed(*shape)},
        dtype,
        activations=['qkv'],
    )


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('backend', ON_CPU)
def test_documents_against_the_definition(backend, dtype, here):
    if backend not in here:
        pytest.skip('not on this device')
    cu_seqlens = boundaries(0, 1, 12, 50, 74)
    check(
        functools.partial(attention, backend=backend, cu_seqlens=cu_seqlens),
        functools.partial(attention_ref, cu_seqlens=cu_seqlens),
        {'qkv': packed()},
        dtype,
        activations=['qkv'],
    )


def test_a_document_is_attended_as_if_it_were_alone(here):
    qkv = packed()
    for backend in here:
        out = attention(qkv, backend, boundaries(0, 5, 37, 57, 74)).flatten(0, 1)
        for start, end in [(0, 5), (5, 37), (37, 57), (57, 74)]:
            alone = attention(qkv.flatten(0, 1)[None, start:end], backend)[0]
            torch.testing.assert_close(out[start:end], alone, rtol=1e-5, atol=1e-6)


def test_sequences_end_documents_whether_named_or_not():
    assert document_bounds(boundaries(0, 5, 50, 74), 2, 37).tolist() == [0, 0, 5, 37, 50, 74, 74]
    qkv = packed()
    assert torch.equal(attention(qkv, 'math', boundaries(0, 74)), attention(qkv, 'math'))


def test_later_tokens_change_nothing_before_them(here):
    qkv = packed()
    changed = qkv.clone()
    changed[:, 20:] += 1
    for backend in here:
        assert torch.equal(attention(qkv, backend)[:, :20], attention(changed, backend)[:, :20])


@pytest.mark.parametrize('dtype', DTYPES)
def test_any_strides(dtype, here):
    far_apart = torch.randn(16, 2, 3, 37, 3).to(dtype).permute(1, 3, 2, 4, 0)
    by_part = torch.randn(2, 37, 3, 3, 16).to(dtype).transpose(2, 3)  # [3, heads, K], as others pack it
    for qkv in (far_apart, by_part):
        for backend in here:
            call = functools.partial(attention, backend=backend)
            ours, dense = (
                outputs_and_grads(call, {'qkv': x}, {'qkv': dtype}, differentiate=['qkv'])
                for x in (qkv, qkv.contiguous())
            )
            assert_bit_equal(ours, dense)


def test_separate_tensors_give_the_same(here):
    qkv = packed()
    q, k, v = (x.contiguous() for x in qkv.unbind(3))
    for backend in here:
        assert torch.equal(attend(q, k, v, backend).flatten(2), attention(qkv, backend))


@pytest.mark.parametrize('shape', [(0, 5, 2, 8), (3, 0, 2, 8)])
def test_empty_batch(shape, here):
    for backend in here:
        for cu_seqlens in (None, boundaries(0, 0)):
            qkv = packed(*shape).requires_grad_()
            out = attention(qkv, backend, cu_seqlens)
            out.sum().backward()
            assert out.shape == (*shape[:2], 16)
            assert qkv.grad is not None
            assert qkv.grad.shape == qkv.shape


def test_nan_and_infinity_stay_in_their_head(here):
    qkv = packed()
    qkv[0, 3, 1, 2, 0] = float('nan')
    qkv[1, 4, 0, 1, 0] = float('inf')
    for backend in here:
        leaf = qkv.clone().requires_grad_()
        out = attention(leaf, backend).unflatten(-1, (3, 16))
        out.sum().backward()
        for tensor in (out, leaf.grad):
            assert tensor is not None
            finite = tensor.isfinite().flatten(3).all(dim=-1).all(dim=1)  # (B, H)
            assert finite.tolist() == [[True, False, True], [False, True, True]]


def test_two_calls_give_the_same_bits(here):
    inputs, dtypes = {'qkv': packed()}, {'qkv': torch.bfloat16}
    for backend in here:
        call = functools.partial(attention, backend=backend)
        assert_bit_equal(*(outputs_and_grads(call, inputs, dtypes, differentiate=['qkv']) for _ in range(2)))


@pytest.mark.parametrize('cu_seqlens', [None, (0, 4, 10)])
def test_operators_are_registered_correctly(cu_seqlens, here):
    bounds = None if cu_seqlens is None else document_bounds(boundaries(*cu_seqlens), 2, 5)
    q, k, v = packed(2, 5, 2, 8).unbind(3)
    for backend in here:
        leaves = [x.detach().requires_grad_() for x in (q, k, v)]
        torch.library.opcheck(_attention, (*leaves, backend, bounds))
        out, lse = attention_forward(q, k, v, backend, bounds)
        torch.library.opcheck(_attention_backward, (torch.randn(2, 5, 2, 8), q, k, v, out, lse, backend, bounds))


class Twice(torch.nn.Module):
    """An operation before attention, so that what it differentiates is not a leaf."""

    def __init__(self, backend, cu_seqlens):
        super().__init__()
        self.attention = functools.partial(attention, backend=backend, cu_seqlens=cu_seqlens)

    def forward(self, qkv):
        return self.attention(qkv * 2)


def test_compiled_checkpointed_and_exported_alike(here):
    inputs, dtypes = {'qkv': packed()}, {'qkv': torch.float32}
    for backend in here:
        module = Twice(backend, boundaries(0, 5, 74))
        plain = outputs_and_grads(module, inputs, dtypes, differentiate=['qkv'])
        compiled = torch.compile(module, fullgraph=True, backend='aot_eager')
        assert_bit_equal(plain, outputs_and_grads(compiled, inputs, dtypes, differentiate=['qkv']))
        recomputed = functools.partial(checkpoint, module, use_reentrant=False)
        assert_bit_equal(plain, outputs_and_grads(recomputed, inputs, dtypes, differentiate=['qkv']))
        exported = torch.export.export(module, (inputs['qkv'],))
        assert torch.equal(exported.module()(inputs['qkv']), plain['out0'])


def test_no_gradient_is_made_that_nobody_wants(here):
    for backend in here:
        assert not attention(packed(), backend).requires_grad
        q, k, v = packed().unbind(3)
        leaf = v.detach().requires_grad_()
        attend(q, k, leaf, backend).sum().backward()
        assert leaf.grad is not None


def test_wrong_arguments_are_refused():
    qkv = packed()
    with pytest.raises(ValueError, match=r'qkv must be \(B, T, H, 3, K\).*got \(2, 37, 3, 48\)'):
        attention(qkv.flatten(3), 'math')
    with pytest.raises(ValueError, match=r'got \(2, 37, 3, 2, 16\)'):
        attention(qkv[:, :, :, :2], 'math')
    with pytest.raises(ValueError, match=r'got \(2, 37, 3, 2, 16\)'):
        attention_ref(qkv[:, :, :, :2])
    q, k, v = qkv.unbind(3)
    with pytest.raises(ValueError, match=r'one shape.*got \(2, 37, 3, 16\), \(2, 36, 3, 16\), \(2, 37, 3, 16\)'):
        attend(q, k[:, 1:], v, 'math')
    with pytest.raises(ValueError, match=r"no attention backend 'fa2': it must be one of cudnn, flash, fa3, fa4"):
        attention(qkv, 'fa2')
    for backend in ('cudnn', 'efficient'):
        with pytest.raises(ValueError, match='cannot keep documents apart: flash, fa3, fa4, cpu, math can'):
            attention(qkv, backend, boundaries(0, 74))
    with pytest.raises(ValueError, match=r'in int32.*got \(2,\) in torch.int64'):
        attention(qkv, 'math', boundaries(0, 74).long())
    with pytest.raises(ValueError, match=r'\(documents \+ 1,\).*got \(1, 2\) in torch.int32'):
        attention_ref(qkv, boundaries(0, 74)[None])


@pytest.mark.parametrize('documents', [False, True])
@pytest.mark.parametrize('backend', ['cudnn', 'flash', 'efficient'])
def test_torchs_kernels_give_on_a_gpu_the_layouts_that_are_promised(backend, documents):
    """By torch's own models of its kernels, which also check the calls; no GPU is asked."""
    if documents and not BACKENDS[backend].documents:
        pytest.skip('cannot keep documents apart')
    with FakeTensorMode():
        q, k, v = torch.empty(2, 40, 3, 3, 64, device='cuda', dtype=torch.bfloat16).unbind(3)
        bounds = None
        if documents:
            bounds = document_bounds(torch.empty(6, device='cuda', dtype=torch.int32), 2, 40)
        made = BACKENDS[backend].forward(q, k, v, bounds)
        promised = _attention(q, k, v, backend, bounds)
        dout = torch.empty_like(promised[0])
        grads = BACKENDS[backend].backward(dout, q, k, v, *promised, bounds)
        promised_grads = _attention_backward(dout, q, k, v, *promised, backend, bounds)
    assert (made[1].shape, made[1].dtype) == (promised[1].shape, promised[1].dtype)
    for got, want in zip((made[0], *grads), (promised[0], *promised_grads), strict=True):
        assert (got.shape, got.dtype) == (want.shape, want.dtype)
        if torch.__version__ >= '2.11':  # torch 2.7 says of cuDNN that a copy would be needed
            assert got.stride() == want.stride()


class Package:
    """Stands in for a FlashAttention: its signatures, with the definition behind them; remembers the settings."""

    def __init__(self):
        self.deterministic = []

    def forward(self, q, k, v, boundaries, longest):
        if boundaries is None:
            assert longest is None
            return attention_forward(q, k, v, 'math')
        assert longest == 37
        assert boundaries.dtype == torch.int32
        # one sequence of all tokens
        out, lse = attention_forward(q[None], k[None], v[None], 'math', boundaries)
        return out[0], lse[0]

    def backward(self, dout, q, k, v, out, lse, boundaries, deterministic):
        self.deterministic.append(deterministic)
        if boundaries is None:
            return attention_backward(dout, q, k, v, out, lse, 'math')
        one = [x[None] for x in (dout, q, k, v, out, lse)]
        return [x[0] for x in attention_backward(*one, 'math', boundaries)]


def fa3_of_2025(package):
    """The functions of flash_attn_interface as FlashAttention 3 began (hopper/flash_attn_interface.py, c082294)."""

    # fmt: off
    def _flash_attn_forward(
        q, k, v, k_new, v_new, qv, out, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, seqused_k, max_seqlen_q,
        max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale,
        v_descale, softmax_scale, causal, window_size=(-1, -1), attention_chunk=0, softcap=0.0, rotary_interleaved=True,
        scheduler_metadata=None, num_splits=1, pack_gqa=None, sm_margin=0,
    ):
        unused = (k_new, v_new, qv, out, cu_seqlens_k_new, seqused_q, seqused_k, page_table, kv_batch_idx, leftpad_k,
                  rotary_cos, rotary_sin, seqlens_rotary, q_descale, k_descale, v_descale)
        assert all(x is None for x in unused)
        assert causal
        assert softmax_scale == q.shape[-1] ** -0.5
        assert cu_seqlens_q is cu_seqlens_k
        assert max_seqlen_q == max_seqlen_k
        return (*package.forward(q, k, v, cu_seqlens_q, max_seqlen_q), None, None)

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q, cu_seqlens_k, sequed_q, sequed_k, max_seqlen_q, max_seqlen_k,
        dq, dk, dv, softmax_scale, causal, window_size=(-1, -1), softcap=0.0, deterministic=False, sm_margin=0,
    ):
        assert sequed_q is None
        assert sequed_k is None
        assert causal
        assert softmax_scale == q.shape[-1] ** -0.5
        assert cu_seqlens_q is cu_seqlens_k
        assert max_seqlen_q == max_seqlen_k
        grads = package.backward(dout, q, k, v, out, softmax_lse, cu_seqlens_q, deterministic)
        for written, grad in zip((dq, dk, dv), grads, strict=True):
            assert written.is_contiguous()
            written.copy_(grad)
        return dq, dk, dv, None
    # fmt: on
    return types.SimpleNamespace(_flash_attn_forward=_flash_attn_forward, _flash_attn_backward=_flash_attn_backward)


def fa3_of_2026(package):
    """As operators, with defaults and other names (01afd16)."""
    first = fa3_of_2025(package)

    # fmt: off
    def _flash_attn_forward(
        q, k, v, k_new=None, v_new=None, qv=None, out_=None, cu_seqlens_q=None, cu_seqlens_k=None, cu_seqlens_k_new=None,
        seqused_q=None, seqused_k=None, max_seqlen_q=None, max_seqlen_k=None, page_table=None, kv_batch_idx=None,
        leftpad_k=None, rotary_cos=None, rotary_sin=None, seqlens_rotary=None, q_descale=None, k_descale=None,
        v_descale=None, softmax_scale=None, causal=False, window_size_left=-1, window_size_right=-1, attention_chunk=0,
        softcap=0.0, rotary_interleaved=True, scheduler_metadata=None, num_splits=1, pack_gqa=None, sm_margin=0,
    ):
        return first._flash_attn_forward(
            q, k, v, k_new, v_new, qv, out_, cu_seqlens_q, cu_seqlens_k, cu_seqlens_k_new, seqused_q, seqused_k,
            max_seqlen_q, max_seqlen_k, page_table, kv_batch_idx, leftpad_k, rotary_cos, rotary_sin, seqlens_rotary,
            q_descale, k_descale, v_descale, softmax_scale, causal,
        )

    def _flash_attn_backward(
        dout, q, k, v, out, softmax_lse, cu_seqlens_q=None, cu_seqlens_k=None, sequed_q=None, sequed_k=None,
        max_seqlen_q=None, max_seqlen_k=None, dq=None, dk=None, dv=None, softmax_scale=None, is_causal=False,
        window_size_left=-1, window_size_right=-1, softcap=0.0, deterministic=False, sm_margin=0,
    ):
        first._flash_attn_backward(
            dout, q, k, v, out, softmax_lse, cu_seqlens_q, cu_seqlens_k, sequed_q, sequed_k, max_seqlen_q, max_seqlen_k,
            dq, dk, dv, softmax_scale, is_causal, deterministic=deterministic,
        )
        return torch.empty(0)  # softmax_d
    # fmt: on
    return types.SimpleNamespace(_flash_attn_forward=_flash_attn_forward, _flash_attn_backward=_flash_attn_backward)


def fa4_returning(count):
    def fa4(package):
        """The functions of flash_attn.cute.interface; releases differ in how much the forward returns."""

        # fmt: off
        def _flash_attn_fwd(
            q, k, v, qv=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None, max_seqlen_q=None,
            max_seqlen_k=None, min_seqlen_k=None, page_table=None, softmax_scale=None, causal=False, softcap=None,
            window_size_left=None, window_size_right=None, return_lse=False,
        ):
            assert causal
            assert return_lse
            assert cu_seqlens_q is cu_seqlens_k
            assert max_seqlen_q == max_seqlen_k
            return (*package.forward(q, k, v, cu_seqlens_q, max_seqlen_q), *[None] * (count - 2))

        def _flash_attn_bwd(
            q, k, v, out, dout, lse, softmax_scale=None, causal=False, softcap=0.0, window_size_left=None,
            window_size_right=None, cu_seqlens_q=None, cu_seqlens_k=None, seqused_q=None, seqused_k=None,
            max_seqlen_q=None, max_seqlen_k=None, deterministic=False, dq=None, dk=None, dv=None,
        ):
            assert causal
            assert cu_seqlens_q is cu_seqlens_k
            assert max_seqlen_q == max_seqlen_k
            return tuple(package.backward(dout, q, k, v, out, lse, cu_seqlens_q, deterministic))
        # fmt: on
        return types.SimpleNamespace(_flash_attn_fwd=_flash_attn_fwd, _flash_attn_bwd=_flash_attn_bwd)

    return fa4


@pytest.fixture
def loaded_anew():
    _fa3.cache_clear()
    _fa4.cache_clear()
    yield
    _fa3.cache_clear()
    _fa4.cache_clear()


def install(monkeypatch, name, module, version='4.0.0b36'):
    monkeypatch.setitem(sys.modules, {'fa3': 'flash_attn_interface', 'fa4': 'flash_attn.cute.interface'}[name], module)
    monkeypatch.setattr(importlib.metadata, 'version', lambda package: {'flash-attn-4': version}[package])


@pytest.mark.parametrize('cu_seqlens', [None, (0, 5, 50, 74)])
@pytest.mark.parametrize(
    ('name', 'release'),
    [('fa3', fa3_of_2025), ('fa3', fa3_of_2026), ('fa4', fa4_returning(2)), ('fa4', fa4_returning(5))],
)
def test_packages_get_what_their_releases_want(name, release, cu_seqlens, monkeypatch, loaded_anew):
    package = Package()
    install(monkeypatch, name, release(package))
    if cu_seqlens is not None:
        cu_seqlens = boundaries(*cu_seqlens)
    call = functools.partial(attention, backend=name, cu_seqlens=cu_seqlens)
    check(
        call,
        functools.partial(attention_ref, cu_seqlens=cu_seqlens),
        {'qkv': packed()},
        torch.bfloat16,
        activations=['qkv'],
    )
    torch.use_deterministic_algorithms(True)
    try:
        call(packed().requires_grad_()).sum().backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert package.deterministic == [False, True]


def test_packages_that_are_not_the_right_ones_do_not_load(monkeypatch, loaded_anew):
    monkeypatch.setitem(sys.modules, 'flash_attn_interface', None)
    with pytest.raises(ImportError):
        attention(packed(), 'fa3')
    install(monkeypatch, 'fa4', types.SimpleNamespace(), version='5.0.0')
    with pytest.raises(ImportError, match=r'flash-attn-4 5.0.0 is none of the releases .* 4.0.0b3 to 4.0.0b36'):
        attention(packed(), 'fa4')

    def missing(package):
        raise importlib.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(importlib.metadata, 'version', missing)
    with pytest.raises(ImportError, match='not of the package flash-attn-4'):
        attention(packed(), 'fa4')


@pytest.mark.gpu
@pytest.mark.parametrize('backend', [name for name in ON_GPU if name != 'math'])
@pytest.mark.parametrize('documents', [False, True])
def test_at_full_size_on_a_gpu(backend, documents, device):
    """65,536 tokens in bf16: one head of two sequences against fp64, by what plain PyTorch makes of it in bf16."""
    each = BACKENDS[backend]
    if documents and not each.documents:
        pytest.skip('cannot keep documents apart')
    if each.load is not None:
        try:
            each.load()
        except ImportError as absent:
            pytest.skip(str(absent))
    leaf = torch.randn(32, 2048, 16, 3, 64, dtype=torch.bfloat16, requires_grad=True)
    dout = torch.randn(32, 2048, 16, 64, dtype=torch.bfloat16)
    cu_seqlens = boundaries(0, 700, 2049, 60000, 65536) if documents else None
    out = attention(leaf, backend, cu_seqlens).unflatten(-1, (16, 64))
    out.backward(dout)
    assert leaf.grad is not None
    pieces = [(0, 0, slice(0, 2048)), (31, 15, slice(0, 2048))]
    if documents:
        pieces[:1] = [(0, 0, slice(0, 700)), (0, 0, slice(700, 2048))]
    for sequence, head, tokens in pieces:
        at = (sequence, tokens, head)
        same, truth = (plainly(leaf[at].to(dtype), dout[at].to(dtype)) for dtype in (torch.bfloat16, torch.float64))
        for got, plain, true in zip((out[at], leaf.grad[at]), same, truth, strict=True):
            assert error(got, true) <= 2 * error(plain, true) + FLOOR[torch.bfloat16]


def plainly(qkv_T3K, dout_TK):
    """One head's attention, all of it in the dtype it comes in, and its gradient."""
    leaf = qkv_T3K.detach().requires_grad_()
    q, k, v = leaf.unbind(1)
    is_future = torch.ones(len(q), len(q), dtype=torch.bool).triu(1)
    out = (q @ k.T / 8).masked_fill(is_future, float('-inf')).softmax(dim=-1) @ v
    return out.detach(), torch.autograd.grad(out, leaf, dout_TK)[0]
