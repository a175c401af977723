"""The yardstick of a kernel is PyTorch itself.

For each output and each gradient, against fp64 on the same inputs:

    error(kernel) <= 2 * error(the definition in the same dtype) + floor

An error is the largest absolute difference over the largest absolute value of the truth. The floor is 1e-6 for fp32
and 1e-3 for bf16: a quarter of its rounding error, for tensors on which PyTorch happens to be exact.
"""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

FLOOR = {torch.float32: 1e-6, torch.bfloat16: 1e-3}
DTYPES = [torch.float32, torch.bfloat16]

Function = Callable[..., Any]


def error(value: Tensor, truth: Tensor) -> float:
    """Largest difference over largest value; 0 for two empty tensors, infinite where one is NaN and the other is not."""
    if not truth.numel():
        return 0.0
    value = value.double().cpu()
    truth = truth.double().cpu()
    if not torch.equal(value.isnan(), truth.isnan()):
        return float('inf')
    scale = truth.nan_to_num().abs().max().clamp(min=1e-30)
    return ((value - truth).nan_to_num().abs().max() / scale).item()


def outputs_and_grads(
    function: Function, inputs: Mapping[str, Any], dtypes: Mapping[str, torch.dtype], *, differentiate: Collection[str]
) -> dict[str, Tensor]:
    """Calls a function on leaves of the given dtypes, and differentiates a fixed random combination of its outputs.

    Args:
        function (Function): Takes ``inputs`` by name, returns a tensor or a tuple of them (``None`` is left out).
        inputs (Mapping): Tensors and other arguments by name.
        dtypes (Mapping): Dtype of each floating-point tensor of ``inputs``.
        differentiate (Collection[str]): Names of the inputs that get a gradient.

    Returns:
        dict[str, Tensor]: ``out0``, ``out1``, ... and ``d<input>`` for each differentiated input.
    """
    leaves = {
        name: value.detach().to(dtypes[name]).requires_grad_(name in differentiate)
        if isinstance(value, Tensor) and value.is_floating_point()
        else value
        for name, value in inputs.items()
    }
    outputs = function(**leaves)
    outputs = [out for out in (outputs if isinstance(outputs, (tuple, list)) else [outputs]) if out is not None]
    generator = torch.Generator().manual_seed(3)
    upstream = [torch.randn(out.shape, dtype=torch.float64, generator=generator) for out in outputs]
    pairs = [(out, grad.to(out.device, out.dtype)) for out, grad in zip(outputs, upstream) if out.requires_grad]
    torch.autograd.backward([out for out, _ in pairs], [grad for _, grad in pairs])
    found = {f'out{index}': out.detach() for index, out in enumerate(outputs)}
    for name in differentiate:
        if (leaf := leaves[name]) is not None:
            found[f'd{name}'] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return found


def check(
    kernel: Function,
    definition: Function,
    inputs: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    activations: Collection[str],
    parameters: Collection[str] = (),
) -> None:
    """Compares a kernel with its definition on all outputs and gradients, as the top of this file says.

    Args:
        kernel (Function): What is tested.
        definition (Function): Its ``_ref``, which takes the same arguments in any dtype.
        inputs (Mapping): Arguments by name; floating-point tensors that are neither activations nor parameters get no
            gradient and stay fp32 (fp64 for the truth).
        dtype (torch.dtype): Of the activations.
        activations (Collection[str]): Inputs in ``dtype``, differentiated.
        parameters (Collection[str]): Inputs in fp32, differentiated.
    """
    floats = {name for name, value in inputs.items() if isinstance(value, Tensor) and value.is_floating_point()}
    # The truth starts from the same rounded numbers.
    inputs = {name: value.to(dtype) if name in floats & {*activations} else value for name, value in inputs.items()}
    differentiate = [name for name in (*activations, *parameters) if inputs[name] is not None]
    mixed = {name: dtype if name in activations else torch.float32 for name in inputs}
    fp64 = dict.fromkeys(inputs, torch.float64)
    ours = outputs_and_grads(kernel, inputs, mixed, differentiate=differentiate)
    theirs = outputs_and_grads(definition, inputs, mixed, differentiate=differentiate)
    truth = outputs_and_grads(definition, inputs, fp64, differentiate=differentiate)
    compare(ours, theirs, truth, dtype)


def compare(
    ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], truth: Mapping[str, Tensor], dtype: torch.dtype
) -> None:
    """Holds each tensor of ``ours`` to twice the error of ``theirs`` plus the floor, and to the dtype of ``theirs``."""
    assert ours.keys() == theirs.keys() == truth.keys()
    for name in truth:
        assert ours[name].shape == truth[name].shape, name
        assert ours[name].dtype == theirs[name].dtype, name
        bound = 2 * error(theirs[name], truth[name]) + FLOOR[dtype]
        assert error(ours[name], truth[name]) <= bound, (
            f'{name}: {error(ours[name], truth[name]):.2e}, bound {bound:.2e}'
        )


def assert_bit_equal(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> None:
    """Asserts that two calls gave the same bits."""
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name
