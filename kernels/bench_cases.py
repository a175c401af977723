"""What is measured of each op: its inputs at a model's sizes, the ways to compute it, and the work it has to do.

The ways: ``ours``, the kernel; ``torch``, its definition run eagerly; ``compile``, what the runner is to compile with
``torch.compile``; ``liger``, where Liger Kernel has the op; and what else PyTorch offers. Work is bytes moved, by the
formula at the top of the op's file, or floating-point operations where matrix products are most of it. All ways of an op
are held to the same work, so a way that moves more bytes shows fewer of them a second.

Shapes: N = rows, D = width, F = MLP width, V = vocabulary, B = sequences, T = tokens, H = heads, K = head dimension.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ['CASES', 'FULL', 'TINY', 'Case', 'Sizes']

BF16 = 2
FP32 = 4


@dataclass(frozen=True)
class Sizes:
    """Sizes of a model and of a batch.

    Args:
        batch (int): B.
        tokens (int): T.
        width (int): D.
        layers (int): Transformer blocks.
        heads (int): H.
        mlp_width (int): F.
        vocabulary (int): V.
        rotary (int): Rotated dimensions of a head.
    """

    batch: int
    tokens: int
    width: int
    layers: int
    heads: int
    mlp_width: int
    vocabulary: int
    rotary: int

    @property
    def rows(self) -> int:
        """N."""
        return self.batch * self.tokens

    @property
    def head_dim(self) -> int:
        """K."""
        return self.width // self.heads

    @property
    def parameters(self) -> list[tuple[int, ...]]:
        """The shape of each of the model's parameters, a GPT-NeoX."""
        d, f = self.width, self.mlp_width
        block = [(3 * d, d), (3 * d,), (d, d), (d,), (f, d), (f,), (d, f), (d,), *[(d,)] * 4]
        return [(self.vocabulary, d), *block * self.layers, (d,), (d,), (self.vocabulary, d)]


FULL = Sizes(batch=32, tokens=2048, width=1024, layers=24, heads=16, mlp_width=4096, vocabulary=50304, rotary=16)
"""Pythia-410M, 65,536 tokens."""
TINY = Sizes(batch=2, tokens=16, width=64, layers=2, heads=2, mlp_width=128, vocabulary=512, rotary=8)
"""For a dry run: the interpreter takes 10 to 18 ms for each program."""


@dataclass(frozen=True)
class Case:
    """One op, ready to be called.

    Args:
        inputs (dict): Arguments by name; the backward is measured if one of them requires a gradient.
        ways (dict): Functions of these arguments by name.
        moved (dict): Bytes that the ``forward`` and the ``backward`` have to move.
        flops (dict): Floating-point operations of the ``forward`` and of ``both`` passes.
    """

    inputs: dict[str, Any]
    ways: dict[str, Callable[..., Any]]
    moved: dict[str, int] = field(default_factory=dict)
    flops: dict[str, float] = field(default_factory=dict)


def activations(*shape: int, device: torch.device, grad: bool = True) -> Tensor:
    """Normal numbers in bf16."""
    return torch.randn(shape, device=device, dtype=torch.bfloat16).requires_grad_(grad)


def parameter(*shape: int, device: torch.device, scale: float = 0.2, mean: float = 0.0) -> Tensor:
    """Normal numbers in fp32, with a gradient."""
    return (torch.randn(shape, device=device) * scale + mean).requires_grad_()


def add_dual_layer_norm(sizes: Sizes, device: torch.device) -> Case:
    """Residual sum and two LayerNorms: 6 N D activations forward, 5 N D backward."""
    from rewarm_kernels.add_dual_layer_norm import add_dual_layer_norm, add_dual_layer_norm_ref

    n, d = sizes.rows, sizes.width
    inputs = {name: activations(n, d, device=device) for name in ('x', 'attn', 'mlp')}
    inputs |= {name: parameter(d, device=device) for name in ('attn_bias', 'mlp_bias')}
    for index in ('1', '2'):
        inputs |= {
            f'weight_{index}': parameter(d, device=device, mean=1.0),
            f'bias_{index}': parameter(d, device=device),
        }

    def liger(x: Tensor, attn: Tensor, mlp: Tensor, attn_bias: Tensor, mlp_bias: Tensor, **norms: Tensor) -> Any:
        from liger_kernel.transformers.functional import liger_layer_norm  # pyright: ignore[reportMissingImports]

        total = x + (attn + attn_bias.to(x.dtype)) + (mlp + mlp_bias.to(x.dtype))
        return total, *(liger_layer_norm(total, norms[f'weight_{i}'], norms[f'bias_{i}'], 1e-5) for i in (1, 2))

    return Case(
        inputs,
        {
            'ours': add_dual_layer_norm,
            'torch': add_dual_layer_norm_ref,
            'compile': add_dual_layer_norm_ref,
            'liger': liger,
        },
        moved={'forward': 6 * n * d * BF16, 'backward': 5 * n * d * BF16},
    )


def rotary(sizes: Sizes, device: torch.device) -> Case:
    """Rotation of a packed buffer in place: 2 R of K dimensions of queries and keys, read and written."""
    from rewarm_kernels.rotary import rotary_ref, rotate_

    shape = (sizes.batch, sizes.tokens, sizes.heads, 3, sizes.head_dim)
    inputs = {'qkv': activations(*shape, device=device, grad=False), **_rotary_tables(sizes, device)}
    moved = 2 * sizes.rows * sizes.heads * 2 * sizes.rotary * BF16
    return Case(inputs, {'ours': rotate_, 'torch': rotary_ref, 'compile': rotary_ref}, moved={'forward': moved})


def pack_qkv_grad(sizes: Sizes, device: torch.device) -> Case:
    """The gradients of q, k and v into one buffer, rotated back, with the bias gradient: 3 N D read, 3 N D written."""
    from rewarm_kernels.rotary import pack_qkv_grad, rotary_ref

    shape = (sizes.batch, sizes.heads, sizes.tokens, sizes.head_dim)
    inputs = {name: activations(*shape, device=device, grad=False) for name in ('dq', 'dk', 'dv')}

    def plain(dq: Tensor, dk: Tensor, dv: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        packed = rotary_ref(torch.stack([grad.transpose(1, 2) for grad in (dq, dk, dv)], dim=3), cos, -sin)
        return packed, packed.sum((0, 1), dtype=torch.float32).flatten()

    return Case(
        {**inputs, **_rotary_tables(sizes, device)},
        {'ours': pack_qkv_grad, 'torch': plain, 'compile': plain},
        moved={'forward': 6 * sizes.rows * sizes.width * BF16},
    )


def bias_gelu(sizes: Sizes, device: torch.device, *, approximate: str) -> Case:
    """Bias and GELU: 2 N F forward, 3 N F backward."""
    from rewarm_kernels.bias_gelu import bias_gelu, bias_gelu_ref

    n, f = sizes.rows, sizes.mlp_width
    definition = partial(bias_gelu_ref, approximate=approximate)
    return Case(
        {'h': activations(n, f, device=device), 'bias': parameter(f, device=device)},
        {'ours': partial(bias_gelu, approximate=approximate), 'torch': definition, 'compile': definition},
        moved={'forward': 2 * n * f * BF16, 'backward': 3 * n * f * BF16},
    )


def mlp(sizes: Sizes, device: torch.device) -> Case:
    """Two products with GELU between; three times the forward's operations in both passes, as kept or made again."""
    from rewarm_kernels.mlp import mlp, mlp_ref

    n, d, f = sizes.rows, sizes.width, sizes.mlp_width
    inputs = {
        'y': activations(n, d, device=device),
        'weight_in': parameter(f, d, device=device, scale=0.02),
        'bias_in': parameter(f, device=device),
        'weight_out': parameter(d, f, device=device, scale=0.02),
    }
    ways = {'ours': mlp, 'ours, g kept': partial(mlp, recompute=False), 'torch': mlp_ref, 'compile': mlp_ref}
    return Case(inputs, ways, flops={'forward': 4 * n * d * f, 'both': 12 * n * d * f})


def linear(sizes: Sizes, device: torch.device) -> Case:
    """A product without a bias, as the projection after attention is."""
    from rewarm_kernels.linear import linear, linear_ref

    n, d = sizes.rows, sizes.width
    inputs = {'x': activations(n, d, device=device), 'weight': parameter(d, d, device=device, scale=0.02)}
    return Case(inputs, {'ours': linear, 'torch': linear_ref}, flops={'forward': 2 * n * d * d, 'both': 6 * n * d * d})


def qkv_attention(sizes: Sizes, device: torch.device) -> Case:
    """Projection, rotation and causal attention; half of the square is counted, and 2.5 times that backward."""
    from rewarm_kernels.qkv_attention import qkv_attention

    n, d = sizes.rows, sizes.width
    inputs = {
        'y': activations(sizes.batch, sizes.tokens, d, device=device),
        'weight': parameter(3 * d, d, device=device, scale=0.02),
        'bias': parameter(3 * d, device=device),
        **_rotary_tables(sizes, device),
    }

    def plain(y: Tensor, weight: Tensor, bias: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        from rewarm_kernels.rotary import rotary_ref

        packed = F.linear(y, weight.to(y.dtype), bias.to(y.dtype)).unflatten(-1, (sizes.heads, 3, sizes.head_dim))
        q, k, v = (x.transpose(1, 2) for x in rotary_ref(packed, cos, sin).unbind(3))
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)

    backends = ['cudnn', 'flash'] if device.type == 'cuda' else ['cpu']
    ours = {
        'ours' if backend == backends[0] else f'ours, {backend}': partial(
            qkv_attention, num_heads=sizes.heads, backend=backend
        )
        for backend in backends
    }
    scores = 2 * n * sizes.tokens * d  # of both products of one forward
    return Case(
        inputs,
        {**ours, 'torch': plain, 'compile': plain},
        flops={'forward': 6 * n * d * d + scores, 'both': 18 * n * d * d + 3.5 * scores},
    )


def linear_cross_entropy(sizes: Sizes, device: torch.device) -> Case:
    """The vocabulary projection with its loss: three products, all of them in the forward where gradients are made there."""
    from rewarm_kernels.linear_cross_entropy import linear_cross_entropy, linear_cross_entropy_ref

    n, d, v = sizes.rows, sizes.width, sizes.vocabulary
    inputs = {
        'hidden': activations(n, d, device=device),
        'weight': parameter(v, d, device=device, scale=0.02),
        'labels': torch.randint(v, (n,), device=device),
    }

    def whole(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        return F.cross_entropy((hidden @ weight.to(hidden.dtype).T).float(), labels, reduction='sum')

    def chunked(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
        if not hasattr(F, 'linear_cross_entropy'):
            raise ImportError('torch.nn.functional.linear_cross_entropy')
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(hidden, weight.to(hidden.dtype), labels, reduction='sum', options=options)

    def liger(hidden: Tensor, weight: Tensor, labels: Tensor) -> Any:
        from liger_kernel.transformers import functional  # pyright: ignore[reportMissingImports]

        fused = functional.liger_fused_linear_cross_entropy
        return fused(hidden, weight.to(hidden.dtype), labels, reduction='sum', accum_dtype=torch.float32)

    return Case(
        inputs,
        {
            'ours': linear_cross_entropy,
            'torch': linear_cross_entropy_ref,
            'torch, all logits': whole,
            'torch, F.linear_cross_entropy': chunked,
            'compile': whole,
            'liger': liger,
        },
        flops={'both': 6 * n * d * v},
    )


def adamw(sizes: Sizes, device: torch.device) -> Case:
    """Norm of all gradients, clipping and AdamW: 4 bytes a parameter for the norm, 28 for the step.

    PyTorch's own keeps the clip coefficient on the device too, as the scale that its fused step divides gradients by. It
    gets one tensor for each parameter, as a model has them, and also one flat one, as ours does.
    """
    from rewarm_kernels.adamw import adamw_, squared_norm

    count = -(-sum(torch.Size(shape).numel() for shape in sizes.parameters) // 16) * 16
    flat = {name: torch.rand(count, device=device) * 0.01 for name in ('param', 'grad', 'exp_avg', 'exp_avg_sq')}
    betas, eps, decay, lr = (0.9, 0.95), 1e-8, 0.1, 3e-4
    private: Any = torch
    names = ('param', 'grad', 'exp_avg', 'exp_avg_sq')

    def ours(param: Tensor, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor) -> Tensor:
        settings = {'lr': lr, 'betas': betas, 'eps': eps, 'weight_decay': decay, 'step': 10}
        adamw_(param, grad, exp_avg, exp_avg_sq, **settings, grad_squared_norm=squared_norm(grad), max_norm=1.0)
        return param

    def fused(shapes: list[tuple[int, ...]]) -> Callable[..., Tensor]:
        ends = torch.tensor([torch.Size(shape).numel() for shape in shapes]).cumsum(0).tolist()
        views = [
            [flat[name][end - torch.Size(shape).numel() : end].view(shape) for end, shape in zip(ends, shapes)]
            for name in names
        ]
        steps = [torch.tensor(10.0, device=device) for _ in shapes]
        found_inf = torch.zeros((), device=device)

        def step(**_: Tensor) -> Tensor:
            norm = torch.linalg.vector_norm(torch.stack(private._foreach_norm(views[1])))
            private._fused_adamw_(
                *views,
                [],
                steps,
                lr=lr,
                beta1=betas[0],
                beta2=betas[1],
                weight_decay=decay,
                eps=eps,
                amsgrad=False,
                maximize=False,
                grad_scale=norm.clamp(min=1.0),
                found_inf=found_inf,
            )
            return flat['param']

        return step

    return Case(
        {**flat},
        {'ours': ours, 'torch': fused(sizes.parameters), 'torch, one flat tensor': fused([(count,)])},
        moved={'forward': 32 * count},
    )


def _rotary_tables(sizes: Sizes, device: torch.device) -> dict[str, Tensor]:
    exponents = torch.arange(0, sizes.rotary, 2, device=device) / sizes.rotary
    angles = torch.arange(sizes.tokens, device=device)[:, None] / 10000.0**exponents
    return {'cos': angles.cos(), 'sin': angles.sin()}


CASES: dict[str, Callable[[Sizes, torch.device], Case]] = {
    'add_dual_layer_norm': add_dual_layer_norm,
    'rotary': rotary,
    'pack_qkv_grad': pack_qkv_grad,
    'bias_gelu tanh': partial(bias_gelu, approximate='tanh'),
    'bias_gelu erf': partial(bias_gelu, approximate='none'),
    'linear_cross_entropy': linear_cross_entropy,
    'adamw': adamw,
    'mlp': mlp,
    'linear': linear,
    'qkv_attention': qkv_attention,
}
"""Every op by its name."""
