"""What a resume restores, in one place.

Position is the only state besides tensors: how many batches of the run are behind it. Timestamp, data, rate and
random numbers are functions of that number and of the run file; none of them is saved.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from composer import Algorithm, Event, Logger, State, Timestamp
from composer.utils import dist
from safetensors import safe_open
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from rewarm.config.errors import UserError
from rewarm.config.plan import Plan, StagePlan, check_stage_change, identity
from rewarm.config.schema import RunConfig
from rewarm.resume.checkpoint import Checkpoint

__all__ = [
    'Restore',
    'RunState',
    'describe_run',
    'load_model',
    'load_optimizer',
    'optimizer_tensors',
    'previous_lr',
    'refuse_changes',
    'state_without_training',
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


def state_without_training(source: str) -> dict[str, Any]:
    """``state.json`` of weights that come from elsewhere: no stage, no rate, no optimizer."""
    nothing = {'stage': None, 'start_batch': 0, 'start_tokens': 0, 'lr': None, 'lr_before': None, 'optimizer': None}
    return {'run_name': source, 'tokens': 0, 'lr': None, 'stages': [], 'algorithms': {'Rewarm': nothing}}


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
    """Restores AdamW's moments and step counts; rate, betas and decay stay as the run file has them.

    The files may change or go afterwards: the moments are memory of this process, on their parameters' devices.
    """
    index = {name: i for i, name in enumerate(_optimizer_names(model, optimizer))}
    device = {name: parameter.device for name, parameter in model.named_parameters()}
    per_parameter: dict[int, dict[str, Tensor]] = {}
    for path in checkpoint.optimizer_files:
        # By default a tensor is a view of the mapped file, for as long as it lives; AdamW would keep it for the run.
        with safe_open(path, framework='pt', backend='pread') as file:
            for key in file.keys():
                name, _, what = key.rpartition('.')
                value = file.get_tensor(key)
                # The step count goes where the optimizer wants it; the rest at once, so that the host holds one tensor.
                per_parameter.setdefault(index[name], {})[what] = value if what == 'step' else value.to(device[name])
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
