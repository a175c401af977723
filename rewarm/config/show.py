"""``rewarm plan`` and ``rewarm schema``: a plan as a table with a sketch of its rate, or as JSON; the settings as JSON Schema."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic.json_schema import GenerateJsonSchema

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.goodput import Conditions
from rewarm.config.load import load
from rewarm.config.loggers import refuse_odd_clients
from rewarm.config.oddities import find_missing
from rewarm.config.past import Past, find_past
from rewarm.config.paths import is_url
from rewarm.config.plan import Plan, make_plan, parse_marks
from rewarm.config.plan_tables import render
from rewarm.config.saving import find_disk_warning
from rewarm.config.schema import RunConfig
from rewarm.config.sketch import sketch
from rewarm.console import open_console
from rewarm.terminal import printable

__all__ = ['plan_command', 'schema_text', 'sketch']


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
    refuse_odd_clients(config.loggers)
    past = find_past(config.run_folder)
    plan = make_plan(config, previous_lr=past and past.previous_lr, gpus=gpus, price=price, conditions=known)
    if past is not None:
        from rewarm.config.refusals import refuse_changes  # most plans are of runs that have not begun

        refuse_changes(past, config, plan, ['rewarm', 'train', str(run_yaml), *overrides])
    plan = _look_around(config, plan)
    marks = parse_marks(lr_at, plan) if lr_at else None
    if as_json:
        begun = past and {'checkpoint': str(past.path), 'batch': past.batch, 'tokens': past.saved.tokens}
        print(json.dumps({**plan.to_json(marks), 'begun': begun}, indent=2))
        return
    from rich.text import Text

    console = open_console()
    for part in render(plan, marks, gpus=gpus, known=known, width=console.width):
        console.print(part)
    for line in _where_it_is(config, past):
        console.print(Text(printable(line), style='dim'))


def _where_it_is(config: RunConfig, past: Past | None) -> list[str]:
    """What the run folder holds already."""
    if past is not None:
        return [f'the run has begun: {past.path.name} is its newest checkpoint, {past.where}; `train` goes on there']
    if is_url(config.run_folder):
        return [
            f'the run folder is in a bucket: `rewarm status {config.run_folder}` says whether the run has begun there'
        ]
    return []


def _look_around(config: RunConfig, plan: Plan) -> Plan:
    """Adds what only a plan tells: what evaluations take, whether this machine's disk is enough, what is not on it."""
    found = [plan.evaluations.warning(), find_disk_warning(config, plan.checkpoint_bytes, plan.checkpoints)]
    warnings = (*plan.warnings, *(warning for warning in found if warning))
    return replace(plan, warnings=warnings, missing=tuple(find_missing(config)))


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


class _Schema(GenerateJsonSchema):
    """Writes each default as a run file has it, since editors put defaults in."""

    def encode_default(self, dft: Any) -> Any:
        """A duration is written as text; pydantic takes it for a group of keys, as any dataclass."""
        return str(dft) if isinstance(dft, Duration) else super().encode_default(dft)


def schema_text() -> str:
    """The JSON Schema of a run file, from which editors complete and check it.

    Returns:
        str: JSON, indented, ending with a newline.
    """
    schema = RunConfig.model_json_schema(schema_generator=_Schema)
    schema = {'$schema': 'https://json-schema.org/draft/2020-12/schema', **schema}
    return json.dumps(schema, indent=2, ensure_ascii=False) + '\n'
