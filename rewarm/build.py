"""Builds the model of a run and says what computes it."""

from typing import Any

import torch

from rewarm.config.schema import RunConfig
from rewarm.model.attention import attention_named
from rewarm.model.attention_choice import choose_backend
from rewarm.model.composer_model import PythiaForTraining
from rewarm.model.ops import choose_ops
from rewarm.model.pythia import Pythia, init_weights
from rewarm.model.trial import try_ops
from rewarm.model.weights import load_hf
from rewarm.start import announce, on_rank_zero

__all__ = ['build_model']


def build_model(config: RunConfig, device: Any, *, initialise: bool) -> PythiaForTraining:
    """Builds the model, says what computes it, and gives it its first weights unless a checkpoint will.

    Args:
        config (RunConfig): The run file.
        device (Any): Composer's device.
        initialise (bool): Whether to set the weights that ``init_from`` names; NaN until a checkpoint is loaded otherwise.

    Returns:
        PythiaForTraining: On the device.

    Raises:
        UserError: If kernels, an attention or weights are asked for that cannot be had here.
    """
    dtype = torch.bfloat16 if config.precision == 'bf16' else torch.float32
    shape = config.model.shape
    where = torch.device(device.name if device.name != 'gpu' else 'cuda')
    heads = shape.num_attention_heads
    work = (config.device_train_microbatch_size, heads, config.max_seq_len, shape.hidden_size // heads)
    # Times differ between ranks, and kernels in their rounding: one rank chooses for all.
    choice = on_rank_zero(lambda: choose_backend(config.model.attention, where, shape=work, dtype=dtype))
    attention = attention_named(choice)
    kernels = config.model.kernels.choices
    faults = on_rank_zero(lambda: try_ops(kernels, where, attention, shape=shape, gelu=config.model.gelu, dtype=dtype))
    ops = choose_ops(kernels, where, attention, faults)
    announce(
        f'Operations: {ops.description}{", layers compiled" if config.model.compile else ""}. '
        f'Attention: {attention.description}. Computing in {config.precision}.'
    )
    pythia = Pythia(shape, gelu=config.model.gelu, compute_dtype=dtype, ops=ops)
    if config.model.compile:
        pythia.compile_layers()
    if initialise and config.model.init_from == 'scratch':
        init_weights(pythia, config.seed)
    elif initialise:
        imported = load_hf(pythia, config.model.init_from.removeprefix('hf:'))
        for note in imported.notes:
            announce(note)
    return PythiaForTraining(pythia.to(where))
