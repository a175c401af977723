"""What a run spent: operations, and hours of its devices, from what its folder tells."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from datetime import datetime

from rewarm.config.shapes import MODEL_SHAPES, SHAPE_KEYS, ModelShape, count_parameters, flops_per_token
from rewarm.formats.run_files import Model
from rewarm.report.run_folder import Run
from rewarm.report.starts import Start
from rewarm.report.timeline import find_timeline

__all__ = ['device_hours', 'device_hours_so_far', 'find_flops_per_token', 'find_parameters', 'find_trained_tokens']


def find_parameters(run: Run) -> int | None:
    """Trainable parameters of the run's model; ``None`` where its sizes are not written."""
    shape = _shape(run.config.model)
    return None if shape is None else count_parameters(shape)


def find_flops_per_token(run: Run) -> int | None:
    """Operations of forward and backward for one trained token, attention in full; ``None`` where a size is not written."""
    shape = _shape(run.config.model)
    return flops_per_token(shape, run.config.max_seq_len) if shape and run.config.max_seq_len else None


def find_trained_tokens(run: Run) -> tuple[int, int]:
    """Tokens that count, and tokens of batches that were lost with a process and trained again, of all the run's stages."""
    counted = sum(stage.done_tokens for stage in run.stages)
    batches = sum(stage.batches for stage in run.stages)
    lost = sum(life.lost_batches for life in find_timeline(run).lives)
    return counted, lost * counted // batches if batches else 0


def device_hours(run: Run) -> float | None:
    """Hours that processes were there, times the devices of each, idle ones included; ``None`` where no times were recorded."""
    lives = find_timeline(run).lives
    if not lives:
        return None
    return sum((life.ended - life.began).total_seconds() * _devices(life.start, run) for life in lives) / 3600


def device_hours_so_far(run: Run, starts: Sequence[Start], until: datetime | None) -> float | None:
    """The same from events and the last batches alone, within some batches, for a glance at a long run.

    Args:
        run (Run): The run; its batches may be the newest ones only.
        starts (Sequence[Start]): Its processes, in order.
        until (datetime | None): The last sign of the last one; now if it is there.
    """
    median = statistics.median([line.seconds for line in run.batches if math.isfinite(line.seconds)] or [0.0])
    seconds, known = 0.0, [(start, start.began, start.last) for start in starts]
    lives = [(start, began, last) for start, began, last in known if began is not None and last is not None]
    for index, (start, began, last) in enumerate(lives):
        if index + 1 < len(lives):
            after, limit, _ = lives[index + 1]
            lost = 0.0 if start.ending else (after.lost_batches or 0) * median  # killed after batches that were lost
            held = min((last - began).total_seconds() + lost, (limit - began).total_seconds())
        else:
            held = ((until or last) - began).total_seconds()
        seconds += max(0.0, held) * _devices(start, run)
    return seconds / 3600 if lives else None


def _devices(start: Start, run: Run) -> int:
    for event in start.events_named('run_start'):
        size = event.fields.get('world_size')
        if isinstance(size, int) and size > 0:
            return size
    return run.environment.world_size or 1


def _shape(model: Model | None) -> ModelShape | None:
    if model is None or model.name != 'custom':
        return MODEL_SHAPES.get(model.name or '') if model else None
    sizes = {key: value for key in SHAPE_KEYS if (value := getattr(model, key, None)) is not None}
    if not {'hidden_size', 'num_hidden_layers', 'num_attention_heads'} <= sizes.keys():
        return None
    return ModelShape(**{'intermediate_size': 4 * sizes['hidden_size'], **sizes})
