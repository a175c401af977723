"""Evaluation metrics: sums over batches and ranks, so that a set's loss does not depend on how many ranks read it."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric

__all__ = ['MeanTokenLoss', 'TargetCount']


class _SumMetric(Metric):
    """Sums over batches and ranks, in fp64 and int64, so that how a set is cut moves the result by rounding only."""

    full_state_update = False
    loss_sum: Tensor
    num_targets: Tensor

    def __init__(self) -> None:
        super().__init__(dist_sync_on_step=False)
        self.add_state('loss_sum', torch.zeros((), dtype=torch.float64), dist_reduce_fx='sum')
        self.add_state('num_targets', torch.zeros((), dtype=torch.int64), dist_reduce_fx='sum')

    def update(self, loss_sum: Tensor, num_targets: Tensor) -> None:
        """Adds a batch.

        Args:
            loss_sum (Tensor): Summed loss in nats, a scalar.
            num_targets (Tensor): Targets it is summed over, a scalar.
        """
        self.loss_sum += loss_sum.double()
        self.num_targets += num_targets


class MeanTokenLoss(_SumMetric):
    """Mean loss over all targets of a set, in nats; NaN for a set without targets."""

    def compute(self) -> Tensor:
        """Divides the sums over all ranks.

        Returns:
            Tensor: Nats for each target, fp64, a scalar.
        """
        return self.loss_sum / self.num_targets


class TargetCount(_SumMetric):
    """Targets that a set's loss is the mean of, over all ranks."""

    def compute(self) -> Tensor:
        """Gives the sum over all ranks.

        Returns:
            Tensor: Targets, int64, a scalar.
        """
        return self.num_targets
