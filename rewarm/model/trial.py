"""Tries the Triton kernels that a run would use, before it relies on them.

Each is run forward and backward on a few rows, at the model's own widths and in its own dtype, as the model calls it, and
held to the definition in fp64: right is what errs at most twice as much as the definition in the same dtype, and a
floor, as for attention. The kernels that are compiled for it are those of training, so little is spent twice.

It finds a kernel that does not compile, does not launch or computes something else on this device and these versions.
It does not find one that goes wrong only with many rows.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rewarm.config.errors import UserError
from rewarm.config.shapes import ModelShape
from rewarm.model.attention import Attention
from rewarm.model.attention_trials import ERROR_FLOOR, first_line, row_error
from rewarm.model.ops import IGNORED_LABEL, TORCH_OPS, Ops, choose_ops, rotary_tables, wanted_kernels

__all__ = ['try_ops']

NUM_TOKENS = 128
"""Of one sequence: enough for every attention kernel, and a multiple of 16, as in training: Triton compiles the same."""

METHODS = {'rotary': 'qkv_attention', 'bias_gelu': 'mlp'}
"""What an operation is called in :class:`~rewarm.model.ops.Ops` where that is not its name in a run file."""


def try_ops(
    choices: Mapping[str, str],
    device: torch.device | str,
    attention: Attention,
    *,
    shape: ModelShape,
    gelu: str,
    dtype: torch.dtype,
) -> dict[str, str]:
    """Tries each Triton kernel that :func:`~rewarm.model.ops.choose_ops` would choose; where it would choose none, nothing.

    With several ranks, let one try and send what it found: all must choose the same.

    Args:
        choices (Mapping[str, str]): The run file's ``model.kernels``: ``auto``, ``triton`` or ``torch`` for each operation.
        device (torch.device | str): Where the model will run.
        attention (Attention): What :func:`rewarm.model.attention_choice.choose_attention` chose.
        shape (ModelShape): The model's sizes.
        gelu (str): ``tanh`` or ``erf``.
        dtype (torch.dtype): The model's ``compute_dtype``.

    Returns:
        dict[str, str]: What is wrong with an operation's kernel, in words; empty if all are right.

    Raises:
        UserError: If one that was asked for by name cannot be had, or fails.
    """
    wanted = wanted_kernels(choices, device)
    if not wanted:
        return {}
    ops = choose_ops(choices, device, attention)
    model = _Model(shape, gelu, dtype, torch.device(device))
    faults = {op: fault for op in wanted if (fault := _try(op, ops, model)) is not None}
    if model.device.type == 'cuda':
        torch.cuda.empty_cache()
    named = {op: fault for op, fault in faults.items() if choices[op] == 'triton'}
    if named:
        found = '; '.join(f'that of `{op}` {fault}' for op, fault in named.items())
        instead = ', '.join(f'{op}: torch' for op in named)
        raise UserError(
            f'`model.kernels` asks for Triton kernels, and {found}. Write `kernels: {{{instead}}}`, or `kernels: auto`.'
        )
    return faults


@dataclass(frozen=True)
class _Model:
    shape: ModelShape
    gelu: str
    dtype: torch.dtype
    device: torch.device


def _try(op: str, ops: Ops, model: _Model) -> str | None:
    """What is wrong with an operation, in words."""
    method = METHODS.get(op, op)
    kernel, definition = getattr(ops, method), getattr(TORCH_OPS, method)
    try:
        for arguments in _calls(op, model):
            ours = _outputs_and_grads(kernel, arguments)
            same = _outputs_and_grads(definition, arguments)
            truth = _outputs_and_grads(definition, [_in_fp64(argument) for argument in arguments])
            for name, want in truth.items():
                error = row_error(ours[name], want)
                bound = 2 * row_error(same[name], want) + ERROR_FLOOR[model.dtype]
                if not error <= bound:
                    return f'gives wrong numbers here ({name}: relative error {error:.2g}, bound {bound:.2g})'
    except Exception as error:  # it is not said what a compiler or a launch raises
        return f'does not run here ({type(error).__name__}: {first_line(error)})'
    return None


def _calls(op: str, model: _Model) -> list[list[Any]]:
    """The arguments of each way in which the model calls an operation; tensors that get a gradient ask for one."""
    shape, width = model.shape, model.shape.hidden_size
    generator = torch.Generator(model.device).manual_seed(0)

    def draw(*sizes: int, scale: float = 1.0, offset: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
        x = torch.randn(sizes, generator=generator, device=model.device)
        return (offset + scale * x).to(dtype).requires_grad_()

    def activations() -> Tensor:
        return draw(1, NUM_TOKENS, width, dtype=model.dtype)

    def weight(num_out: int, num_in: int) -> Tensor:
        return draw(num_out, num_in, scale=num_in**-0.5)

    def bias(size: int = width) -> Tensor:
        return draw(size, scale=0.1)

    if op == 'rotary':
        head_dim = width // shape.num_attention_heads
        tables = rotary_tables(NUM_TOKENS, int(head_dim * shape.rotary_pct), shape.rotary_emb_base, model.device)
        return [[activations(), weight(3 * width, width), bias(3 * width), *tables, shape.num_attention_heads]]
    if op == 'bias_gelu':
        inner = shape.intermediate_size
        approximate = {'tanh': 'tanh', 'erf': 'none'}[model.gelu]
        return [[activations(), weight(inner, width), bias(inner), weight(width, inner), approximate]]
    if op == 'linear_cross_entropy':
        labels = torch.randint(shape.vocab_size, (NUM_TOKENS,), generator=generator, device=model.device)
        labels[::5] = IGNORED_LABEL
        return [[activations()[0].detach().requires_grad_(), weight(shape.vocab_size, width), labels]]

    def norm() -> list[Tensor]:
        return [draw(width, scale=0.1, offset=1.0), bias()]

    def layer_norms(num_norms: int, *, attention: bool, mlp: bool) -> list[Any]:
        branches = [activations() if attention else None, activations() if mlp else None]
        biases = [bias() if attention else None, bias() if mlp else None]
        norms = [*norm(), *(norm() if num_norms == 2 else (None, None))]
        return [activations(), *branches, *biases, *norms, shape.layer_norm_eps]

    if shape.use_parallel_residual:  # the first layer, the others, the last norm
        forms = [(2, False, False), (2, True, True), (1, True, True)]
    else:  # the first layer, each layer's second norm, the first of the next
        forms = [(1, False, False), (1, True, False), (1, False, True)]
    return [layer_norms(num_norms, attention=attention, mlp=mlp) for num_norms, attention, mlp in forms]


def _in_fp64(argument: Any) -> Any:
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        return argument
    return argument.detach().double().requires_grad_(argument.requires_grad)


def _outputs_and_grads(function: Callable[..., Any], arguments: list[Any]) -> dict[str, Tensor]:
    """Calls an operation, and differentiates a fixed random combination of its outputs."""
    leaves = [argument for argument in arguments if isinstance(argument, Tensor) and argument.requires_grad]
    with torch.enable_grad():
        results = function(*arguments)
        outputs = [out for out in (results if isinstance(results, tuple) else [results]) if out is not None]
    differentiable = [out for out in outputs if out.requires_grad]
    generator = torch.Generator(leaves[0].device).manual_seed(1)
    upstream = [
        torch.randn(out.shape, generator=generator, device=out.device).to(out.dtype)
        if out.ndim
        else torch.ones_like(out)
        for out in differentiable
    ]
    grads = torch.autograd.grad(differentiable, leaves, upstream)
    found = {f'output {index}': out.detach() for index, out in enumerate(outputs)}
    found |= {f'gradient {index}': grad for index, grad in enumerate(grads)}
    return {name: x if x.ndim else x[None] for name, x in found.items() if x.is_floating_point()}
