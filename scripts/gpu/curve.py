"""The loss of 200 steps with our kernels and with plain PyTorch, from the same weights on the same data, at 410M.

Both compute in bf16 and round in different places, and training makes a difference grow. How far apart two right runs may
be is measured: plain PyTorch in fp32 against plain PyTorch in bf16. The largest difference between kernels and PyTorch
has to be at most twice that, plus 0.001 nats.
"""

import sys
import time
from dataclasses import replace

import torch
from bench_cases import Sizes
from bench_measure import Records, arguments, begin
from torch import Tensor

from scripts.gpu.models import optimizer_for, our_model, set_weights, sizes_of, tokens, train

__all__ = ['main']

LR = 3e-4
FLOOR = 1e-3
CURVES = (
    ('torch bf16', 'torch', torch.bfloat16),
    ('triton bf16', 'triton', torch.bfloat16),
    ('torch fp32', 'torch', torch.float32),
)


def main() -> int:
    """Draws the curves; returns whether they are too far apart."""
    options = arguments(__doc__).parse_args()
    records, device = begin('curve', options)
    if options.dry:
        from tests.kernels.interpreter import correct

        correct()
    sizes = sizes_of(options.dry)
    sizes, steps = (sizes, 3) if options.dry else (replace(sizes, batch=4, tokens=512), 200)
    curves: dict[str, Tensor] = {}
    for name, kernels, dtype in CURVES:
        with records.attempt('losses', name):
            records.need(15)
            curves[name] = _curve(records, name, kernels, dtype, sizes, steps, device)
    if len(curves) == len(CURVES):
        gap = (curves['triton bf16'] - curves['torch bf16']).abs()
        spread = (curves['torch bf16'] - curves['torch fp32']).abs()
        bound = 2 * spread.max().item() + FLOOR
        records.add(
            'difference',
            'triton bf16 - torch bf16',
            steps=steps,
            largest=gap.max().item(),
            at_step=int(gap.argmax()),
            bound=bound,
            last_tenth=gap[-max(steps // 10, 1) :].mean().item(),
            spread_last_tenth=spread[-max(steps // 10, 1) :].mean().item(),
            ok=gap.max().item() <= bound,
        )
    return records.failed


def _curve(
    records: Records, name: str, kernels: str, dtype: torch.dtype, sizes: Sizes, steps: int, device: torch.device
) -> Tensor:
    trainee = our_model(kernels, sizes, device, dtype)
    set_weights(trainee.model)
    optimizer = optimizer_for(trainee.model)
    ids, labels = tokens(sizes, sizes.batch * steps, device)
    losses, began = [], time.perf_counter()
    for step, (some_ids, some_labels) in enumerate(zip(ids.split(sizes.batch), labels.split(sizes.batch), strict=True)):
        for group in optimizer.param_groups:
            group['lr'] = LR * min((step + 1) / 20, 1.0)
        losses.append(train(trainee, optimizer, some_ids, some_labels, sizes.batch))
    curve = torch.stack(losses).double().cpu()
    records.add(
        'losses',
        name,
        first=curve[0].item(),
        last=curve[-1].item(),
        seconds=time.perf_counter() - began,
        ok=bool(curve.isfinite().all()),
        computed_by=trainee.description,
        losses=[round(loss, 5) for loss in curve.tolist()],
    )
    return curve


if __name__ == '__main__':
    sys.exit(main())
