"""The model as Composer trains and evaluates it: a loss without full logits, and metrics that do not depend on the ranks.

A batch is a dict with ``input_ids`` and ``labels``, both int64 ``(B, T)``; ``labels[b, t]`` is the token after
``input_ids[b, t]``, or -100 where there is no target.
"""

from __future__ import annotations

from typing import Any

from composer.models import ComposerModel
from torch import Tensor
from torchmetrics import Metric

from rewarm.config.schema import flops_per_token
from rewarm.model.metrics import MeanTokenLoss, TargetCount
from rewarm.model.ops import IGNORED_LABEL
from rewarm.model.pythia import Pythia

__all__ = ['PythiaForTraining']

Batch = dict[str, Tensor]


class PythiaForTraining(ComposerModel):
    """Wraps a :class:`~rewarm.model.pythia.Pythia` for Composer's ``Trainer``; run it with ``precision='fp32'``.

    Autocast is not used: the model itself computes in its ``compute_dtype`` and keeps fp32 parameters.

    The loss of a microbatch is the mean over its targets. Composer multiplies it by the microbatch's share of the
    batch's samples, on all ranks together, and adds up; since every training sample has the same number of targets
    (T, or T - 1 in LLM Foundry's shards), that share of samples is its share of targets, and the sum is the mean over
    the targets of the global batch, whatever the microbatches and ranks.

    Args:
        pythia (Pythia): The model. It stays reachable as ``pythia``, also after Composer has wrapped this module, and
            its ``state_dict()`` has Hugging Face's names.
    """

    def __init__(self, pythia: Pythia) -> None:
        super().__init__()
        self.pythia = pythia

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Computes the summed loss of a batch.

        The vocabulary projection belongs to the loss and is run here, once, chunk by chunk: all of it is inside the
        forward pass that ``DistributedDataParallel`` sees.

        Args:
            batch (Batch): ``input_ids`` and ``labels``, ``(B, T)``.

        Returns:
            dict[str, Tensor]: ``loss_sum``, in nats, fp64, and ``num_targets``, int64; both scalars on the device.
        """
        labels_N = batch['labels'].flatten()
        hidden_ND = self.pythia.hidden(batch['input_ids']).flatten(0, 1)
        loss_sum, num_targets = self.pythia.ops.linear_cross_entropy(
            hidden_ND, self.pythia.embed_out.weight, labels_N, ignore_index=IGNORED_LABEL
        )
        return {'loss_sum': loss_sum, 'num_targets': num_targets}

    def loss(self, outputs: dict[str, Tensor], batch: Batch, *args: Any, **kwargs: Any) -> Tensor:
        """Takes the mean over the targets.

        Args:
            outputs (dict[str, Tensor]): What :meth:`forward` returned.
            batch (Batch): Unused; Composer passes it.
            args (Any): Unused.
            kwargs (Any): Unused.

        Returns:
            Tensor: Nats for each target, fp32, a scalar; 0 for a batch without targets.
        """
        return (outputs['loss_sum'] / outputs['num_targets'].clamp(min=1)).float()

    def eval_forward(self, batch: Batch, outputs: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
        """Runs the model for evaluation, also without full logits.

        Args:
            batch (Batch): ``input_ids`` and ``labels``, ``(B, T)``.
            outputs (dict[str, Tensor] | None): What :meth:`forward` returned for this batch, if it has run.

        Returns:
            dict[str, Tensor]: As :meth:`forward`.
        """
        return self.forward(batch) if outputs is None else outputs

    def get_metrics(self, is_train: bool) -> dict[str, Metric]:
        """Names the metrics: none while training (each would cost a pass), the loss and its weight when evaluating.

        Args:
            is_train (bool): Whether training's or evaluation's are wanted.

        Returns:
            dict[str, Metric]: ``loss`` and ``targets``, or nothing.
        """
        return {} if is_train else {'loss': MeanTokenLoss(), 'targets': TargetCount()}

    def update_metric(self, batch: Batch, outputs: dict[str, Tensor], metric: Metric) -> None:
        """Adds a batch to a metric.

        Args:
            batch (Batch): Unused; Composer passes it.
            outputs (dict[str, Tensor]): What :meth:`eval_forward` returned.
            metric (Metric): One of :meth:`get_metrics`.
        """
        metric.update(outputs['loss_sum'], outputs['num_targets'])

    def flops_per_batch(self, batch: Batch) -> int:
        """Floating-point operations of a training step on a batch, for Composer's ``SpeedMonitor``.

        The convention is ``full`` of :func:`rewarm.config.schema.flops_per_token` (attention counted as if it were not
        causal), as in LLM Foundry's tables; the arithmetic really done is 11 % less at Pythia-410M's 2,048 tokens.

        Args:
            batch (Batch): ``input_ids``, ``(B, T)``.

        Returns:
            int: FLOPs, forward and backward.
        """
        num_samples, seq_len = batch['input_ids'].shape
        return num_samples * seq_len * flops_per_token(self.pythia.shape, seq_len, 'full')
