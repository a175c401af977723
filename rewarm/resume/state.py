"""What a resume restores, in one place.

Position is the only state besides tensors: how many batches of the run are behind it. Timestamp, data, rate and
random numbers are functions of that number and of the run file; none of them is saved.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from composer import Algorithm, Event, Logger, State, Timestamp
from composer.utils import dist
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn import Module
from torch.optim import Optimizer

from rewarm.config.changes import describe_data_change, identity
from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.fates import as_written, fixed_settings, stage_settings
from rewarm.config.plan import Plan, StagePlan
from rewarm.config.refusals import WEIGHTS
from rewarm.config.schema import RunConfig
from rewarm.formats.checkpoint import MANIFEST_FILE
from rewarm.resume.checkpoint import Checkpoint
from rewarm.resume.verification import MOMENTS

__all__ = [
    'Restore',
    'RunState',
    'describe_run',
    'load_model',
    'load_optimizer',
    'optimizer_tensors',
    'state_without_training',
    'timestamp_at',
]


EVAL_DATA = 'eval_data'
"""Among a checkpoint's settings: the fingerprints of evaluation sets."""


@dataclass
class RunState:
    """Where a run is, and what its algorithms remember.

    Args:
        batch (int): Batches of the run that are behind it.
        algorithms (dict): State of each algorithm by class name; JSON types.
        checkpoint (Checkpoint | None): Tensors still to be loaded; ``None`` when they are in memory already.
        stages (list[dict]): Identity of each stage begun so far, in order.
        weights (str | None): Hash of the weights that the run began with, where they are files.
        eval_data (dict[str, dict]): Fingerprint of each evaluation set so far, by name.
    """

    batch: int = 0
    algorithms: dict[str, dict[str, Any]] = field(default_factory=dict)
    checkpoint: Checkpoint | None = None
    stages: list[dict[str, Any]] = field(default_factory=list)
    weights: str | None = None
    eval_data: dict[str, dict[str, Any]] = field(default_factory=dict)

    def enter(self, stage: StagePlan, fingerprint: dict[str, Any], eval_data: dict[str, dict[str, Any]]) -> None:
        """Notes that ``stage`` is trained from here; a stage that had begun must find the data it had, and so must each set.

        Raises:
            UserError: If the stage's mix would now give other samples or another order, or a set's name stands for other data.
        """
        for name, now in eval_data.items():
            if changed := describe_data_change(self.eval_data.get(name, now), now):
                raise UserError(
                    f'eval set `{name}` was evaluated on other data before: {"; ".join(changed)}. Its numbers could not be '
                    'compared: give the new data a name of its own, or bring the old data back'
                )
        self.eval_data = {**self.eval_data, **eval_data}
        if len(self.stages) <= stage.index:
            lr_before = self.algorithms.get('Rewarm', {}).get('lr')
            self.stages = [*self.stages, {'start_batch': self.batch, 'lr_before': lr_before, 'mix': fingerprint}]
            return
        before = self.stages[stage.index]['mix']
        if changed := describe_data_change(before, fingerprint):
            raise UserError(
                f'stage `{stage.name}` has begun with other data: '
                + '; '.join(changed)
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
        'settings': {**fixed_settings(config), WEIGHTS: run_state.weights, EVAL_DATA: run_state.eval_data},
        'optimizer': stage_settings(config),
        'stages': begun,
        'algorithms': {'Rewarm': rewarm.state_dict()},
        'run_file': as_written(config),
    }


def state_without_training(source: str) -> dict[str, Any]:
    """``state.json`` of weights that come from elsewhere: no stage, no rate, no optimizer."""
    nothing = {'stage': None, 'start_batch': 0, 'start_tokens': 0, 'lr': None, 'lr_before': None, 'optimizer': None}
    return {'run_name': source, 'tokens': 0, 'lr': None, 'stages': [], 'algorithms': {'Rewarm': nothing}}


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
        UserError: If the file cannot be read, names or shapes differ, or a number is NaN or infinite.
    """
    targets, path = dict(model.state_dict()), checkpoint.model_file
    with _opened(path) as file, torch.no_grad():
        _check_names(set(file.keys()), set(targets), path)
        for name, target in targets.items():
            target.copy_(_read(file, name, target.shape, path))
            _check_numbers(target, name, path)


def load_optimizer(model: Module, optimizer: Optimizer, checkpoint: Checkpoint) -> None:
    """Restores AdamW's moments and step counts; rate, betas and decay stay as the run file has them.

    The files may change or go afterwards: the moments are memory of this process, on their parameters' devices.

    Raises:
        UserError: If a file cannot be read, its tensors are not those of the parameters, or a number is none that AdamW
            writes.
    """
    parameters, names = dict(model.named_parameters()), _optimizer_names(model, optimizer)
    expected = {f'{name}.{what}' for name in names for what in MOMENTS}
    per_parameter: dict[int, dict[str, Tensor]] = {i: {} for i in range(len(names))}
    index = {name: i for i, name in enumerate(names)}
    for path in checkpoint.optimizer_files:
        with _opened(path) as file:
            for key in file.keys():
                if key not in expected:
                    raise DamagedFile(
                        path, place=f'{key!r:.100}', what='is there twice, or of no parameter of this model'
                    )
                expected.remove(key)
                name, _, what = key.rpartition('.')
                parameter = parameters[name]
                value = _read(file, key, torch.Size() if what == 'step' else parameter.shape, path)
                # The step count goes where the optimizer wants it; the rest at once, so that the host holds one tensor.
                value = value if what == 'step' else value.to(parameter.device)
                _check_numbers(value, key, path, negative=what == 'exp_avg')
                per_parameter[index[name]][what] = value
    loaded = {i: state for i, state in per_parameter.items() if state}
    if loaded and expected:
        raise DamagedFile(checkpoint.path, place=MANIFEST_FILE, what=f'no optimizer file has {min(expected)}')
    # Passing the current groups back keeps the run file's hyperparameters.
    optimizer.load_state_dict({'state': loaded, 'param_groups': optimizer.state_dict()['param_groups']})


def optimizer_tensors(model: Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's tensors as '<parameter>.<key>'; nothing for a parameter that has not been stepped yet."""
    names = _optimizer_names(model, optimizer)
    states = optimizer.state_dict()['state']
    return {f'{names[i]}.{key}': value for i, state in states.items() for key, value in state.items()}


def _optimizer_names(model: Module, optimizer: Optimizer) -> list[str]:
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    return [name_of[id(parameter)] for group in optimizer.param_groups for parameter in group['params']]


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A file of tensors. By default each is a view of the mapped file; AdamW would keep it mapped for the whole run."""
    try:
        with safe_open(path, framework='pt', backend='pread') as file:
            yield file
    except SafetensorError as error:
        raise DamagedFile(path, what=f'it cannot be read as tensors ({error})') from None


def _check_names(there: set[str], wanted: set[str], path: Path) -> None:
    if there != wanted:
        odd = ', '.join(f'{name!r:.100}' for name in sorted(there ^ wanted)[:4])
        raise DamagedFile(path, what=f'{odd}: in the file or in the model of this run, not in both')


def _read(file: Any, name: str, shape: torch.Size, path: Path) -> Tensor:
    value: Tensor = file.get_tensor(name)
    if value.shape != shape or value.dtype != torch.float32:
        kind = str(value.dtype).removeprefix('torch.')
        raise DamagedFile(
            path, place=name, what=f'is {kind} of shape {tuple(value.shape)}, in this run float32 of {tuple(shape)}'
        )
    return value


def _check_numbers(value: Tensor, name: str, path: Path, *, negative: bool = True) -> None:
    least, greatest = value.aminmax() if value.numel() else (value.new_zeros(()),) * 2  # NaN where there is one
    if not math.isfinite(least) or not math.isfinite(greatest) or (least < 0 and not negative):
        raise DamagedFile(
            path,
            place=name,
            what=f'has numbers from {float(least)} to {float(greatest)}, which training cannot go on from. '
            'Remove this checkpoint to go on from the one before',
        )
