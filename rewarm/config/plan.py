"""Everything that follows from the settings by arithmetic: steps, rates, samples, disk, hours. What ``rewarm plan`` shows."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rewarm.config.changes import check_stage_change, identity
from rewarm.config.checks import find_problems, find_warnings
from rewarm.config.cost import BYTES_PER_PARAMETER, HOPELESS, Cost, estimate_cost, seconds_per_batch
from rewarm.config.duration import Duration
from rewarm.config.errors import ConfigError, UserError
from rewarm.config.eval_sets import tell_config
from rewarm.config.evaluations import Evaluations, plan_evaluations
from rewarm.config.goodput import Conditions, Losses, find_losses
from rewarm.config.memory import Memory, estimate_memory
from rewarm.config.paths import is_url
from rewarm.config.saving import find_saving_warnings
from rewarm.config.schema import RunConfig
from rewarm.config.shapes import count_parameters, flops_per_token
from rewarm.config.stages import StagePlan, plan_stages
from rewarm.config.world_sizes import find_world_sizes

__all__ = ['Plan', 'StagePlan', 'check_stage_change', 'identity', 'make_plan', 'parse_marks']


@dataclass(frozen=True)
class Plan:
    """A run, worked out.

    Args:
        run_name (str): The run's name.
        tokens_per_batch (int): Tokens in a global batch.
        global_batch_size (int): Sequences in a global batch.
        seq_len (int): Tokens in a sequence.
        stages (tuple[StagePlan, ...]): The stages, in order.
        parameters (int): Trainable parameters.
        flops_per_token_full (int): FLOPs of a trained token, counting attention to every position (as LLM Foundry).
        flops_per_token_causal (int): The same, counting causal positions only.
        world_sizes (tuple[int, ...]): Numbers of ranks that can run the global batch.
        eval_interval_batches (int): Batches between two evaluations within a stage.
        evaluations (Evaluations): Their rounds and tokens, and their share of the work.
        loader_workers (int): Loader processes of each rank.
        checkpoint_interval (Duration): Between two saves.
        checkpoints (int): Checkpoints on disk at most: the newest kept and one for each stage's end.
        checkpoint_bytes (int): Bytes of one: fp32 weights and two moments.
        memory (dict[str, Memory]): Bytes on one device with each implementation, `triton` and `torch`.
        losses (Losses): What takes time from training: known where it was given, else assumed.
        cost (Cost): Hours, money, goodput.
        eval_sets (dict[str, tuple[str, ...]]): What each evaluation set is in each stage, in words.
        warnings (tuple[str, ...]): What is allowed and may surprise.
        notes (tuple[str, ...]): What was rounded.
        missing (tuple[str, ...]): What a run would read and is not on this machine, if that was looked for.
    """

    run_name: str
    tokens_per_batch: int
    global_batch_size: int
    seq_len: int
    stages: tuple[StagePlan, ...]
    parameters: int
    flops_per_token_full: int
    flops_per_token_causal: int
    world_sizes: tuple[int, ...]
    eval_interval_batches: int
    evaluations: Evaluations
    loader_workers: int
    checkpoint_interval: Duration
    checkpoints: int
    checkpoint_bytes: int
    memory: dict[str, Memory]
    losses: Losses
    cost: Cost
    eval_sets: dict[str, tuple[str, ...]]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens of the whole run."""
        return self.stages[-1].end_tokens

    @property
    def batches(self) -> int:
        """Global batches of the whole run."""
        return self.stages[-1].end_batch

    def stage_at(self, tokens: int) -> StagePlan:
        """The stage that trains after ``tokens`` tokens of the run; the last one at its very end.

        Args:
            tokens (int): Tokens since the run began.

        Returns:
            StagePlan: The stage.

        Raises:
            ValueError: If the run is not that long.
        """
        if not 0 <= tokens <= self.tokens:
            raise ValueError(f'{tokens:,} is not within the run of {self.tokens:,} tokens')
        return next((stage for stage in self.stages if tokens < stage.end_tokens), self.stages[-1])

    def lr_at(self, tokens: int) -> float:
        """The learning rate after ``tokens`` tokens of the run.

        Args:
            tokens (int): Tokens since the run began.

        Returns:
            float: Learning rate.

        Raises:
            ValueError: If the run is not that long.
        """
        stage = self.stage_at(tokens)
        return stage.lr(tokens - stage.start_tokens)

    def marks(self) -> list[int]:
        """The tokens since the run began at which the rate is worth seeing: phase edges, first and last batches."""
        inside = [
            (stage.start_tokens, [0, *stage.edges.values(), stage.tokens - self.tokens_per_batch])
            for stage in self.stages
        ]
        return sorted({start + tokens for start, edges in inside for tokens in edges})

    def to_json(self, marks: Sequence[int] | None = None) -> dict[str, Any]:
        """The plan as JSON types, as ``rewarm plan --json`` prints it.

        Args:
            marks (Sequence[int] | None): Tokens since the run began to give the rate at. Default: ``marks()``.

        Returns:
            dict[str, Any]: Sizes in bytes, money in the unit of the price, None for what is not known.
        """
        keys = ('name', 'tokens', 'batches', 'start_tokens', 'end_tokens', 'schedule', 'streams')
        points = self.marks() if marks is None else marks
        recommended = self.cost.recommended_interval
        return {
            'tokens_per_batch': self.tokens_per_batch,
            'stages': [
                {
                    **{key: getattr(stage, key) for key in keys},
                    'eval_sets': {name: words[stage.index] for name, words in self.eval_sets.items()},
                }
                for stage in self.stages
            ],
            'lr_at': [
                {'tokens': point, 'stage': self.stage_at(point).name, 'lr': self.lr_at(point)} for point in points
            ],
            'checkpoints': self.checkpoints,
            'bytes': self.checkpoints * self.checkpoint_bytes,
            'hours': self.cost.hours,
            'cost': self.cost.cost,
            'not_estimated_without': list(self.cost.needs),
            'goodput': self.cost.goodput,
            'recommended_interval': None if recommended is None else str(recommended),
            'recommended_goodput': self.cost.recommended_goodput,
            'losses': asdict(self.losses),
            'evaluations': {
                'rounds': self.evaluations.rounds,
                'samples': dict(self.evaluations.samples),
                'tokens_per_round': self.evaluations.tokens_per_round,
                'share_of_tokens': self.evaluations.share_of_tokens,
                'share_of_work': self.evaluations.share_of_work,
            },
            'missing': list(self.missing),
            'warnings': [*self.warnings, *self.notes, *self.missing],
        }


def make_plan(
    config: RunConfig,
    *,
    previous_lr: float | None = None,
    gpus: int | None = None,
    price: float | None = None,
    conditions: Conditions | None = None,
) -> Plan:
    """Works a run out.

    Args:
        config (RunConfig): The settings.
        previous_lr (float | None): The rate before the first stage, for ``current`` there. Default: read from ``init_from``'s checkpoint.
        gpus (int | None): Ranks that will run it. Default: the environment's ``WORLD_SIZE``, else 1.
        price (float | None): Price of one GPU for an hour.
        conditions (Conditions | None): What is known of speed, preemptions and saves.

    Returns:
        Plan: All derived numbers.

    Raises:
        ConfigError: If the settings contradict each other, or the rate before the first stage is needed and not known.
    """
    problems = find_problems(config, world_size=gpus, previous_lr=previous_lr)
    if problems:
        raise ConfigError(text for _, text in problems)
    stages = tuple(stage for stage in plan_stages(config, previous_lr)[0] if stage is not None)
    if len(stages) < len(config.stages):
        source = config.model.init_from.removeprefix('checkpoint:')
        text = (
            f'`model.init_from`: the checkpoint {source} is not on this machine, and the run has none of its own yet in '
            f'{config.run_folder}. The rate that it begins at (`current`) and its weights come from there. Bring it back, or name '
            'the place where it is now'
        )
        if is_url(source):
            text = (
                f'`model.init_from`: the rate that the run begins at (`current`) is in {source}, and a plan reads no bucket. To plan, '
                'bring the checkpoint into a folder and name that, or write the rate as a number'
            )
        raise ConfigError([text])
    tokens_per_batch = config.global_train_batch_size * config.max_seq_len
    shape, interval = config.model.shape, config.checkpoints.interval
    checkpoint_bytes = BYTES_PER_PARAMETER * count_parameters(shape)
    known = conditions or Conditions()
    losses = find_losses(known, checkpoint_bytes)
    batch_seconds = seconds_per_batch(tokens_per_batch, gpus, known)
    interval_seconds = _interval_seconds(interval, tokens_per_batch, batch_seconds)
    eval_interval_batches = config.eval.interval.batches(tokens_per_batch)
    evaluations = plan_evaluations(config, stages, eval_interval_batches)
    warnings, notes = find_warnings(config, stages)
    if (note := evaluations.note()) is not None:
        notes.append(note)
    warnings += find_saving_warnings(config, losses, interval_seconds=interval_seconds, batch_seconds=batch_seconds)
    cost = estimate_cost(
        stages[-1].end_batch,
        batch_seconds,
        interval_seconds,
        losses,
        gpus=gpus,
        price=price,
        evaluation_seconds=evaluations.seconds(tokens_per_batch / batch_seconds) if batch_seconds else 0.0,
    )
    if cost.goodput is not None and cost.goodput < HOPELESS:
        warnings.append('at this many preemptions nothing would be trained: save more often')
    return Plan(
        run_name=config.run_name,
        tokens_per_batch=tokens_per_batch,
        global_batch_size=config.global_train_batch_size,
        seq_len=config.max_seq_len,
        stages=stages,
        parameters=count_parameters(shape),
        flops_per_token_full=flops_per_token(shape, config.max_seq_len, 'full'),
        flops_per_token_causal=flops_per_token(shape, config.max_seq_len, 'causal'),
        world_sizes=tuple(find_world_sizes(config)),
        eval_interval_batches=eval_interval_batches,
        evaluations=evaluations,
        loader_workers=config.data.num_workers,
        checkpoint_interval=interval,
        checkpoints=_count_checkpoints(config, stages, tokens_per_batch),
        checkpoint_bytes=checkpoint_bytes,
        memory={
            name: estimate_memory(
                shape, config.device_train_microbatch_size, config.max_seq_len, config.precision, fused=name == 'triton'
            )
            for name in ('triton', 'torch')
        },
        losses=losses,
        cost=cost,
        eval_sets={name: story.words for name, story in tell_config(config).sets.items()},
        warnings=tuple(warnings),
        notes=tuple(notes),
    )


def parse_marks(text: str, plan: Plan) -> list[int]:
    """Reads a comma list of positions in a run.

    Args:
        text (str): Such as ``1e9tok,500ba,slimpajama:2e9``: since the run began, or since a stage did; without a unit, tokens.
        plan (Plan): The run.

    Returns:
        list[int]: Tokens since the run began.

    Raises:
        UserError: If one is not a position in the run.
    """
    return [_parse_mark(item.strip(), plan) for item in text.split(',') if item.strip()]


def _parse_mark(text: str, plan: Plan) -> int:
    name, colon, position = text.rpartition(':')
    stage = next((stage for stage in plan.stages if stage.name == name), None)
    if colon and stage is None:
        raise UserError(
            f'--lr-at {text}: no stage is called {name!r:.60}; there are {", ".join(stage.name for stage in plan.stages)}'
        )
    start, budget = (stage.start_tokens, stage.tokens) if stage else (0, plan.tokens)
    try:
        duration = Duration.parse(position if not position[-1:].isdigit() else f'{position}tok')
        tokens = duration.tokens(plan.tokens_per_batch, budget)
    except ValueError as error:
        raise UserError(f'--lr-at {text}: {error}') from None
    if tokens > budget:
        what = f'stage `{stage.name}`' if stage else 'the run'
        raise UserError(f'--lr-at {text}: {what} has only {budget:,} tokens')
    return start + tokens


def _interval_seconds(interval: Duration, tokens_per_batch: int, batch_seconds: float | None) -> float | None:
    if interval.is_time:
        return interval.seconds
    return None if batch_seconds is None else interval.batches(tokens_per_batch) * batch_seconds


def _count_checkpoints(config: RunConfig, stages: Sequence[StagePlan], tokens_per_batch: int) -> int:
    most = config.checkpoints.keep + len(stages) - 1  # the last stage's end is also the newest
    interval = config.checkpoints.interval
    if interval.is_time:
        return most
    every = interval.batches(tokens_per_batch)
    # Saved at multiples of the interval over the whole run, and at each stage's end.
    ends = {stage.end_batch for stage in stages}
    return min(most, stages[-1].end_batch // every + sum(end % every != 0 for end in ends))
