"""The optimizer: PyTorch's AdamW, which decays matrices and leaves LayerNorms and biases alone."""

from __future__ import annotations

import torch
from torch import nn

from rewarm.config.schema import OptimizerConfig

__all__ = ['build_optimizer']

_FUSED_DEVICES = {'cpu', 'cuda'}


def build_optimizer(model: nn.Module, config: OptimizerConfig, lr: float) -> torch.optim.AdamW:
    """Builds AdamW over two groups of parameters: matrices (embeddings included), which decay, and vectors, which do not.

    Weight decay is PyTorch's: a step multiplies a weight by ``1 - lr * weight_decay``, as in GPT-NeoX and in the paper.
    The step is fused where PyTorch has it. Each group keeps the names of its parameters in ``param_names``; give the
    raw model and they are the names in its checkpoints.

    Args:
        model (nn.Module): The model, its parameters already on their device.
        config (OptimizerConfig): The run file's ``optimizer``.
        lr (float): Learning rate until something sets another.

    Returns:
        torch.optim.AdamW: Group 0 decays, group 1 does not.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {'params': [(name, p) for name, p in named if p.ndim >= 2], 'weight_decay': config.weight_decay},
        {'params': [(name, p) for name, p in named if p.ndim < 2], 'weight_decay': 0.0},
    ]
    fused = all(parameter.device.type in _FUSED_DEVICES for _, parameter in named)
    return torch.optim.AdamW(groups, lr=lr, betas=config.betas, eps=config.eps, fused=fused)
