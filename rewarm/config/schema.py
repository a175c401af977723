"""Every setting of a run: its type, default, unit and meaning. The JSON Schema for editors is generated from this file."""

import re
from contextlib import suppress
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, JsonValue, PlainValidator, WithJsonSchema, model_validator
from pydantic.config import JsonDict
from pydantic_core import PydanticCustomError

from rewarm.config.duration import Duration
from rewarm.config.loggers import LOGGERS, PATHS
from rewarm.config.paths import InitFrom, PathText, expand_path
from rewarm.config.schedules import Schedule, Section
from rewarm.config.shapes import MODEL_SHAPES, SHAPE_KEYS, ModelShape, count_parameters, flops_per_token
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

Positive = Annotated[int, Field(gt=0, lt=1 << 31)]
PositiveFloat = Annotated[float, Field(gt=0)]
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


Implementation = Literal['auto', 'triton', 'torch']

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

    num_workers: Annotated[int, Field(ge=0, le=256)] = 4
    """Loader processes for each rank."""
    shuffle_block_size: Positive = 65536
    """Samples of neighbouring shards that are shuffled together; larger mixes better and needs more shards at hand."""


class KernelsConfig(Section):
    """Which implementation of each fused operation runs: `triton` stops the run where it cannot, `auto` says what it took."""

    default: Implementation = 'auto'
    """Of the operations that are not named below."""
    add_dual_layer_norm: Implementation | None = None
    """The residual sum with both LayerNorms."""
    rotary: Implementation | None = None
    """Projection of queries, keys and values, rotary embedding and attention on one buffer."""
    bias_gelu: Implementation | None = None
    """The MLP with its GELU."""
    linear_cross_entropy: Implementation | None = None
    """The vocabulary projection with its loss."""

    @property
    def choices(self) -> dict[str, str]:
        """What was chosen for each operation."""
        ops = [name for name in type(self).model_fields if name != 'default']
        return {name: getattr(self, name) or self.default for name in ops}


def _kernels(value: Any) -> Any:
    return {'default': value} if isinstance(value, str) else value


def _kernels_schema(schema: JsonDict) -> None:
    section = {key: schema.pop(key) for key in ('$ref', 'allOf') if key in schema}
    schema['anyOf'] = [{'enum': ['auto', 'triton', 'torch'], 'type': 'string'}, section]


class ModelConfig(Section):
    """Which model, where its weights come from, and which implementation runs it."""

    name: Literal[
        'pythia-14m', 'pythia-31m', 'pythia-70m', 'pythia-160m', 'pythia-410m', 'pythia-1b', 'pythia-1.4b', 'custom'
    ]
    """A Pythia size, or `custom` with the sizes below."""
    init_from: InitFrom
    """Starting weights: `hf:<id or folder>`, `checkpoint:<folder>` of another run (with AdamW's moments, which the first stage's `optimizer_state` keeps or resets), or `scratch`."""
    gelu: Literal['tanh', 'erf'] = 'tanh'
    """The activation: `tanh` is what Pythia trained with, `erf` what Hugging Face evaluates."""
    kernels: Annotated[KernelsConfig, BeforeValidator(_kernels), Field(json_schema_extra=_kernels_schema)] = (
        KernelsConfig()
    )
    """Which implementation of the fused operations runs: `auto`, `triton` or `torch`, or one for each, such as `{default: triton, rotary: torch}`."""
    compile: bool = False
    """Whether `torch.compile` compiles the layers, of either implementation; the first batch of each start then waits for it."""
    attention: Literal['auto', 'cudnn', 'flash', 'efficient', 'fa3', 'fa4', 'math'] = 'auto'
    """Which attention backend runs."""
    hidden_size: Positive | None = None
    """Only for `custom`, required: width of the residual stream."""
    num_hidden_layers: Positive | None = None
    """Only for `custom`, required: transformer blocks."""
    num_attention_heads: Positive | None = None
    """Only for `custom`, required: attention heads."""
    intermediate_size: Positive | None = None
    """Only for `custom`: width of the MLP. Default: 4 x `hidden_size`."""
    vocab_size: Positive | None = None
    """Only for `custom`: rows of the embedding. Default: 50,304."""
    rotary_pct: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only for `custom`: share of each head that is rotated by position. Default: 0.25."""
    rotary_emb_base: PositiveFloat | None = None
    """Only for `custom`: base of the rotary frequencies. Default: 10,000."""
    max_position_embeddings: Positive | None = None
    """Only for `custom`: longest sequence meant, in tokens. Default: 2,048."""
    layer_norm_eps: PositiveFloat | None = None
    """Only for `custom`: added to the variance in every LayerNorm. Default: 1e-5."""
    use_parallel_residual: bool | None = None
    """Only for `custom`: attention and MLP side by side. Default: true."""
    tie_word_embeddings: Literal[False] | None = None
    """Only for `custom`: must be false, as in every Pythia."""

    @model_validator(mode='after')
    def _check_sizes(self) -> 'ModelConfig':
        given = [key for key in SHAPE_KEYS if getattr(self, key) is not None]
        if self.name != 'custom' and given:
            raise ValueError(
                f'`{given[0]}` belongs to `name: custom`; {self.name} has fixed sizes. Remove it, or write `name: custom`'
            )
        missing = [key for key in SHAPE_KEYS[:3] if key not in given]
        if self.name == 'custom' and missing:
            raise ValueError(f'`name: custom` needs {", ".join(f"`{key}`" for key in missing)}')
        if self.name == 'custom':
            self._check_heads()
        return self

    def _check_heads(self) -> None:
        shape = self.shape
        if shape.hidden_size % shape.num_attention_heads:
            raise ValueError(
                f'`hidden_size` {shape.hidden_size} must be a multiple of `num_attention_heads` {shape.num_attention_heads}'
            )
        rotary = int(shape.hidden_size // shape.num_attention_heads * shape.rotary_pct)
        if rotary < 2 or rotary % 2:
            raise ValueError(
                f'`rotary_pct` rotates {rotary} dimensions of a head; it must be an even number of at least 2'
            )

    @property
    def shape(self) -> ModelShape:
        """The model's sizes, from the table or from the custom keys."""
        if self.name != 'custom':
            return MODEL_SHAPES[self.name]
        given = {key: value for key in SHAPE_KEYS if (value := getattr(self, key)) is not None}
        given.setdefault('intermediate_size', 4 * given['hidden_size'])
        return ModelShape(**given)


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
    sets: Annotated[tuple[EvalSetConfig, ...], Field(strict=False)] = ()
    """The sets, each evaluated whole, token for token the same each time."""


class CheckpointConfig(Section):
    """When to save and what to keep."""

    interval: Duration = Duration(10, 'min')
    """How often: `sec`, `min`, `h`, `ba` or `tok`."""
    keep: Annotated[int, Field(gt=0, le=1_000_000)] = 3
    """The newest checkpoints to keep; a stage's last one is kept besides."""


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
    data: DataConfig = DataConfig()
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
