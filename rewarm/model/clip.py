"""Gradient clipping that keeps the norm it saw."""

import torch
from composer import Algorithm, Event, Logger, State
from torch import Tensor, nn

__all__ = ['ClipGradients']


class ClipGradients(Algorithm):
    """Scales all gradients down to a norm, after the last microbatch and before the optimizer's step.

    Args:
        model (nn.Module): The raw model; under DDP its gradients are averaged by then.
        max_norm (float): Largest L2 norm over all parameters.
    """

    def __init__(self, model: nn.Module, max_norm: float) -> None:
        self.model = model
        self.max_norm = max_norm
        self.norm_on_device: Tensor = torch.tensor(float('nan'))
        """L2 norm of the last batch's gradients before clipping; not a number if one of them is none."""

    @property
    def norm(self) -> float:
        """The same as a number; reading it waits for the device."""
        return self.norm_on_device.item()

    def match(self, event: Event, state: State) -> bool:
        """Acts when all gradients of the batch are there."""
        return event == Event.AFTER_TRAIN_BATCH

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Clips."""
        self.norm_on_device = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.max_norm)
