"""Cross-entropy of a linear projection to the vocabulary, which never holds more than a chunk of logits.

    logits = hidden weight'        lse = log(sum(exp(logits)))
    loss = sum over counted rows of  lse - logits[label] + z_loss lse^2
    d loss / d logits = (1 + 2 z_loss lse) softmax(logits) - onehot(label)

Both gradients are made in the forward, while a chunk's logits exist: three matrix products, where making the logits
again in the backward would be a fourth. The backward multiplies them by the gradient of the loss.

- The kernel reads a row of logits twice and overwrites it by its gradient: 6 V bytes a row in bf16, of which the second
  read mostly hits the L2 cache. A row is one program.
- Logits have the dtype of ``hidden``. All after them is fp32: online log-sum-exp, loss of a row, softmax; the gradient
  of the weight is accumulated over chunks in fp32. Losses are summed in fp64, in a fixed order.
- A row whose label is ``ignore_index`` counts nothing and has no gradient, whatever is in it, NaN included. Any other
  label outside the vocabulary makes the loss and the gradients of its row NaN: seen without waiting for the device.
- Memory beyond inputs, at 65,536 rows, V = 50,304, D = 1,024 in bf16: a chunk of 4,096 rows of logits 412 MB, the weight
  in bf16 103 MB, its fp32 gradient 206 MB, the gradient of ``hidden`` 134 MB, the chunk's ``hidden`` 8 MB: 0.86 GB. The
  backward holds both gradients twice, 0.68 GB. All logits in fp32 and their gradient would be 26 GB.

Shapes: N = rows, D = width, V = vocabulary.

Source: the in-forward gradient is Liger Kernel's (Hsu et al. 2024, https://arxiv.org/abs/2410.10989); the online
normalizer is Milakov and Gimelshein 2018, https://arxiv.org/abs/1805.02867; the z-loss is PaLM's (Chowdhery et al. 2022,
https://arxiv.org/abs/2204.02311, section 5).
"""

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from rewarm_kernels.launch import Launch, cover, launch, runs_kernels
from rewarm_kernels.matmul import add_mm_fp32_, cast_once, mm_fp32

__all__ = ['cross_entropy_', 'linear_cross_entropy', 'linear_cross_entropy_ref', 'logits_chunk_rows']

CPU_LOGITS_BYTES = 8 * 2**20
"""Logits held at once on a CPU, if that is MIN_CHUNK_ROWS of them: they stay in its cache between two passes."""

GPU_LOGITS_BYTES = 400 * 2**20
"""Logits held at once on a GPU: 4,096 rows in bf16 at V = 50,304. The product that makes their gradient of ``hidden``
is then 128 tiles of 128 x 256 at D = 1,024, one wave on 132 multiprocessors; twice the rows would be two such waves."""

MIN_CHUNK_ROWS = 256
"""Each chunk reads and writes the weight's fp32 gradient once; with fewer rows that outweighs the cache
(2 cores, V = 50,304, D = 1,024, 1,024 rows: 64 rows 4.5 s, 128 rows 3.9 s, 320 rows 3.7 s; unchunked 4.0 s)."""

LAUNCH = launch(Launch(num_warps=16, block=8192), interpreted=Launch(block=16384))
"""Not measured yet. With 16 warps of 40 registers a multiprocessor holds 3 rows at a time: 3 x 132 rows of 100 KB are
40 MB, and half of that, what lies between the two passes, has to stay in the L2 cache (50 MB on Hopper)."""


def logits_chunk_rows(vocab_size: int, device: torch.device, element_size: int = 4) -> int:
    """Rows whose logits are held at once, from the constants above.

    Args:
        vocab_size (int): V.
        device (torch.device): Where the logits will be.
        element_size (int): Bytes of a logit.

    Returns:
        int: A multiple of ``MIN_CHUNK_ROWS``.
    """
    budget = CPU_LOGITS_BYTES if device.type == 'cpu' else GPU_LOGITS_BYTES
    return max(1, budget // (element_size * vocab_size) // MIN_CHUNK_ROWS) * MIN_CHUNK_ROWS


def linear_cross_entropy_ref(
    hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float = 0.0, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """The definition in plain PyTorch, by chunks and with the gradients made in the forward: see the top of this file.

    Arguments and results are those of :func:`linear_cross_entropy`; fp64 is computed in fp64.
    """
    hidden, labels = _checked(hidden, weight, labels)
    loss_sum = _ChunkedInTorch.apply(hidden, weight, labels, z_loss, ignore_index, *_wants_grads(hidden, weight))
    return cast(Tensor, loss_sum), (labels != ignore_index).sum()


class _ChunkedInTorch(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        labels: Tensor,
        z_loss: float,
        ignore_index: int,
        wants_hidden: bool,
        wants_weight: bool,
    ) -> Tensor:
        weight_cast = weight.to(hidden.dtype)
        wide = torch.promote_types(hidden.dtype, torch.float32)
        grad_hidden = torch.empty_like(hidden) if wants_hidden else None
        grad_weight = torch.zeros_like(weight) if wants_weight else None
        losses = torch.empty(len(hidden), dtype=wide, device=hidden.device)
        chunk_rows = logits_chunk_rows(len(weight), hidden.device)
        for start in range(0, len(hidden), chunk_rows):
            rows = slice(start, start + chunk_rows)
            label = labels[rows, None]
            counts, known = label != ignore_index, (label >= 0) & (label < len(weight))
            target, unknown = label.where(known, 0), counts & ~known
            hidden_rows = hidden[rows].where(counts, 0.0)
            logits = (hidden_rows @ weight_cast.T).to(wide)
            lse = logits.logsumexp(dim=-1, keepdim=True) if z_loss else 0.0
            log_probs = logits.log_softmax(dim=-1)
            log_prob = log_probs.gather(1, target).where(~unknown, torch.nan)
            losses[rows] = (z_loss * lse**2 - log_prob).where(counts, 0.0).squeeze(1)
            if grad_hidden is None and grad_weight is None:
                continue
            slope = 1.0 + 2.0 * z_loss * lse
            probs = log_probs.exp_().mul_(slope) if z_loss else log_probs.exp_()
            grad_logits = probs.scatter_(1, target, log_prob.exp() * slope - 1.0).to(hidden.dtype)
            # What does not count is dropped in (N, D), not in (N, V).
            if grad_hidden is not None:
                grad_hidden[rows] = (grad_logits @ weight_cast).where(counts, 0.0)
            if grad_weight is not None:
                _add_product_(grad_weight, grad_logits.T, hidden_rows)
        ctx.save_for_backward(grad_hidden, grad_weight)
        return losses.sum(dtype=torch.float64)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        grads = [None if grad is None else _scaled(grad, grad_outputs[0]) for grad in ctx.saved_tensors]
        return *grads, None, None, None, None, None


def _wants_grads(hidden: Tensor, weight: Tensor) -> tuple[bool, bool]:
    enabled = torch.is_grad_enabled()
    return enabled and hidden.requires_grad, enabled and weight.requires_grad


def _add_product_(total: Tensor, a: Tensor, b: Tensor) -> None:
    if a.is_cuda or a.dtype == total.dtype:
        add_mm_fp32_(total, a, b)
    else:
        total += a @ b  # a bf16 product for each chunk: of fp32 copies it would take a CPU a sixth longer in all


def _scaled(grad: Tensor, scale: Tensor) -> Tensor:
    """A gradient times a scalar: as a matrix the scalar keeps its fp32, where CUDA would round a scalar to bf16 first."""
    scale = scale.to(torch.promote_types(grad.dtype, torch.float32)).reshape(1, 1)
    return torch.mul(grad, scale, out=torch.empty_like(grad))


@triton.jit
def _cross_entropy_kernel(
    logits_ptr,  # (N, V), overwritten by the gradient of the row's loss
    labels_ptr,  # (N,)
    losses_ptr,  # (N,) out, fp32
    z_loss,
    ignore_index,
    V: tl.constexpr,
    BLOCK_V: tl.constexpr,
    NUM_BLOCKS: tl.constexpr,
    HAS_GRAD: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    row_ptr = logits_ptr + row * V
    columns = tl.arange(0, BLOCK_V)

    # An unknown label reads nothing: it makes the row's loss NaN, and all that is made of it.
    label = tl.load(labels_ptr + row)
    counts = label != ignore_index
    known = (label >= 0) & (label < V)
    at_label = tl.load(row_ptr + label, mask=known, other=float('nan')).to(tl.float32)

    # total = sum(exp(x - highest)), rescaled whenever a block raises the highest
    highest = float('-inf')
    total = 0.0
    for block in range(NUM_BLOCKS):
        at = block * BLOCK_V + columns
        x = tl.load(row_ptr + at, mask=at < V, other=float('-inf')).to(tl.float32)
        higher = tl.maximum(highest, tl.max(x, axis=0))
        finite = tl.where(higher == float('-inf'), 0.0, higher)  # as long as all are -inf, x - higher would be NaN
        total = total * tl.exp(highest - finite) + tl.sum(tl.exp(x - finite), axis=0)
        highest = higher

    # loss = lse - logits[label] + z_loss lse^2; the difference first: at logits of 1e4, lse alone is good to 1e-3
    log_total = tl.log(total)
    lse = highest + log_total
    loss = (highest - at_label) + log_total + z_loss * lse * lse
    tl.store(losses_ptr + row, tl.where(counts, loss, 0.0))

    if HAS_GRAD:
        # d loss / d x = (1 + 2 z_loss lse) exp(x - highest) / total - (x is the label's)
        factor = tl.where(known, (1.0 + 2.0 * z_loss * lse) / total, float('nan'))
        tl.debug_barrier()  # all threads have read the label's logit before one of them overwrites it
        for step in range(NUM_BLOCKS):
            at = (NUM_BLOCKS - 1 - step) * BLOCK_V + columns  # backward: what was read last is nearest
            x = tl.load(row_ptr + at, mask=at < V, other=float('-inf')).to(tl.float32)
            grad = tl.exp(x - highest) * factor - tl.where(at == label, 1.0, 0.0)
            tl.store(row_ptr + at, tl.where(counts, grad, 0.0).to(logits_ptr.dtype.element_ty), mask=at < V)


def cross_entropy_(
    logits: Tensor, labels: Tensor, z_loss: float = 0.0, ignore_index: int = -100, *, make_grad: bool = True
) -> Tensor:
    """Loss of each row of logits, which are overwritten by its gradient; for the owner of the logits.

    Args:
        logits (Tensor): ``(N, V)``, contiguous; afterwards the gradient of each row's loss, in the same dtype.
        labels (Tensor): ``(N,)``, int64, contiguous.
        z_loss (float): Weight of the squared log-sum-exp.
        ignore_index (int): Label of a row that does not count.
        make_grad (bool): Whether to overwrite; otherwise logits are only read.

    Returns:
        Tensor: ``(N,)``, fp32, in nats; 0 for a row that does not count.
    """
    num_rows, vocab_size = logits.shape
    losses = logits.new_empty(num_rows, dtype=torch.float32)
    if not num_rows:
        return losses
    block = cover(vocab_size, LAUNCH.block)
    kernel: Any = _cross_entropy_kernel
    kernel[(num_rows,)](
        logits,
        labels,
        losses,
        z_loss=z_loss,
        ignore_index=ignore_index,
        V=vocab_size,
        BLOCK_V=block,
        NUM_BLOCKS=triton.cdiv(vocab_size, block),
        HAS_GRAD=make_grad,
        num_warps=LAUNCH.num_warps,
    )
    return losses


@torch.library.custom_op('rewarm::linear_cross_entropy', mutates_args=())
def _linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    weight_cast: Tensor,
    labels: Tensor,
    z_loss: float,
    ignore_index: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    num_rows, vocab_size = len(hidden), len(weight)
    chunk_rows = min(logits_chunk_rows(vocab_size, hidden.device, hidden.element_size()), num_rows)
    labels = labels.contiguous()
    counts = (labels != ignore_index)[:, None]
    losses = hidden.new_empty(num_rows, dtype=torch.float32)
    grad_hidden = (
        torch.empty_like(hidden, memory_format=torch.contiguous_format) if wants_hidden else hidden.new_empty(0)
    )
    grad_weight = weight.new_zeros(weight.shape if wants_weight and not num_rows else 0)
    chunk = hidden.new_empty(chunk_rows, vocab_size)  # one for all chunks: a second would live while the first is used
    for start in range(0, num_rows, max(chunk_rows, 1)):
        rows = slice(start, min(start + chunk_rows, num_rows))
        hidden_rows = hidden[rows].where(counts[rows], 0.0)
        logits = torch.mm(hidden_rows, weight_cast.T, out=chunk[: len(hidden_rows)])
        make_grad = wants_hidden or wants_weight
        losses[rows] = cross_entropy_(logits, labels[rows], z_loss, ignore_index, make_grad=make_grad)
        if wants_hidden:
            torch.mm(logits, weight_cast, out=grad_hidden[rows])
        if wants_weight and start:
            add_mm_fp32_(grad_weight, logits.T, hidden_rows)
        elif wants_weight:
            grad_weight = mm_fp32(logits.T, hidden_rows)
    return losses.sum(dtype=torch.float64), grad_hidden, grad_weight


@_linear_cross_entropy.register_fake
def _(
    hidden: Tensor,
    weight: Tensor,
    weight_cast: Tensor,
    labels: Tensor,
    z_loss: float,
    ignore_index: int,
    wants_hidden: bool,
    wants_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        hidden.new_empty((), dtype=torch.float64),
        hidden.new_empty(hidden.shape if wants_hidden else (0,)),
        weight.new_empty(weight.shape if wants_weight else (0,)),
    )


@torch.library.custom_op('rewarm::linear_cross_entropy_backward', mutates_args=())
def _linear_cross_entropy_backward(grad: Tensor, scale: Tensor) -> Tensor:
    return _scaled(grad, scale)


@_linear_cross_entropy_backward.register_fake
def _(grad: Tensor, scale: Tensor) -> Tensor:
    return torch.empty_like(grad)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.set_materialize_grads(False)  # of the two gradients among the outputs
    ctx.wants = inputs[-2:]
    ctx.save_for_backward(*output[1:])


def _backward(ctx: Any, scale: Tensor | None, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    grads = [
        _linear_cross_entropy_backward(grad, scale) if wanted and scale is not None else None
        for grad, wanted in zip(ctx.saved_tensors, ctx.wants, strict=True)
    ]
    return *grads, None, None, None, None, None, None


_linear_cross_entropy.register_autograd(_backward, setup_context=_save)


def _checked(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``hidden`` as (N, D) and ``labels`` as (N,), if they fit the weight and each other."""
    if weight.ndim != 2 or hidden.shape[-1:] != weight.shape[1:]:
        raise ValueError(
            f'hidden {tuple(hidden.shape)} and weight {tuple(weight.shape)} must be (..., D) and (V, D) with the same D'
        )
    if labels.shape != hidden.shape[:-1]:
        raise ValueError(
            f'hidden {tuple(hidden.shape)} and labels {tuple(labels.shape)} must be (..., D) and (...) with the same rows'
        )
    return hidden.reshape(-1, hidden.shape[-1]), labels.reshape(-1)


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, labels: Tensor, z_loss: float = 0.0, ignore_index: int = -100
) -> tuple[Tensor, Tensor]:
    """Summed cross-entropy of ``softmax(hidden @ weight.T)``; differentiable in ``hidden`` and ``weight``.

    Gradients are made in the forward, those that are wanted when it is called. Second derivatives are refused.

    Args:
        hidden (Tensor): ``(..., D)``, bf16 or fp32.
        weight (Tensor): ``(V, D)``, fp32; multiplied in the dtype of ``hidden``.
        labels (Tensor): ``(...)``, int64, from 0 to V - 1 or ``ignore_index``; any other gives NaN.
        z_loss (float): Weight of the squared log-sum-exp, which keeps logits near normalized; 0 for none.
        ignore_index (int): Label of a row that counts neither in the loss nor in the number of targets.

    Returns:
        tuple[Tensor, Tensor]: Sum over the rows that count, in nats, fp64, and their number, int64: scalars on the
        device. Divide one by the other for a mean.

    Raises:
        ValueError: If the shapes do not fit.
    """
    if not runs_kernels(hidden, weight, labels):
        return linear_cross_entropy_ref(hidden, weight, labels, z_loss, ignore_index)
    hidden, labels = _checked(hidden, weight, labels)
    wants_hidden, wants_weight = _wants_grads(hidden, weight)
    loss_sum, _, _ = _linear_cross_entropy(
        hidden, weight, cast_once(weight, hidden), labels, z_loss, ignore_index, wants_hidden, wants_weight
    )
    return loss_sum, (labels != ignore_index).sum()
