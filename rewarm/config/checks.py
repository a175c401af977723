"""Checks between settings; each finding has the way to a key, and says what to write instead."""

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction

from rewarm.config.buckets import SCHEMES
from rewarm.config.data_cards import check_cards, find_repeats
from rewarm.config.eval_sets import find_misfits
from rewarm.config.limits import find_limits, places
from rewarm.config.loggers import LOGGERS
from rewarm.config.messages import did_you_mean
from rewarm.config.oddities import find_oddities
from rewarm.config.schema import EvalSetConfig, RunConfig, StageConfig
from rewarm.config.source import Loc, dotted
from rewarm.config.stages import StagePlan, plan_stages
from rewarm.config.world_sizes import find_world_sizes, fitting_microbatch, nearest_batches, spell_sizes

LAUNCHER_GRACE_SECONDS = 30
"""Seconds after which the ``composer`` launcher kills its ranks once it has sent them a SIGTERM."""

REWARMING_RISE = 0.5
"""Nats; the largest rise of a validation loss in the paper and its follow-up is 0.45."""

LARGEST_PERIOD = 1_000_000
"""Largest common denominator of a stage's shares; the order of samples repeats its pattern with it."""

Finding = tuple[Loc, str]


def find_problems(
    config: RunConfig, *, world_size: int | None = None, previous_lr: float | None = None
) -> list[Finding]:
    """Checks settings against each other.

    Args:
        config (RunConfig): Settings that are right one by one.
        world_size (int | None): Ranks that will run it. Default: the environment's ``WORLD_SIZE``, else 1.
        previous_lr (float | None): The rate before the first stage, if it is known from elsewhere.

    Returns:
        list[Finding]: Everything wrong.
    """
    checks: tuple[Callable[[RunConfig], Iterable[Finding]], ...] = (
        _check_names,
        _check_run_folder,
        _check_places,
        _check_shares,
        _check_units,
        _check_loggers,
        check_cards,
        find_limits,
    )
    found = _check_batch(config, world_size or _environment_world_size())
    found += plan_stages(config, previous_lr)[1]
    return found + [finding for check in checks for finding in check(config)]


def find_warnings(config: RunConfig, stages: Sequence[StagePlan]) -> tuple[list[str], list[str]]:
    """Finds what is allowed and may surprise.

    Args:
        config (RunConfig): The settings.
        stages (Sequence[StagePlan]): The stages, worked out.

    Returns:
        tuple[list[str], list[str]]: Warnings, and notes on what was rounded.
    """
    warnings = [*find_oddities(config), *find_misfits(config)]
    if config.preemption.grace_period.seconds > LAUNCHER_GRACE_SECONDS:
        warnings.append(
            f'`preemption.grace_period` is {config.preemption.grace_period}, but the `composer` launcher kills its ranks '
            f'{LAUNCHER_GRACE_SECONDS} s after a SIGTERM; under it, write at most {LAUNCHER_GRACE_SECONDS}sec'
        )
    longest = config.model.shape.max_position_embeddings
    if config.max_seq_len > longest:
        warnings.append(
            f'`max_seq_len` is {config.max_seq_len}, and the model was made for at most {longest} positions'
        )
    if config.spikes.on_spike != 'log' and config.spikes.min_rise < REWARMING_RISE:
        warnings.append(
            f'`spikes.min_rise` is {config.spikes.min_rise:g} nat, and re-warming alone raises a loss by up to {REWARMING_RISE}: '
            f'with `on_spike: {config.spikes.on_spike}`, good batches may not be trained on. Write at least {REWARMING_RISE}'
        )
    for stage in stages:
        if stage.schedule.get('min_lr') and stage.schedule.get('constant_tokens', 0) is None:
            warnings.append(
                f'stage `{stage.name}`: `schedule.min_lr` does nothing without `constant`: the constant phase has no end'
            )
        warnings += find_repeats(config, stage)
    notes = [note for stage in stages for note in _note_rounding(config.stages[stage.index], stage)]
    return warnings, notes


def _environment_world_size() -> int:
    text = os.environ.get('WORLD_SIZE', '1')
    return max(1, int(text)) if text.isascii() and text.isdecimal() and len(text) < 10 else 1


def _check_batch(config: RunConfig, ranks: int) -> list[Finding]:
    sizes = find_world_sizes(config)
    if ranks in sizes:
        return []
    batch, micro = config.global_train_batch_size, config.device_train_microbatch_size
    text = f'`global_train_batch_size` {batch} is not a multiple of `device_train_microbatch_size` {micro} x {ranks} rank{"s"[: ranks > 1]}. '
    fixes = [f'Write {" or ".join(map(str, nearest_batches(config, ranks)))}']
    if fitting := fitting_microbatch(config, ranks):
        fixes.append(f'`device_train_microbatch_size: {fitting}`')
    if usable := [size for size in sizes if size < ranks]:
        fixes.append(f'run it on {usable[-1]} of the ranks ({spell_sizes(sizes)} can)')
    return [(('global_train_batch_size',), text + ', or '.join(fixes))]


def _check_names(config: RunConfig) -> Iterator[Finding]:
    groups: list[tuple[str, Loc, list[str]]] = [
        ('stages', ('stages',), [stage.name for stage in config.stages]),
        ('eval sets', ('eval', 'sets'), [item.name for item in config.eval.sets]),
    ]
    for index, stage in enumerate(config.stages):
        groups.append(
            ('streams', ('stages', index, 'train', 'streams'), [stream.name for stream in stage.train.streams])
        )
    for what, at, names in groups:
        for index, name in enumerate(names):
            if name in names[:index]:
                where: Loc = (*at, index, 'name')
                yield where, f'`{dotted(where)}`: two {what} are called `{name}`. Rename one'


def _check_run_folder(config: RunConfig) -> Iterator[Finding]:
    scheme, separator, rest = config.run_folder.partition('://')
    if separator and (scheme not in SCHEMES or not rest.strip('/').partition('/')[2]):
        known = ', '.join(f'`{each}://bucket/prefix`' for each in SCHEMES)
        text = f'`run_folder`: {config.run_folder} is no place for a run. Write a folder, or {known}'
        yield ('run_folder',), text


def _check_places(config: RunConfig) -> Iterator[Finding]:
    cached: dict[str, str] = {}
    for at, item in places(config):
        what = 'eval set' if isinstance(item, EvalSetConfig) else 'stream'
        if item.remote is None and item.local is None:
            yield at, f'`{dotted(at)}`: {what} `{item.name}` has no data. Write `local: <folder>` or `remote: s3://...`'
        if item.remote and item.local and cached.setdefault(item.local, item.remote) != item.remote:
            other = cached[item.local]
            text = f'`{dotted(at)}.local` {item.local} already caches {other}, so it cannot cache {item.remote}. Write another folder'
            yield (*at, 'local'), text


def _check_shares(config: RunConfig) -> Iterator[Finding]:
    for index, stage in enumerate(config.stages):
        at: Loc = ('stages', index, 'train', 'streams')
        shares = [stream.share for stream in stage.train.streams]
        total = sum(shares, Fraction(0))
        if total != 1:
            last = stage.train.streams[-1]
            fitting = last.share + 1 - total
            fix = f' Write `proportion: {_decimal(fitting)}` for `{last.name}`' if 0 < fitting <= 1 else ' Lower some'
            yield (
                at,
                f'`{dotted(at)}`: the proportions of stage `{stage.name}` sum to {_decimal(total)}, not to 1.{fix}',
            )
        elif (period := math.lcm(*(share.denominator for share in shares))) > LARGEST_PERIOD:
            yield (
                at,
                f'`{dotted(at)}`: the proportions have the common denominator {period:,}, above {LARGEST_PERIOD:,}. Use fewer digits',
            )


def _check_units(config: RunConfig) -> Iterator[Finding]:
    allowed = (
        (('eval', 'interval'), config.eval.interval, ('ba', 'tok')),
        (('checkpoints', 'interval'), config.checkpoints.interval, ('sec', 'min', 'h', 'ba', 'tok')),
        (('preemption', 'grace_period'), config.preemption.grace_period, ('sec', 'min', 'h')),
        (('preemption', 'hang_timeout'), config.preemption.hang_timeout, ('sec', 'min', 'h')),
    )
    for at, duration, units in allowed:
        if duration.unit not in units or duration.value == 0:
            yield (
                at,
                f'`{dotted(at)}` must be above 0 and in {", ".join(f"`{unit}`" for unit in units)}, got `{duration}`',
            )


def _check_loggers(config: RunConfig) -> Iterator[Finding]:
    for name, arguments in config.loggers.items():
        if name not in LOGGERS:
            yield (
                ('loggers', name),
                f'unknown logger `{name}`.{did_you_mean(name, LOGGERS)} Known loggers: {", ".join(sorted(LOGGERS))}',
            )
            continue
        known = LOGGERS[name]
        for key in arguments:
            if key not in known:
                text = f'unknown key `loggers.{name}.{key}`.{did_you_mean(key, known)} Known keys here: {", ".join(sorted(known)) or "none"}'
                yield ('loggers', name, key), text


def _note_rounding(written: StageConfig, stage: StagePlan) -> Iterator[str]:
    lengths = [('', written.max_duration, stage.budget_tokens)]
    if written.stop_at is not None:
        lengths.append(('`stop_at` ', written.stop_at, stage.tokens))
    for key, duration, tokens in lengths:
        wanted = duration.tokens(stage.tokens_per_batch, stage.budget_tokens)
        if wanted != tokens:
            exact, batches = wanted / stage.tokens_per_batch, tokens // stage.tokens_per_batch
            text = f'{key}{duration} is {exact:,.2f} batches, rounded to {batches:,} ({tokens - wanted:+,} tokens)'
            yield f'stage `{stage.name}`: {text}'


def _decimal(value: Fraction) -> str:
    text = f'{float(value):.6g}'
    return text if Fraction(text) == value else str(value)
