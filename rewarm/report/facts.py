"""What ran where, when, how fast and at what cost, as a list for the page."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from datetime import UTC, datetime

from rewarm.report.interruptions import interruptions, throughput
from rewarm.report.logger_failures import failure_text, find_logger_failures
from rewarm.report.run_folder import Run
from rewarm.report.spending import device_hours, find_flops_per_token, find_parameters, find_trained_tokens
from rewarm.report.tables import duration_text, escape, tokens_text

__all__ = ['date_text', 'facts']

Entry = tuple[str, str]


def facts(run: Run, price: float | None = None) -> str:
    """The facts as a list of definitions; what the folder does not tell is left out.

    Args:
        run (Run): The run.
        price (float | None): Price of one device for an hour, in any unit of money.
    """
    entries = [*_what(run), *_spent(run, price), *_where(run), *_how_it_went(run)]
    items = ''.join(f'<dt>{escape(name)}</dt><dd>{escape(text)}</dd>' for name, text in entries if text)
    return f'<dl class="facts">{items}</dl>'


def date_text(time: datetime) -> str:
    """A time to the minute: ``2026-11-02 09:00 UTC``."""
    return f'{time.astimezone(UTC):%Y-%m-%d %H:%M} UTC'


def _what(run: Run) -> Iterator[Entry]:
    times = [event.time for event in run.events if event.time is not None]
    times += [line.time for line in run.batches[-1:] if line.time is not None]
    if times:
        yield 'Began', date_text(min(times))
        yield 'Ended' if run.finished else 'Last sign of life', date_text(max(times))
    yield 'Run folder', run.place
    model, parameters = run.config.model, find_parameters(run)
    if model:
        size = '' if parameters is None else f'{parameters:,} parameters'
        yield 'Model', ', '.join(filter(None, (model.name, size, f'from {model.init_from}' if model.init_from else '')))
    yield 'Tokenizer', run.config.tokenizer or ''
    yield 'Seed', '' if run.config.seed is None else str(run.config.seed)
    evaluated = {(line.set, line.tokens_evaluated) for line in run.evaluations if line.tokens_evaluated}
    yield 'Evaluated', ', '.join(f'{name}: {count:,} tokens each time' for name, count in sorted(evaluated))


def _spent(run: Run, price: float | None) -> Iterator[Entry]:
    counted, again = find_trained_tokens(run)
    repeated = f', and {tokens_text(again)} more that were lost and trained again' if again else ''
    yield 'Tokens trained', f'{counted:,}{repeated}' if counted else ''
    flops = find_flops_per_token(run)
    if flops and counted:
        yield 'Operations', f'{flops:.3g} FLOPs a token (attention in full), {flops * (counted + again):.3g} in all'
    hours = device_hours(run)
    if hours is not None:
        kind = 'GPU' if run.environment.device_kind == 'gpu' else 'process'
        yield f'{kind[0].upper()}{kind[1:]} hours', f'{hours:,.2f}'
        if price is not None:
            yield (
                'Cost',
                f'{hours * price:,.2f} at {price:g} for an hour of one {kind}, time without a process left out',
            )


def _where(run: Run) -> Iterator[Entry]:
    environment = run.environment
    left_out = {'versions', 'command', 'commit'}
    machine = {k: v for k, v in environment.model_dump(exclude=left_out).items() if v not in (None, '')}
    yield 'Machine', ', '.join(f'{key.replace("_", " ")} {value}' for key, value in machine.items())
    yield 'Versions', ', '.join(f'{package} {version}' for package, version in environment.versions.items())
    yield 'Commit of rewarm', environment.commit or ''
    yield 'Command of the last start', shlex.join(environment.command)


def _how_it_went(run: Run) -> Iterator[Entry]:
    speed = throughput(run)
    yield 'Throughput', f'{speed.tokens_per_second:,.0f} tokens/s (median batch)' if speed.tokens_per_second else ''
    stood_still = f'{speed.saves} checkpoints, {duration_text(speed.stall_seconds)} standing still'
    yield 'Saving', stood_still if speed.saves else ''
    yield 'Lost to interruptions', _lost(run)
    yield 'Loggers', '. '.join(map(failure_text, find_logger_failures(run.events)))
    yield 'Damaged lines left out', '; '.join(map(str, run.damage))


def _lost(run: Run) -> str:
    speed, stops = throughput(run), interruptions(run.events)
    if not stops:
        return 'nothing: no interruption'
    bound = 'at most ' if any(stop.at_most for stop in stops) else ''
    count = f'{len(stops)} interruption{"s" if len(stops) > 1 else ""}'
    again = f'{speed.repeated_batches:,} batches repeated (about {duration_text(speed.repeated_seconds)})'
    return f'{bound}{duration_text(speed.idle_seconds)} in {count}, {again}'
