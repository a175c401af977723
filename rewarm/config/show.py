"""``rewarm plan`` and ``rewarm schema``: a plan as a table with a sketch of its rate, or as JSON; the settings as JSON Schema."""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from rewarm.config.cost import BYTES_PER_PARAMETER
from rewarm.config.errors import UserError
from rewarm.config.goodput import (
    COPY_BYTES_PER_SECOND,
    SAVE_BYTES_PER_SECOND,
    Conditions,
    daly_seconds,
    young_seconds,
)
from rewarm.config.load import load
from rewarm.config.memory import Memory
from rewarm.config.oddities import find_missing
from rewarm.config.plan import Plan, make_plan, parse_marks
from rewarm.config.saving import find_disk_warning
from rewarm.config.schema import RunConfig
from rewarm.config.world_sizes import spell_sizes
from rewarm.console import open_console
from rewarm.terminal import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

_EIGHTHS = ' ▁▂▃▄▅▆▇█'


def plan_command(
    run_yaml: str | Path,
    overrides: Sequence[str] = (),
    *,
    gpus: int | None = None,
    price: float | None = None,
    conditions: Conditions | None = None,
    lr_at: str | None = None,
    as_json: bool = False,
) -> None:
    """Prints what a run will do and cost.

    Args:
        run_yaml (str | Path): The run file.
        overrides (Sequence[str]): ``key=value`` each.
        gpus (int | None): GPUs that will run it; the batch is checked against it.
        price (float | None): Price of one GPU for an hour, in any unit of money.
        conditions (Conditions | None): What is known of speed, preemptions and saves.
        lr_at (str | None): Comma list of positions to give the rate at, such as ``1e9tok,slimpajama:50%``.
        as_json (bool): Whether to print JSON instead of the table.

    Raises:
        UserError: If the run file or an option is wrong.
    """
    known = conditions or Conditions()
    _check_options(known, gpus, price)
    config = load(run_yaml, overrides, world_size=gpus)
    plan = make_plan(config, gpus=gpus, price=price, conditions=known)
    here = [find_disk_warning(config, plan.checkpoint_bytes, plan.checkpoints), *find_missing(config)]
    plan = replace(plan, warnings=(*plan.warnings, *(warning for warning in here if warning)))
    marks = parse_marks(lr_at, plan) if lr_at else None
    if as_json:
        print(json.dumps(plan.to_json(marks), indent=2))
        return
    console = open_console()
    for part in render(plan, marks, gpus=gpus, known=known, width=console.width):
        console.print(part)


def _check_options(known: Conditions, gpus: int | None, price: float | None) -> None:
    """What is no number of machines, money or seconds would end as infinity or worse in the table."""
    for name, (value, least, most) in {
        '--gpus': (gpus, 1, 1_000_000),
        '--price': (price, 0, 1e12),
        '--tokens-per-second': (known.tokens_per_second, 1e-3, 1e12),
        '--preemptions-per-day': (known.preemptions_per_day, 0, 1e6),
        '--notice-share': (known.notice_share, 0, 1),
        '--save-stall': (known.save_stall_seconds, 0, 1e9),
        '--save-seconds': (known.save_seconds, 0, 1e9),
        '--restart-seconds': (known.restart_seconds, 0, 1e9),
    }.items():
        if value is not None and not least <= value <= most:
            raise UserError(f'{name} {value:g}: must be between {least:g} and {most:,g}')


def schema_text() -> str:
    """The JSON Schema of a run file, from which editors complete and check it.

    Returns:
        str: JSON, indented, ending with a newline.
    """
    schema = {'$schema': 'https://json-schema.org/draft/2020-12/schema', **RunConfig.model_json_schema()}
    return json.dumps(schema, indent=2, ensure_ascii=False) + '\n'


def render(
    plan: Plan,
    marks: Sequence[int] | None = None,
    *,
    gpus: int | None = None,
    known: Conditions | None = None,
    width: int = 120,
) -> list['RenderableType']:
    """The plan as things ``rich`` prints: stages, the curve, the rate at marks, facts, warnings.

    Args:
        plan (Plan): The run.
        marks (Sequence[int] | None): Tokens since the run began to give the rate at. Default: phase edges.
        gpus (int | None): GPUs the estimates are for.
        known (Conditions | None): What the estimates were given; the rest is said to be assumed.
        width (int): Columns of the terminal.

    Returns:
        list[RenderableType]: In the order to print them.
    """
    from rich.text import Text

    parts: list[RenderableType] = [
        _stage_table(plan),
        Text(sketch(plan, max(20, min(96, width - 12)))),
        _rate_table(plan, marks),
        _fact_table(plan, gpus, known or Conditions()),
    ]
    parts += [Text(printable(f'note: {note}'), style='dim') for note in plan.notes]
    parts += [Text(printable(f'warning: {warning}'), style='yellow') for warning in plan.warnings]
    return parts


def sketch(plan: Plan, width: int = 96, height: int = 8) -> str:
    """Draws the learning rate of the whole run with characters.

    Args:
        plan (Plan): The run.
        width (int): Columns of the drawing.
        height (int): Rows of the drawing.

    Returns:
        str: Lines: the area under the curve, an axis with a mark where each stage begins, their names.
    """
    columns = [_peak(plan, column, width) for column in range(width)]
    top = max(columns) or 1.0
    levels = [round(rate / top * height * 8) for rate in columns]
    lines: list[str] = []
    for row in reversed(range(height)):
        label = f'{top:.2e}' if row == height - 1 else f'{top * row / height:.2e}' if row == height // 2 else ''
        cells = ''.join(_EIGHTHS[min(8, max(0, level - row * 8))] for level in levels)
        lines.append(f'{label:>9} ┤{cells}'.rstrip())
    axis, names = ['─'] * width, [' '] * width
    for stage in plan.stages:
        start = min(width - 1, stage.start_tokens * width // plan.tokens)
        axis[start] = '┬'
        for offset, letter in enumerate(stage.name):
            if start + offset < width:
                names[start + offset] = letter
    end = f'{_count(plan.tokens)} tokens'
    return '\n'.join(
        [*lines, f'{0:>9} ┼{"".join(axis)}', f'{"":10} {"".join(names).rstrip()}', f'{0:>12}{end:>{width - 1}}', '']
    )


def _peak(plan: Plan, column: int, width: int) -> float:
    """Highest rate within a column: a short warm-up's peak must not fall between two samples."""
    samples = 8
    points = [plan.tokens * (column * samples + part) // (width * samples) for part in range(samples)]
    points = [point // plan.tokens_per_batch * plan.tokens_per_batch for point in points]
    return max(plan.lr_at(point) for point in points)


def _stage_table(plan: Plan) -> 'Table':
    from rich.table import Table

    table = Table(title=plan.run_name, title_justify='left', title_style='bold')
    for heading, side in (
        ('stage', 'left'),
        ('tokens', 'right'),
        ('batches', 'right'),
        ('curve', 'left'),
        ('first lr', 'right'),
    ):
        table.add_column(heading, justify='right' if side == 'right' else 'left')
    for heading in ('peak lr', 'last lr'):
        table.add_column(heading, justify='right')
    table.add_column('streams')
    table.add_column('optimizer')
    for stage in plan.stages:
        # Curves have no peak between their edges.
        edges = [0, *stage.edges.values(), stage.tokens - plan.tokens_per_batch]
        rates = [stage.lr(0), max(stage.lr(tokens) for tokens in edges), stage.last_lr]
        streams = '\n'.join(
            f'{stream["name"]} {stream["share"]} ({_count(stream["tokens"])})' for stream in stage.streams
        )
        row = [
            stage.name,
            _count(stage.tokens) + (f' of {_count(stage.budget_tokens)}' if stage.is_stopped else ''),
            f'{stage.batches:,}',
            stage.schedule['name'],
            *(f'{rate:.3g}' for rate in rates),
        ]
        table.add_row(*row, streams, stage.optimizer_state)
    return table


def _rate_table(plan: Plan, marks: Sequence[int] | None) -> 'Table':
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for heading in ('tokens', 'batch', 'lr'):
        table.add_column(heading, justify='right')
    table.add_column('stage')
    table.add_column('where')
    for tokens in plan.marks() if marks is None else marks:
        batch = f'{tokens / plan.tokens_per_batch:,.1f}'.removesuffix('.0')
        table.add_row(
            f'{tokens:,}', batch, f'{plan.lr_at(tokens):.4g}', plan.stage_at(tokens).name, _where(plan, tokens)
        )
    return table


def _where(plan: Plan, tokens: int) -> str:
    stage = plan.stage_at(tokens)
    inside = tokens - stage.start_tokens
    words = ['first batch'] if inside == 0 else []
    words += [label for label, edge in stage.edges.items() if edge == inside]
    words += ['last batch'] if inside == stage.tokens - plan.tokens_per_batch else []
    return ', '.join(words)


def _fact_table(plan: Plan, gpus: int | None, known: Conditions) -> 'Table':
    from rich.table import Table

    sizes = spell_sizes(plan.world_sizes)
    interval = plan.checkpoint_interval
    disk = plan.checkpoints * plan.checkpoint_bytes
    facts = {
        'a step': f'{plan.global_batch_size:,} x {plan.seq_len:,} = {plan.tokens_per_batch:,} tokens',
        'the run': f'{plan.batches:,} steps, {plan.tokens:,} tokens',
        'ranks that can run it': sizes,
        'parameters': f'{plan.parameters:,}',
        'FLOPs per token': f'{plan.flops_per_token_full:.4g} (attention in full), {plan.flops_per_token_causal:.4g} (causal only)',
        'evaluations': f'every {plan.eval_interval_batches:,} batches, before and after each stage',
        **{f'eval set {name}': set_line(plan, name) for name in plan.eval_sets},
        'checkpoints': f'every {interval}; at most {plan.checkpoints} kept x {_size(plan.checkpoint_bytes)} = {_size(disk)} '
        f'({BYTES_PER_PARAMETER} bytes a parameter)',
        'saving': _saving(plan, known),
        'memory of a GPU': '; '.join(_memory(name, each) for name, each in plan.memory.items()),
    }
    cost = plan.cost
    if cost.goodput is not None:
        facts['goodput'] = f'{cost.goodput:.1%} of the time trains batches that are kept, saving every {interval}'
    if cost.recommended_interval is not None:
        facts['recommended'] = _recommendation(plan)
    if cost.hours is not None:
        facts['hours'] = f'{cost.hours:,.1f} on {gpus or 1} GPU{"s"[: (gpus or 1) > 1]}'
    if cost.cost is not None:
        facts['cost'] = f'{cost.cost:,.2f}'
    table = Table(box=None, pad_edge=False, show_header=False)
    for key, value in facts.items():
        table.add_row(key, value)
    return table


def set_line(plan: Plan, name: str) -> str:
    """What an evaluation set is over the stages: ``new in law; old in june``; three stages and more are a span."""
    spans: list[str] = []
    for words, pairs in groupby(zip(plan.eval_sets[name], plan.stages, strict=True), key=lambda pair: pair[0]):
        stages = [stage.name for _, stage in pairs]
        spans.append(f'{words} in ' + (', '.join(stages) if len(stages) < 3 else f'{stages[0]} to {stages[-1]}'))
    return '; '.join(spans)


def _saving(plan: Plan, known: Conditions) -> str:
    losses = plan.losses
    parts = [
        f'training stands still for {losses.save_stall_seconds:.2g} s'
        + (f' (assumed: {COPY_BYTES_PER_SECOND / 1e9:g} GB/s)' if known.save_stall_seconds is None else ''),
        f'a save is whole after {losses.save_seconds:.3g} s'
        + (f' (assumed: {SAVE_BYTES_PER_SECOND / 1e6:g} MB/s)' if known.save_seconds is None else ''),
        f'a restart takes {losses.restart_seconds:.3g} s' + (' (assumed)' if known.restart_seconds is None else ''),
    ]
    return ', '.join(parts)


def _recommendation(plan: Plan) -> str:
    interval, losses = plan.cost.recommended_interval, plan.losses
    between = losses.seconds_between_kills
    best = daly_seconds(losses.save_stall_seconds, between)
    first = young_seconds(losses.save_stall_seconds, between)
    bound = ', but no less than a save and a batch' if interval and interval.seconds > 1.5 * best else ''
    notice = f', {losses.notice_share:.0%} of them with notice' if losses.notice_share else ''
    return (
        f'checkpoints.interval: {interval} for {plan.cost.recommended_goodput:.1%} '
        f'({losses.preemptions_per_day:.3g} preemptions a day{notice}; Daly {best:.3g} s, Young {first:.3g} s{bound})'
    )


def _memory(implementation: str, memory: Memory) -> str:
    parts = f'states {_size(memory.states)}, activations {_size(memory.activations)}, loss {_size(memory.loss)}'
    name = {'triton': 'with Triton kernels', 'torch': 'in plain PyTorch'}[implementation]
    return f'about {_size(memory.total)} {name} ({parts}; a layer keeps {_size(memory.layer)})'


def _count(number: int) -> str:
    for size, letter in ((10**12, 'T'), (10**9, 'B'), (10**6, 'M'), (10**3, 'k')):
        if number >= size:
            return f'{number / size:.4g}{letter}'
    return str(number)


def _size(number: int) -> str:
    for size, unit in ((10**12, 'TB'), (10**9, 'GB'), (10**6, 'MB')):
        if number >= size:
            return f'{number / size:.3g} {unit}'
    return f'{number:,} bytes'
