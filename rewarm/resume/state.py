"""What a resume restores, in one place.

Position is the only state besides tensors: how many batches of the run are behind it. Timestamp, data, rate and
random numbers are functions of that number and of the run file; none of them is saved.
"""

import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from composer import Algorithm, Callback, Event, Logger, State, Timestamp
from composer.utils import dist
from safetensors import safe_open
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from rewarm.config.duration import Duration
from rewarm.config.errors import UserError
from rewarm.config.plan import Plan, StagePlan, check_stage_change, identity
from rewarm.config.schema import RunConfig
from rewarm.resume import checkpoint as checkpoints
from rewarm.resume.checkpoint import Checkpoint
from rewarm.resume.preemption import StopRequest

__all__ = [
    'Checkpointing',
    'Restore',
    'RunState',
    'describe_run',
    'load_model',
    'load_optimizer',
    'previous_lr',
    'refuse_changes',
    'timestamp_at',
]


@dataclass
class RunState:
    """Where a run is, and what its algorithms remember.

    Args:
        batch (int): Batches of the run that are behind it.
        algorithms (dict): State of each algorithm by class name; JSON types.
        checkpoint (Checkpoint | None): Tensors still to be loaded; ``None`` when they are in memory already.
        stages (list[dict]): Identity of each stage begun so far, in order.
    """

    batch: int = 0
    algorithms: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)

    def enter(self, stage: StagePlan, fingerprint: dict[str, Any]) -> None:
        """Notes that ``stage`` is trained from here; a stage that had begun must find the data it had.

        Raises:
            UserError: If the stage's mix would now give other samples or another order.
        """
        if len(self.stages) <= stage.index:
            lr_before = self.algorithms.get('Rewarm', {}).get('lr')
            self.stages = [*self.stages, {'start_batch': self.batch, 'lr_before': lr_before, 'mix': fingerprint}]
            return
        before = self.stages[stage.index]['mix']
        changed = [key for key in fingerprint if fingerprint[key] != before.get(key)]
        if changed:
            raise UserError(
                f'stage `{stage.name}` has begun with other data: '
                + '; '.join(f'{key} was {before.get(key)}, now {fingerprint[key]}' for key in changed)
                + '. Bring the old data or setting back, or append a new stage for the new data'
            )


def describe_run(config: RunConfig, plan: Plan, run_state: RunState, state: State, rewarm: Algorithm) -> dict[str, Any]:
    """What ``state.json`` holds besides the position: JSON types only."""
    begun = [
        {**record, 'identity': identity(stage)} for record, stage in zip(run_state.stages, plan.stages, strict=False)
    ]
    return {
        'run_name': config.run_name,
        'tokens': int(state.timestamp.token),
        'lr': state.optimizers[0].param_groups[0]['lr'],
        'settings': _settings(config),
        'optimizer': _optimizer_settings(config),
        'stages': begun,
        'algorithms': {'Rewarm': rewarm.state_dict()},
    }


def previous_lr(saved: Checkpoint | None) -> float | None:
    """The rate before the run's first stage, for ``current`` there; ``None`` before the first checkpoint."""
    return None if saved is None else saved.state['stages'][0]['lr_before']


def refuse_changes(saved: Checkpoint | None, config: RunConfig, plan: Plan) -> None:
    """Compares the run file with what the checkpoint was trained with.

    What may change: later stages, evaluation, checkpoints, loggers, workers, microbatch; the current stage's budget as
    far as its past stays the same; the optimizer's settings where a stage begins.

    Raises:
        UserError: With every difference that is not allowed.
    """
    if saved is None:
        return
    found = _differences(saved.state['settings'], _settings(config))
    begun = saved.state['stages']
    if len(plan.stages) < len(begun):
        found.append(f'{len(begun)} stages have begun and the run file has {len(plan.stages)}')
    for record, stage in zip(begun, plan.stages, strict=False):
        old = record['identity']
        inside = saved.batch - record['start_batch']
        found += check_stage_change(old, stage, batch_in_stage=inside, ended=inside >= old['batches'])
    begins = any(stage.start_batch == saved.batch for stage in plan.stages)
    if not begins:
        found += _differences(saved.state['optimizer'], _optimizer_settings(config))
    if found:
        raise UserError(
            f'the run file does not go with {saved.path}:\n'
            + '\n'.join(f'  {text}' for text in found)
            + '\nPut the old values back, or start another run (another `run_folder`)'
        )


def _settings(config: RunConfig) -> dict[str, Any]:
    """What may never change within a run."""
    return {
        'seed': config.seed,
        'max_seq_len': config.max_seq_len,
        'global_train_batch_size': config.global_train_batch_size,
        'data.shuffle_block_size': config.data.shuffle_block_size,
        'precision': config.precision,
        'model.gelu': config.model.gelu,
        **{f'model.{key}': value for key, value in asdict(config.model.shape).items()},
    }


def _optimizer_settings(config: RunConfig) -> dict[str, Any]:
    """What may change where a stage begins."""
    optimizer = config.optimizer.model_dump(mode='json')
    return {'max_grad_norm': config.max_grad_norm, **{f'optimizer.{key}': value for key, value in optimizer.items()}}


def _differences(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    return [f'`{key}` was {old.get(key)}, now {value}' for key, value in new.items() if old.get(key) != value]


def timestamp_at(batch: int, stage: StagePlan, plan: Plan) -> Timestamp:
    """Composer's timestamp after ``batch`` batches of the run, inside ``stage``; one Composer epoch is one stage."""
    samples, tokens = plan.global_batch_size, plan.tokens_per_batch
    inside = batch - stage.start_batch
    return Timestamp(
        epoch=stage.index,
        batch=batch,
        sample=batch * samples,
        token=batch * tokens,
        batch_in_epoch=inside,
        sample_in_epoch=inside * samples,
        token_in_epoch=inside * tokens,
        epoch_in_iteration=stage.index,
        token_in_iteration=batch * tokens,
    )


class Restore(Algorithm):
    """Puts a Trainer where the run is, and seeds every batch by its number.

    An algorithm, not a callback, because it changes the training state. Pass it last: Composer runs algorithms in reverse
    at AFTER events, and ``Rewarm`` must find everything restored. It acts at AFTER_LOAD, when the model is on its device and not yet wrapped for DDP.

    Args:
        run_state (RunState): What to restore.
        timestamp (Timestamp): From :func:`timestamp_at`.
        model (Module): The raw model; under DDP ``state.model`` would have other names.
        seed (int): The run's seed.
    """

    def __init__(self, run_state: RunState, *, timestamp: Timestamp, model: Module, seed: int) -> None:
        self.run_state = run_state
        self.timestamp = timestamp
        self.model = model
        self.seed = seed

    def match(self, event: Event, state: State) -> bool:
        """Acts after Composer's own loading, and at the start of each batch."""
        return event in (Event.AFTER_LOAD, Event.BATCH_START)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Restores, or seeds the batch."""
        if event == Event.BATCH_START:
            torch.manual_seed(batch_seed(self.seed, int(state.timestamp.batch), dist.get_global_rank()))
            return
        if self.run_state.checkpoint is not None:
            load_model(self.model, self.run_state.checkpoint)
            load_optimizer(self.model, state.optimizers[0], self.run_state.checkpoint)
        for algorithm in state.algorithms:
            if (saved := self.run_state.algorithms.get(type(algorithm).__name__)) is not None:
                algorithm.load_state_dict(saved)
        state.timestamp = self.timestamp
        # Composer's interval helpers say "not yet" while there is no previous timestamp.
        state.previous_timestamp = self.timestamp


def batch_seed(seed: int, batch: int, rank: int) -> int:
    """Seed of one batch on one rank: 63 bits of a hash, so that neighbours share nothing."""
    digest = hashlib.blake2b(f'{seed}/{batch}/{rank}'.encode(), digest_size=8).digest()
    return int.from_bytes(digest, 'little') >> 1


def load_model(model: Module, checkpoint: Checkpoint) -> None:
    """Copies the parameters of ``checkpoint`` into ``model``, one tensor at a time.

    Raises:
        RuntimeError: If names or shapes differ.
    """
    with safe_open(checkpoint.model_file, framework='pt') as file:
        _copy(dict(model.state_dict()), file)


def load_optimizer(model: Module, optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Restores AdamW's moments and step counts; rate, betas and decay stay as the run file has them."""
    index = {name: i for i, name in enumerate(_optimizer_names(model, optimizer))}
    per_parameter: dict[int, dict[str, Tensor]] = {}
    for path in checkpoint.optimizer_files:
        with safe_open(path, framework='pt') as file:
            for key in file.keys():
                name, _, what = key.rpartition('.')
                per_parameter.setdefault(index[name], {})[what] = file.get_tensor(key)
    # Passing the current groups back keeps the run file's hyperparameters.
    optimizer.load_state_dict({'state': per_parameter, 'param_groups': optimizer.state_dict()['param_groups']})


def optimizer_tensors(model: Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's tensors as '<parameter>.<key>'; nothing for a parameter that has not been stepped yet."""
    names = _optimizer_names(model, optimizer)
    states = optimizer.state_dict()['state']
    return {f'{names[i]}.{key}': value for i, state in states.items() for key, value in state.items()}


def _optimizer_names(model: Module, optimizer: Optimizer) -> list[str]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group['params']]


def _copy(targets: Mapping[str, Tensor], file: Any) -> None:
    names = set(file.keys())
    if names != set(targets):
        raise RuntimeError(f'{sorted(names ^ set(targets))[:4]} are in the checkpoint or in the model, not in both')
    with torch.no_grad():
        for name, target in targets.items():
            source = file.get_tensor(name)
            if source.shape != target.shape:
                raise RuntimeError(
                    f'{name} has shape {tuple(source.shape)} in the checkpoint, {tuple(target.shape)} here'
                )
            target.copy_(source)


class EventLog(Protocol):
    """The run's event log, as far as this module writes it."""

    def at(self, *, batch: int, tokens: int, stage: str | None) -> None:
        """Says where the run is."""
        ...

    def record(self, event: str, **fields: Any) -> None:
        """Writes one event."""
        ...


class Checkpointing(Callback):
    """Saves when it is due, at a stage's end and when the run is told to go; stops the Trainer in the last case.

    Ranks agree at each batch's end, before evaluations, so that none is begun inside a grace period. Saves come at
    BATCH_CHECKPOINT, after the evaluations of that batch: a kill after a save neither loses nor repeats one.

    Args:
        root (Path): The run's ``checkpoints`` folder.
        stage (StagePlan): The stage being trained.
        plan (Plan): The whole run's.
        model (Module): The raw model.
        describe (Callable[[State], dict]): What ``state.json`` holds besides the position.
        interval (Duration): Batches, tokens or wall-clock time between saves.
        keep (int): Checkpoints to keep besides stage ends.
        stop (StopRequest): The signals.
        sync_records (Callable): Flushes the run's records to the disk; called before each save, since a checkpoint
            must never be newer than the metrics that lead to it.
        events (EventLog): ``events.jsonl``.
    """

    def __init__(
        self,
        root: Path,
        *,
        stage: StagePlan,
        plan: Plan,
        model: Module,
        describe: Callable[[State], dict[str, Any]],
        interval: Duration,
        keep: int,
        stop: StopRequest,
        sync_records: Callable[[], object],
        events: EventLog,
    ) -> None:
        self.root = root
        self.stage = stage
        self.plan = plan
        self.model = model
        self.describe = describe
        self.interval = interval
        self.keep = keep
        self.stop = stop
        self.sync_records = sync_records
        self.events = events
        self._saved_at = time.monotonic()
        self._due = False

    def batch_end(self, state: State, logger: Logger) -> None:
        """All ranks agree on whether to stop and whether to save: one small all-reduce a batch."""
        batch = int(state.timestamp.batch)
        self.events.at(batch=batch, tokens=int(state.timestamp.token), stage=self.stage.name)
        wishes = torch.tensor([self.stop.received is not None, self._is_due(batch)], dtype=torch.int32)
        wishes = state.device.tensor_to_device(wishes)
        dist.all_reduce(wishes, reduce_operation='MAX')
        stop, due = wishes.tolist()
        if stop and not self.stop.agreed:
            self.events.record('signal', signal=self.stop.received or 'on another rank')
        self.stop.agreed = bool(stop)
        self._due = bool(stop or due) or batch == self.stage.end_batch

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Saves, and ends the Trainer if the run was told to go."""
        if self._due:
            if dist.get_global_rank() == 0:
                self._save(state)
            dist.barrier()
            self._saved_at = time.monotonic()
        if self.stop.agreed:
            state.stop_training()

    def _is_due(self, batch: int) -> bool:
        if self.interval.is_time:
            # Wall clocks differ between ranks; the first one decides.
            return dist.get_global_rank() == 0 and time.monotonic() - self._saved_at >= self.interval.seconds
        return batch % self.interval.batches(self.plan.tokens_per_batch) == 0

    def _save(self, state: State) -> None:
        started = time.monotonic()
        self.sync_records()
        path = checkpoints.write(
            self.root,
            batch=int(state.timestamp.batch),
            model=self.model.state_dict(),
            optimizer=optimizer_tensors(self.model, state.optimizers[0]),
            state=self.describe(state),
        )
        size = sum(file.stat().st_size for file in path.iterdir())
        self.events.record('save', path=str(path), bytes=size, seconds=round(time.monotonic() - started, 3))
        for gone in checkpoints.retain(
            self.root, keep=self.keep, stage_ends={stage.end_batch for stage in self.plan.stages}
        ):
            self.events.record('delete', path=str(gone))
