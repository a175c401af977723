"""What aot.py compiles: calls of operators as a training step of Pythia-410M makes them, forward and backward.

They run on tensors without memory that say they are on a GPU; what they launch is recorded, not run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from rewarm_kernels.adamw import adamw_, squared_norm
from rewarm_kernels.add_dual_layer_norm import add_dual_layer_norm
from rewarm_kernels.bias_gelu import bias_gelu
from rewarm_kernels.linear_cross_entropy import linear_cross_entropy
from rewarm_kernels.mlp import mlp
from rewarm_kernels.qkv_attention import qkv_attention
from rewarm_kernels.rotary import rotary
from torch import Tensor

__all__ = ['CASES']

# Pythia-410M, 32 sequences of 2,048 tokens at a time.
BATCH, LENGTH, WIDTH, FEATURES, VOCABULARY = 32, 2048, 1024, 4096, 50304
HEADS, HEAD, ROTATED = 16, 64, 16
ROWS = BATCH * LENGTH
DECAYED = 405_012_480  # parameters in the larger of two flat buffers


def _differentiate(*outputs: Tensor | None) -> None:
    outputs = tuple(output for output in outputs if output is not None and output.requires_grad)
    torch.autograd.backward(outputs, [torch.empty_like(output) for output in outputs])


def _activations(dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.empty(*shape, dtype=dtype, requires_grad=True)


def _parameters(*shape: int) -> Tensor:
    return torch.empty(*shape, requires_grad=True)


def _tables() -> tuple[Tensor, Tensor]:
    return torch.empty(LENGTH, ROTATED // 2), torch.empty(LENGTH, ROTATED // 2)


def _norms(dtype: torch.dtype, *, branches: bool, dual: bool) -> None:
    x, attn, mlp = (_activations(dtype, ROWS, WIDTH) for _ in range(3))
    vectors: Any = [_parameters(WIDTH) for _ in range(6)]
    added: Any = (attn, mlp, *vectors[:2]) if branches else (None, None, None, None)
    _differentiate(*add_dual_layer_norm(x, *added, *(vectors[2:] if dual else vectors[2:4])))


def _gelu(form: str, dtype: torch.dtype) -> None:
    _differentiate(bias_gelu(_activations(dtype, ROWS, FEATURES), _parameters(FEATURES), form))


def _mlp(form: str, dtype: torch.dtype) -> None:
    weight_in, bias_in, weight_out = _parameters(FEATURES, WIDTH), _parameters(FEATURES), _parameters(WIDTH, FEATURES)
    _differentiate(mlp(_activations(dtype, ROWS, WIDTH), weight_in, bias_in, weight_out, form))


def _rotation(dtype: torch.dtype) -> None:
    with torch.no_grad():
        rotary(_activations(dtype, BATCH, LENGTH, HEADS, 3, HEAD), *_tables())


def _rotation_back(dtype: torch.dtype) -> None:
    qkv = _activations(dtype, BATCH, LENGTH, HEADS, 3, HEAD)
    _differentiate(rotary(qkv, *_tables()))


def _attention(backend: str, dtype: torch.dtype) -> None:
    y, weight, bias = _activations(dtype, BATCH, LENGTH, WIDTH), _parameters(3 * WIDTH, WIDTH), _parameters(3 * WIDTH)
    _differentiate(qkv_attention(y, weight, bias, *_tables(), HEADS, backend))


def _loss(dtype: torch.dtype) -> None:
    labels = torch.empty(ROWS, dtype=torch.int64)
    hidden, weight = _activations(dtype, ROWS, WIDTH), _parameters(VOCABULARY, WIDTH)
    _differentiate(linear_cross_entropy(hidden, weight, labels, z_loss=1e-4)[0])


def _loss_alone(dtype: torch.dtype) -> None:
    labels = torch.empty(ROWS, dtype=torch.int64)
    with torch.no_grad():
        linear_cross_entropy(_activations(dtype, ROWS, WIDTH), _parameters(VOCABULARY, WIDTH), labels)


def _step(*, clips: bool) -> None:
    param, grad, *moments = (torch.empty(DECAYED) for _ in range(4))
    clip: dict[str, Any] = {'grad_squared_norm': squared_norm(grad), 'max_norm': 1.0} if clips else {}
    adamw_(param, grad, *moments, lr=3e-4, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, step=2, **clip)


_OF_ACTIVATIONS: dict[str, Callable[[torch.dtype], None]] = {
    'first block': partial(_norms, branches=False, dual=True),
    'later block': partial(_norms, branches=True, dual=True),
    'final norm': partial(_norms, branches=True, dual=False),
    'erf': partial(_gelu, 'none'),
    'tanh': partial(_gelu, 'tanh'),
    'MLP with erf': partial(_mlp, 'none'),
    'MLP with tanh': partial(_mlp, 'tanh'),
    'rotation': _rotation,
    'rotation back': _rotation_back,
    'attention by torch': partial(_attention, 'flash'),
    'attention by cuDNN': partial(_attention, 'cudnn'),
    'loss': _loss,
    'loss without gradient': _loss_alone,
}

CASES: dict[str, Callable[[], Any]] = {
    **{
        f'{name} {kind}': partial(case, dtype)
        for name, case in _OF_ACTIVATIONS.items()
        for kind, dtype in (('bf16', torch.bfloat16), ('fp32', torch.float32))
    },
    'clipped step': partial(_step, clips=True),
    'step': partial(_step, clips=False),
}
"""Names are those of the table. Of equal launches the first is compiled."""
