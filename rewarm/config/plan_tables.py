"""A plan as tables: its stages, the curve, the rate at marks, facts and warnings, in as many columns as there are."""

import os
from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from rewarm.config.cost import BYTES_PER_PARAMETER
from rewarm.config.goodput import (
    COPY_BYTES_PER_SECOND,
    SAVE_BYTES_PER_SECOND,
    Conditions,
    daly_seconds,
    young_seconds,
)
from rewarm.config.memory import Memory
from rewarm.config.plan import Plan, StagePlan
from rewarm.config.sketch import sketch
from rewarm.config.units import count_in_words, size_in_words
from rewarm.config.world_sizes import spell_sizes
from rewarm.terminal import printable

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

__all__ = ['render', 'set_line']

_ROOMY = 64  # columns, from which on tokens and batches both have one


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
        _stage_table(plan, width),
        Text(sketch(plan, max(16, min(96, width - 12)))),
        _rate_table(plan, marks, width),
        _fact_table(plan, gpus, known or Conditions()),
    ]
    parts += [Text(printable(f'note: {note}'), style='dim') for note in plan.notes]
    parts += [Text(printable(f'warning: {warning}'), style='yellow') for warning in plan.warnings]
    if plan.missing:  # last, where it is seen: all else may be as it should
        parts.append(Text('\nMISSING on this machine, and without it no run starts here:', style='bold red'))
        parts += [Text(printable(f'  {missing}'), style='red') for missing in plan.missing]
    return parts


def _stage_table(plan: Plan, width: int) -> 'Table':
    """A line for each stage where there is room for it, else a paragraph."""
    from rich.console import Console
    from rich.measure import Measurement

    table = _wide_stage_table(plan)
    console = Console(width=10_000)
    fits = Measurement.get(console, console.options, table).maximum <= width
    return table if fits else _narrow_stage_table(plan)


def _wide_stage_table(plan: Plan) -> 'Table':
    from rich.table import Table

    table = Table(title=printable(plan.run_name), title_justify='left', title_style='bold')
    headings = {
        'stage': 'left', 'tokens': 'right', 'batches': 'right', 'curve': 'left', 'first lr': 'right', 'peak lr': 'right',
        'last lr': 'right', 'streams': 'left', 'optimizer': 'left',
    }  # fmt: skip
    for heading, side in headings.items():
        table.add_column(heading, justify='right' if side == 'right' else 'left', no_wrap=True)
    for stage in plan.stages:
        rates = [f'{rate:.3g}' for rate in _rates(plan, stage)]
        streams = '\n'.join(_streams(stage))
        table.add_row(
            stage.name,
            _tokens(stage),
            f'{stage.batches:,}',
            stage.schedule['name'],
            *rates,
            streams,
            stage.optimizer_state,
        )
    return table


def _narrow_stage_table(plan: Plan) -> 'Table':
    from rich.table import Table

    table = Table(box=None, pad_edge=False, show_header=False, title=printable(plan.run_name), title_justify='left')
    table.title_style = 'bold'
    table.add_column()
    table.add_column(overflow='fold')
    for stage in plan.stages:
        first, peak, last = (f'{rate:.3g}' for rate in _rates(plan, stage))
        table.add_row('stage', stage.name, style='bold')
        table.add_row('', f'{_tokens(stage)} tokens, {stage.batches:,} batches, optimizer: {stage.optimizer_state}')
        table.add_row('', f'{stage.schedule["name"]}: first lr {first}, peak {peak}, last {last}')
        table.add_row('', f'streams: {", ".join(_streams(stage))}')
    return table


def _tokens(stage: StagePlan) -> str:
    return count_in_words(stage.tokens) + (f' of {count_in_words(stage.budget_tokens)}' if stage.is_stopped else '')


def _rates(plan: Plan, stage: StagePlan) -> tuple[float, float, float]:
    """The first, the highest and the last rate; curves have no peak between their edges."""
    edges = [0, *stage.edges.values(), stage.tokens - plan.tokens_per_batch]
    return stage.lr(0), max(stage.lr(tokens) for tokens in edges), stage.last_lr


def _streams(stage: StagePlan) -> list[str]:
    return [f'{stream["name"]} {stream["share"]} ({count_in_words(stream["tokens"])})' for stream in stage.streams]


def _rate_table(plan: Plan, marks: Sequence[int] | None, width: int) -> 'Table':
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    roomy = width >= _ROOMY
    for heading in ('tokens', 'batch', 'lr') if roomy else ('batch', 'lr'):
        table.add_column(heading, justify='right', no_wrap=True)
    table.add_column('stage', overflow='fold')
    table.add_column('where', overflow='fold')
    for tokens in plan.marks() if marks is None else marks:
        batch = f'{tokens / plan.tokens_per_batch:,.1f}'.removesuffix('.0')
        numbers = [batch, f'{plan.lr_at(tokens):.4g}']
        table.add_row(*([f'{tokens:,}'] if roomy else []), *numbers, plan.stage_at(tokens).name, _where(plan, tokens))
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
        'evaluations': _evaluations(plan),
        **{f'eval set {name}': set_line(plan, name) for name in plan.eval_sets},
        'loader processes': _loaders(plan),
        'checkpoints': f'every {interval}; at most {plan.checkpoints} kept x {size_in_words(plan.checkpoint_bytes)} = {size_in_words(disk)} '
        f'({BYTES_PER_PARAMETER} bytes a parameter)',
        'saving': _saving(plan, known),
        'memory of a GPU': '; '.join(_memory(name, each) for name, each in plan.memory.items()),
    }
    cost = plan.cost
    if cost.goodput is not None:
        facts['goodput'] = f'{cost.goodput:.1%} of the time trains batches that are kept, saving every {interval}'
    if cost.recommended_interval is not None:
        facts['recommended'] = _recommendation(plan)
    facts |= _hours_and_cost(plan, gpus)
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column()
    table.add_column(overflow='fold')
    for key, value in facts.items():
        table.add_row(key, value)
    return table


def _evaluations(plan: Plan) -> str:
    every, found = f'every {plan.eval_interval_batches:,} batches, before and after each stage', plan.evaluations
    if not found.samples:
        return 'none: the run file has no `eval.sets`'
    unknown = ', '.join(f'`{name}`' for name in found.unknown)
    if len(found.unknown) == len(found.samples):
        return f'{every}: {found.rounds:,} rounds; how many tokens {unknown} have is not known on this machine'
    sizes = ', '.join(
        f'{name} {count_in_words(samples * plan.seq_len)}'
        for name, samples in found.samples.items()
        if samples is not None
    )
    left_out = f'; {unknown}: not known on this machine, and not counted' if unknown else ''
    return (
        f'{every}: {found.rounds:,} rounds of {count_in_words(found.tokens_per_round)} tokens ({sizes}), '
        f'{_percent(found.share_of_tokens)} of all tokens computed, about {_percent(found.share_of_work)} of the work{left_out}'
    )


def _percent(share: float) -> str:
    return f'{share:.0%}' if share >= 0.1 or not share else f'{100 * share:.2g}%'


def _hours_and_cost(plan: Plan, gpus: int | None) -> dict[str, str]:
    """Hours and money, or which options are needed for them."""
    cost = plan.cost
    speed = '--tokens-per-second (of one GPU) or --measured RUN_FOLDER'
    wanted = {'--tokens-per-second': speed, '--price': '--price (of a GPU for an hour)'}
    if cost.hours is not None:
        on = f'{gpus or 1} GPU{"s"[: (gpus or 1) > 1]}' + ('' if gpus else ', as no --gpus is given')
        part = (
            f', {_percent(plan.evaluations.share_of_work)} of them for evaluations' if plan.evaluations.tokens else ''
        )
        left_out = ', without the evaluations whose sizes are not known' if plan.evaluations.unknown else ''
        hours = f'{cost.hours:,.1f} on {on}{part}{left_out}'
    elif '--tokens-per-second' in cost.needs:
        hours = f'not estimated without {speed}'
    else:
        hours = 'not estimated: nothing would be trained'
    if cost.cost is not None:
        money = f'{cost.cost:,.2f}'
    elif cost.needs:
        money = f'not estimated without {" and ".join(wanted[option] for option in cost.needs)}'
    else:
        money = 'not estimated: nothing would be trained'
    return {'hours': hours, 'cost': money}


def set_line(plan: Plan, name: str) -> str:
    """What an evaluation set is over the stages: ``new in law; old in june``; three stages and more are a span."""
    spans: list[str] = []
    for words, pairs in groupby(zip(plan.eval_sets[name], plan.stages, strict=True), key=lambda pair: pair[0]):
        stages = [stage.name for _, stage in pairs]
        spans.append(f'{words} in ' + (', '.join(stages) if len(stages) < 3 else f'{stages[0]} to {stages[-1]}'))
    return '; '.join(spans)


def _loaders(plan: Plan) -> str:
    cores = os.cpu_count() or 1
    return f'{plan.loader_workers} for each rank; this machine has {cores} core{"s"[: cores > 1]}'


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
    parts = f'states {size_in_words(memory.states)}, activations {size_in_words(memory.activations)}, loss {size_in_words(memory.loss)}'
    name = {'triton': 'with Triton kernels', 'torch': 'in plain PyTorch'}[implementation]
    return f'about {size_in_words(memory.total)} {name} ({parts}; a layer keeps {size_in_words(memory.layer)})'
