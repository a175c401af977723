"""Every setting of a run: its type, default, unit and meaning. The JSON Schema for editors is generated from this file."""

import re
from contextlib import suppress
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, PlainValidator, WithJsonSchema, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from rewarm.config.duration import Duration
from rewarm.config.loggers import LOGGERS, PATHS
from rewarm.config.machine import default_workers
from rewarm.config.model_settings import KernelsConfig, ModelConfig, Positive, PositiveFloat
from rewarm.config.paths import PathText, expand_path
from rewarm.config.schedules import Schedule, Section
from rewarm.config.shapes import MODEL_SHAPES, ModelShape, count_parameters, flops_per_token
from rewarm.signals import StopSignal

__all__ = [
    'MODEL_SHAPES',
    'CheckpointConfig',
    'DataConfig',
    'EvalConfig',
    'EvalSetConfig',
    'KernelsConfig',
    'ModelConfig',
    'ModelShape',
    'OptimizerConfig',
    'PreemptionConfig',
    'RunConfig',
    'SpikesConfig',
    'StageConfig',
    'StreamConfig',
    'TrainConfig',
    'count_parameters',
    'flops_per_token',
]

Name = Annotated[str, Field(pattern=r'^[A-Za-z0-9][A-Za-z0-9._-]*$', max_length=200)]
"""Letters, digits, dots, underscores and hyphens: safe as part of a file's name, which has 255 bytes, and as a label."""

Beta = Annotated[float, Field(ge=0, lt=1)]


_SHARE = re.compile(r'[0-9]{1,9}/[1-9][0-9]{0,8}|[0-9]*\.?[0-9]{1,20}(?:[eE][+-]?[0-9]{1,3})?', re.ASCII)


def _proportion(value: Any) -> float | str:
    good = isinstance(value, (int, float, str)) and not isinstance(value, bool)
    if good and _SHARE.fullmatch(str(value)) and 0 < Fraction(str(value)) <= 1:
        return value if isinstance(value, str) else float(value)
    reason = f'must be a share above 0 and at most 1, such as 0.05 or 1/3, got {value!r:.60}'
    raise PydanticCustomError('proportion', '{reason}', {'reason': reason})


Proportion = Annotated[
    float | str,
    PlainValidator(_proportion),
    WithJsonSchema(
        {
            'anyOf': [
                {'type': 'number', 'exclusiveMinimum': 0, 'maximum': 1},
                {'type': 'string', 'pattern': '^[0-9]+/[0-9]+$'},
            ]
        }
    ),
]
"""A share of the samples: a decimal, read exactly (0.95 is 19/20), or a fraction such as 1/3."""


# For editors; what is checked is in `checks.py`, with a suggestion.
_LOGGER_NAMES: JsonDict = {'propertyNames': {'enum': [*sorted(LOGGERS)]}}


def _expand_loggers(loggers: dict[str, dict[str, JsonValue]]) -> dict[str, dict[str, JsonValue]]:
    """Loggers' own paths, as every other path; one that is none is found in `limits.py`, which knows its line."""
    expanded = {name: dict(arguments) for name, arguments in loggers.items()}
    for arguments in expanded.values():
        for key in PATHS:
            if isinstance(path := arguments.get(key), str):
                with suppress(PydanticCustomError):
                    arguments[key] = expand_path(path)
    return expanded


class StreamConfig(Section):
    """One source of training samples."""

    name: Name
    """What to call it in metrics; part of the shuffle's seed."""
    remote: PathText | None = None
    """Where its shards are: `s3://bucket/prefix`, or a folder."""
    local: PathText | None = None
    """The folder they are cached in; alone, the folder they are already in."""
    proportion: Proportion = 1.0
    """Share of the stage's samples, exact (0.95 is 19/20; `1/3` may be written); a stage's shares sum to 1."""
    shuffle: bool = True
    """Whether to shuffle each pass over the stream (in blocks of neighbouring shards), or to read it in order."""

    @property
    def share(self) -> Fraction:
        """The exact share of the stage's samples."""
        return Fraction(str(self.proportion))


class TrainConfig(Section):
    """What a stage trains on."""

    streams: Annotated[tuple[StreamConfig, ...], Field(min_length=1, strict=False)]
    """The mix: streams with their shares. Replayed old data is a stream here and counts in the budget."""


class StageConfig(Section):
    """One stage of the run. It begins once, whatever happens to the machines."""

    name: Name
    """The stage's identity: its re-warming happens once under this name."""
    max_duration: Duration
    """Budget of this stage alone (not of the run): tokens or batches; rounded to whole global batches."""
    stop_at: Duration | None = None
    """Where the stage ends if before its budget is spent, since it began: tokens, batches or a share of `max_duration` such as `50%`. Its curve stays that of the whole budget."""
    train: TrainConfig
    """What it trains on."""
    schedule: Schedule
    """Its learning-rate curve."""
    optimizer_state: Literal['keep', 'reset', 'reset_second_moment'] = 'keep'
    """What becomes of AdamW's moments when the stage begins."""


class DataConfig(Section):
    """How samples are read."""

    num_workers: int = Field(default_factory=default_workers, ge=0, le=256)
    """Loader processes for each rank. Default: the machine's cores divided by its ranks, but 1 to 4."""
    shuffle_block_size: Positive = 65536
    """Samples of neighbouring shards that are shuffled together; larger mixes better and needs more shards at hand."""


class OptimizerConfig(Section):
    """AdamW, as PyTorch means it: weight decay is multiplied with the rate, and spares LayerNorms and biases."""

    name: Literal['adamw'] = 'adamw'
    """Which optimizer."""
    betas: Annotated[tuple[Beta, Beta], Field(strict=False)] = (0.9, 0.95)
    """Decay of the first and of the second moment, for each batch."""
    eps: Annotated[float, Field(gt=0, le=1)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 0.1
    """Share of a weight that decays in a batch, multiplied with the learning rate."""


class EvalSetConfig(Section):
    """One labelled validation set."""

    name: Name
    """Its label in metrics and in the report."""
    remote: PathText | None = None
    """Where its shards are: `s3://bucket/prefix`, or a folder."""
    local: PathText | None = None
    """The folder they are cached in; alone, the folder they are already in."""
    role: Literal['upstream', 'downstream']
    """What it is when the run begins: `upstream` is data that the starting weights learned, on which forgetting is measured; `downstream` is not. Later a set is old once a stage has trained its data."""
    of: Annotated[tuple[Name, ...], Field(strict=False)] | None = None
    """Streams whose data it is, by name; `[]` if no stage trains it. Default: the streams of its own name, of its own folder, and at `DIR/train` where it is `DIR/val`."""


class EvalConfig(Section):
    """When and on what to validate."""

    interval: Duration = Duration(500, 'ba')
    """How often within a stage: batches or tokens. Always also before a stage's first batch and after its last."""
    max_samples: Positive | None = None
    """Read only so many samples of each set, its first ones, whatever the ranks and batches. Default: all. A loss on a part is no loss on the whole, and has no bits per byte; keep it as it is through a run."""
    sets: Annotated[tuple[EvalSetConfig, ...], Field(strict=False)] = ()
    """The sets, token for token the same each time."""


class CheckpointConfig(Section):
    """When to save and what to keep."""

    interval: Duration = Duration(10, 'min')
    """How often: `sec`, `min`, `h`, `ba` or `tok`."""
    keep: Annotated[int, Field(gt=0, le=1_000_000)] = 3
    """The newest checkpoints to keep, besides each stage's last one and those that `rewarm pin` names."""


class PreemptionConfig(Section):
    """How the run learns that its machine goes away."""

    signals: Annotated[tuple[StopSignal, ...], Field(strict=False)] = ('SIGTERM', 'SIGINT', 'SIGUSR1', 'SIGHUP')
    """Signals after which the batch is finished, a checkpoint saved, and the process left with code 75. SIGINT and SIGHUP (the terminal is closed) always are; under `nohup` SIGHUP is not heard."""
    notice: Literal['auto', 'aws', 'gcp', 'azure', 'none'] = 'auto'
    """Whose notices of preemption to look for: `auto` asks only the cloud this machine is in, if any; a cloud that is named must answer."""
    notice_url: Annotated[str, Field(pattern=r'^http://[^\s/?#@]+/?$')] | None = None
    """Where its metadata service is, such as `http://127.0.0.1:1338`. Default: `AWS_EC2_METADATA_SERVICE_ENDPOINT` or `GCE_METADATA_HOST`, else the cloud's own address."""
    hang_timeout: Duration = Duration(20, 'min')
    """Time without any progress on any rank after which all leave with code 75: `sec`, `min` or `h`; three times as long until a stage's first batch is done. Must be longer than a save."""
    grace_period: Duration = Duration(25, 'sec')
    """Time from the signal to the kill: `sec` or `min`. The `composer` launcher kills its ranks 30 s after a SIGTERM."""

    @model_validator(mode='after')
    def _check_notice_url(self) -> 'PreemptionConfig':
        if self.notice_url is not None and self.notice == 'none':
            raise ValueError('`notice_url` is not asked with `notice: none`. Remove it, or write `notice: auto`')
        return self


class SpikesConfig(Section):
    """What becomes of a batch whose loss is no number, or jumps above what the stage's last 128 batches lead to expect."""

    on_nan: Literal['rollback', 'skip', 'stop'] = 'rollback'
    """If the loss or a gradient is no finite number: go back to the newest checkpoint and, if the same batch gives it again, skip it; skip it at once; or stop the run."""
    on_spike: Literal['log', 'skip', 'rollback'] = 'log'
    """If the loss is a spike: record it and train on it, skip the batch, or go back to the newest checkpoint and skip it if it is a spike again."""
    sigma_factor: PositiveFloat = 6.0
    """A spike is more than this many standard deviations of the stage's losses above their median."""
    min_rise: PositiveFloat = 0.5
    """In nats: a spike is also more than this above the median; re-warming alone raises a loss by up to 0.5."""


class RunConfig(Section):
    """One run: one YAML, one run folder, one or more stages."""

    run_name: Name
    """The run's name."""
    run_folder: PathText
    """Where everything the run writes goes: a folder such as `runs/${run_name}`, or `s3://bucket/prefix` (also `gs://`, `az://`)."""
    seed: Annotated[int, Field(ge=0, lt=1 << 32)] = 17
    """Seed of the order of samples, of new weights and of every batch; Composer adds the rank, and the sum must be below 2^32."""
    max_seq_len: Positive
    """Sequence length in tokens; the shards must have been made with it."""
    global_train_batch_size: Positive
    """Sequences in a step over all ranks; must be a multiple of `device_train_microbatch_size` x ranks."""
    device_train_microbatch_size: Positive
    """Sequences in one forward and backward pass on one device; changes memory and speed, not the result."""
    data: DataConfig = Field(default_factory=lambda: DataConfig())
    """Loader processes and shuffling."""
    precision: Literal['bf16', 'fp32'] = 'bf16'
    """`bf16`: fp32 parameters and optimizer state, bf16 activations and matmuls. `fp32`: everything."""
    tokenizer: PathText
    """The tokenizer of all data: a Hugging Face id, a folder, or a path to `tokenizer.json`."""
    model: ModelConfig
    """The model."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """The optimizer; the learning rate is in the stages."""
    max_grad_norm: PositiveFloat = 1.0
    """Gradients are scaled down to this norm over all parameters."""
    stages: Annotated[tuple[StageConfig, ...], Field(min_length=1, strict=False)]
    """The stages, in order. A finished run goes on when one is appended."""
    eval: EvalConfig = EvalConfig()
    """Validation."""
    checkpoints: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    preemption: PreemptionConfig = PreemptionConfig()
    """Preemption."""
    spikes: SpikesConfig = SpikesConfig()
    """Losses that are no numbers, and loss spikes."""
    loggers: Annotated[dict[str, dict[str, JsonValue]], AfterValidator(_expand_loggers)] = Field(
        default={}, json_schema_extra=_LOGGER_NAMES
    )
    """Composer's loggers by name, each with its arguments: `tensorboard: {}`, `wandb: {project: ...}`, ..."""
