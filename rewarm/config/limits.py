"""Settings that no machine can run: what does not fit 63 bits, a seed beyond Composer's, places that are none, times of no use."""

from collections.abc import Iterator

from pydantic_core import PydanticCustomError

from rewarm.config.buckets import SCHEMES
from rewarm.config.duration import Duration
from rewarm.config.located import Loc, dotted
from rewarm.config.loggers import KINDS, LOGGERS, PATHS, wrong_type
from rewarm.config.paths import expand_path, is_url
from rewarm.config.schema import EvalSetConfig, RunConfig, StreamConfig
from rewarm.config.secrets import is_secret_name
from rewarm.config.world_sizes import find_world_sizes

LARGEST_COUNT = 1 << 63
"""Tokens, samples and batches are 64-bit integers everywhere."""

SEEDS = 1 << 32
"""Composer gives each rank the seed plus its number, and numpy takes 32 bits."""

LONGEST_WAIT_HOURS = 720
"""Of what a run waits for: a month. The longest time that a clock of the system can wait is not much longer."""

NO_STORES = ('file', 'http', 'https')
"""Schemes from which no shards can come."""


def find_limits(config: RunConfig) -> Iterator[tuple[Loc, str]]:
    """Finds settings beyond what can be run.

    Args:
        config (RunConfig): Settings that are right one by one.

    Yields:
        tuple[Loc, str]: The way to a key, and what to write instead.
    """
    yield from _check_seed(config)
    yield from _check_tokens(config)
    yield from _check_times(config)
    yield from _check_urls(config)
    yield from _check_logger_arguments(config)


def places(config: RunConfig) -> Iterator[tuple[Loc, StreamConfig | EvalSetConfig]]:
    """Everything that data is read from, and the way to it."""
    for index, stage in enumerate(config.stages):
        for number, stream in enumerate(stage.train.streams):
            yield ('stages', index, 'train', 'streams', number), stream
    for index, item in enumerate(config.eval.sets):
        yield ('eval', 'sets', index), item


def _check_seed(config: RunConfig) -> Iterator[tuple[Loc, str]]:
    most = max(find_world_sizes(config), default=1)
    if config.seed + most > SEEDS:
        text = f'`seed` must be at most {SEEDS - most:,}, got {config.seed:,}: Composer adds the rank, of which this batch allows '
        yield ('seed',), f'{text}{most:,}, and takes no seed of 2^32'


def _check_tokens(config: RunConfig) -> Iterator[tuple[Loc, str]]:
    tokens_per_batch, total = config.global_train_batch_size * config.max_seq_len, 0
    for index, stage in enumerate(config.stages):
        if stage.max_duration.unit not in ('tok', 'ba'):
            continue
        total += stage.max_duration.batches(tokens_per_batch) * tokens_per_batch
        if total >= LARGEST_COUNT:
            at: Loc = ('stages', index, 'max_duration')
            yield at, f'`{dotted(at)}`: with it the run has {total:.3g} tokens, and at most 9.2e18 can be counted'
            return


def _check_times(config: RunConfig) -> Iterator[tuple[Loc, str]]:
    waits: tuple[tuple[Loc, Duration], ...] = (
        (('preemption', 'grace_period'), config.preemption.grace_period),
        (('preemption', 'hang_timeout'), config.preemption.hang_timeout),
    )
    for at, duration in ((('checkpoints', 'interval'), config.checkpoints.interval), *waits):
        if duration.is_time and 0 < duration.seconds < 1:
            yield at, f'`{dotted(at)}` must be at least `1sec`, got `{duration}`'
    for at, duration in waits:
        if duration.is_time and duration.seconds > LONGEST_WAIT_HOURS * 3600:
            yield at, f'`{dotted(at)}` must be at most `{LONGEST_WAIT_HOURS}h`, got `{duration}`'


def _check_urls(config: RunConfig) -> Iterator[tuple[Loc, str]]:
    for at, item in places(config):
        if item.local and is_url(item.local):
            text = f'`{dotted(at)}.local` is a folder on this machine, got {item.local}. '
            path = item.local.partition('://')[2]
            yield (
                (*at, 'local'),
                text
                + (
                    f'Write the path alone: {path}'
                    if item.local.startswith('file:')
                    else f'Write `remote: {item.local}`'
                ),
            )
        if item.remote and is_url(item.remote) and (scheme := item.remote.partition('://')[0].lower()) in NO_STORES:
            fix = 'Write the path alone' if scheme == 'file' else 'Bring it to a folder or a bucket first'
            yield (*at, 'remote'), f'`{dotted(at)}.remote`: shards cannot come from {item.remote}. {fix}'
        if item.remote and is_url(item.remote) and not item.remote.partition('://')[2].strip('/'):
            yield (
                (*at, 'remote'),
                f'`{dotted(at)}.remote`: {item.remote} names no bucket. Write `{item.remote}bucket/prefix`',
            )
    if is_url(config.tokenizer):
        text = f'`tokenizer` is a file or folder on this machine or a Hugging Face id, got {config.tokenizer}'
        yield ('tokenizer',), f'{text}. Bring the file here and name it'
    kind, _, source = config.model.init_from.partition(':')
    if is_url(source) and not (kind == 'checkpoint' and source.partition('://')[0] in SCHEMES):
        what = 'an id such as `hf:EleutherAI/pythia-410m`, or a folder' if kind == 'hf' else "a checkpoint's folder"
        text = f'`model.init_from`: {source} is not on this machine. Bring it into a folder, and write {what} after `{kind}:`'
        yield ('model', 'init_from'), text


def _check_logger_arguments(config: RunConfig) -> Iterator[tuple[Loc, str]]:
    for name, arguments in config.loggers.items():
        for key, kind in LOGGERS.get(name, {}).items():
            if key in arguments and wrong_type(kind, arguments[key]):
                value = '...' if is_secret_name(key) else f'{arguments[key]!r:.60}'
                yield ('loggers', name, key), f'`loggers.{name}.{key}` must be {KINDS[kind]}, got {value}'
        for key in PATHS:
            if isinstance(path := arguments.get(key), str):
                try:
                    expand_path(path)
                except PydanticCustomError as error:
                    yield ('loggers', name, key), f'`loggers.{name}.{key}` {error.message()}'
