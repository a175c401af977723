"""What a start writes into a run folder besides the records, as far as it is read again: for the page and the status."""

from typing import Annotated

from pydantic import Field

from rewarm.formats.records import LARGEST_NUMBER, Count, Text
from rewarm.formats.strict_json import Record

__all__ = [
    'Environment',
    'Evaluations',
    'Model',
    'PlanFile',
    'PlannedStage',
    'PlannedStream',
    'RunFile',
    'RunSet',
    'RunStage',
    'RunStream',
    'Schedule',
    'Training',
]

Rate = Annotated[float, Field(ge=0, le=LARGEST_NUMBER)]
Place = Annotated[str, Field(strict=True, max_length=4096)] | None
"""A folder or a URL."""
Seed = Annotated[int, Field(ge=0, lt=1 << 64)]


class Schedule(Record):
    """A curve of learning rates, as it is shown."""

    name: Text | None = None
    lr: Rate | Text | None = None
    """``current`` in a run file: the rate that the stage before ended with."""
    min_lr: Rate | Text | None = None
    warmup_tokens: Count | None = None


class PlannedStream(Record):
    """A stream of a stage's data."""

    name: Text
    share: Text = ''
    """A fraction, such as ``3/4``."""


class PlannedStage(Record):
    """A stage as it was planned; old plans may lack all but its name."""

    name: Text
    tokens: Count | None = None
    batches: Count | None = None
    schedule: Schedule | None = None
    streams: list[PlannedStream] = Field(default_factory=list[PlannedStream])
    optimizer_state: Text | None = None


class PlanFile(Record):
    """``plan.json``."""

    tokens_per_batch: Count | None = None
    stages: list[PlannedStage] = Field(default_factory=list[PlannedStage])


class Environment(Record):
    """``environment.json``: where the newest start ran."""

    versions: dict[Text, Text | None] = Field(default_factory=dict[str, str | None])
    """Of packages, by name."""
    python: Text | None = None
    host: Text | None = None
    device: Text | None = None
    device_kind: Text | None = None
    world_size: Count | None = None
    threads: Count | None = None
    command: list[Text] = Field(default_factory=list[str])
    commit: Text | None = None
    """Of rewarm, where it runs from a checkout."""


class Model(Record):
    """The model of a run file."""

    name: Text | None = None
    init_from: Text | None = None
    hidden_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    intermediate_size: Count | None = None
    vocab_size: Count | None = None


class RunStream(Record):
    """A stream of a stage in a run file."""

    name: Text
    remote: Place = None
    local: Place = None


class Training(Record):
    """What a stage of a run file trains on."""

    streams: list[RunStream] = Field(default_factory=list[RunStream])


class RunStage(Record):
    """A stage of a run file."""

    name: Text
    train: Training = Training()
    schedule: Schedule | None = None
    optimizer_state: Text | None = None


class RunSet(Record):
    """An evaluation set of a run file."""

    name: Text
    remote: Place = None
    local: Place = None
    role: Text | None = None
    of: list[Text] | None = None
    """The streams that it belongs to, where they are named."""


class Evaluations(Record):
    """The evaluation sets of a run file."""

    sets: list[RunSet] = Field(default_factory=list[RunSet])


class RunFile(Record):
    """``config.yaml``."""

    run_name: Text | None = None
    run_folder: Place = None
    tokenizer: Text | None = None
    seed: Seed | None = None
    max_seq_len: Count | None = None
    model: Model | None = None
    stages: list[RunStage] = Field(default_factory=list[RunStage])
    eval: Evaluations = Evaluations()
