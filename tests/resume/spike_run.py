"""A real run of a tiny model, as train.py makes one, in which a fault comes at a batch.

Called by test_spike_guard.py, and started by it on two ranks: then it prints what each of them saw, as a line of JSON.
"""

import copy
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from composer import Algorithm, Callback, DataSpec, Event, Time, Trainer
from composer.utils import dist, get_device

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.model.clip import ClipGradients
from rewarm.model.composer_model import PythiaForTraining
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights
from rewarm.report.metrics import TrainRecords, cut_back, recent_losses
from rewarm.report.records import Events
from rewarm.resume.spike_guard import RollBack, SpikeGuard
from rewarm.resume.spikes import WINDOW, SpikePolicy
from rewarm.resume.state import Restore, RunState, timestamp_at
from rewarm.start import on_rank_zero

NUM_BATCHES, FAULTY, SAVE_EVERY = 60, 50, 20
LR = 0.03
RUN = f"""
run_name: spikes
run_folder: /nowhere
max_seq_len: 8
global_train_batch_size: 8
device_train_microbatch_size: 2
tokenizer: none
model: {{name: custom, init_from: scratch, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, vocab_size: 40}}
stages:
  - name: only
    max_duration: {NUM_BATCHES}ba
    train: {{streams: [{{name: new, local: /nowhere/new}}]}}
    schedule: {{name: constant, lr: {LR}}}
"""


def batch_of(batch: int, bad: bool = False) -> dict[str, torch.Tensor]:
    """Numbers that count up, which are soon learned; or random ones, which then are a surprise."""
    generator = torch.Generator().manual_seed(batch)
    tokens = (torch.randint(40, (8, 1), generator=generator) + torch.arange(9)) % 40
    if bad:
        tokens = torch.randint(40, (8, 9), generator=generator)
    ids = torch.arange((batch - 1) * 8, batch * 8)
    return {'input_ids': tokens[:, :-1], 'labels': tokens[:, 1:], 'sample_ids': ids}


class Order:
    """Samples as they come."""

    def ids(self, begin: int, end: int) -> np.ndarray:
        return np.arange(begin, end)

    def counts(self, samples: int) -> dict[str, int]:
        return {'new': samples}


class Fault(Algorithm):
    """A weight, or a gradient, of the last rank that is no number, at some batches; `times` over, then never again."""

    def __init__(self, place: str, batches: list[int], times: int) -> None:
        self.place, self.batches, self.left = place, batches, times
        self.saved: torch.Tensor | None = None

    def match(self, event: Event, state: Any) -> bool:
        mine = dist.get_global_rank() == dist.get_world_size() - 1
        now = int(state.timestamp.batch) + 1 in self.batches and self.left > 0 and mine
        return now and event in (Event.BEFORE_TRAIN_BATCH, Event.AFTER_BACKWARD, Event.AFTER_TRAIN_BATCH)

    def apply(self, event: Event, state: Any, logger: Any) -> None:
        weight = next(state.model.parameters())
        if event == Event.AFTER_TRAIN_BATCH:
            self.left -= 1
            if self.saved is not None:
                weight.data.copy_(self.saved)
        elif self.place == 'weight' and event == Event.BEFORE_TRAIN_BATCH:
            self.saved = weight.data.clone()
            weight.data.fill_(float('nan'))
        elif self.place == 'gradient' and event == Event.AFTER_BACKWARD:
            weight.grad[0, 0] = float('inf')


class Snapshots(Callback):
    """The checkpoints of this run, in memory: the newest one's position, weights and AdamW's state."""

    def __init__(self, model: PythiaForTraining, optimizer: torch.optim.Optimizer) -> None:
        self.model, self.optimizer = model, optimizer
        self.batch = 0
        self.take()

    def take(self) -> None:
        self.tensors = copy.deepcopy((self.model.state_dict(), self.optimizer.state_dict()))

    def put_back(self) -> None:
        weights, moments = copy.deepcopy(self.tensors)
        self.model.load_state_dict(weights)
        self.optimizer.load_state_dict(moments)

    def batch_checkpoint(self, state: Any, logger: Any) -> None:
        if int(state.timestamp.batch) % SAVE_EVERY == 0:
            self.batch = int(state.timestamp.batch)
            self.take()


def train(
    folder: Path,
    *,
    spikes: dict[str, Any],
    faulty: list[int] | None = None,
    place: str = 'weight',
    times: int = 0,
    bad: list[int] | None = None,
    stop_at: int | None = None,
) -> dict[str, Any]:
    """Trains to the end, through rollbacks.

    Args:
        folder (Path): The run folder.
        spikes (dict): Settings that are not the default.
        faulty (list[int] | None): Batches with a fault of the machine.
        place (str): Where: ``weight`` or ``gradient``.
        times (int): How often it comes.
        bad (list[int] | None): Batches of surprising data, each time they are read.
        stop_at (int | None): Only up to this batch.

    Returns:
        dict: What happened, in JSON types; ``weights`` and ``steps`` of AdamW at the end.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'run-{dist.get_global_rank()}.yaml'
    path.write_text(RUN)
    config = load(path, [f'spikes.{key}={value}' for key, value in spikes.items()])
    plan = make_plan(config)
    stage = plan.stages[0]
    model = PythiaForTraining(Pythia(config.model.shape, gelu='tanh'))
    init_weights(model.pythia, seed=1)
    optimizer = build_optimizer(model.pythia, config.optimizer, lr=LR)
    events = Events(folder, active=dist.get_global_rank() == 0)
    snapshots = Snapshots(model, optimizer)
    fault = Fault(place, faulty or [], times)
    first = dist.get_global_rank() * 8 // dist.get_world_size()
    share = slice(first, first + 8 // dist.get_world_size())
    said: list[str] = []
    seen: dict[str, Any] = {'rollbacks': [], 'said': said}

    while True:
        batch = snapshots.batch
        on_rank_zero(lambda: cut_back(folder, batch))  # noqa: B023
        events.at(batch=batch, tokens=batch * plan.tokens_per_batch, stage=stage.name)
        clip = ClipGradients(model.pythia, config.max_grad_norm)
        policy = SpikePolicy(
            **config.spikes.model_dump(),
            history=on_rank_zero(lambda: recent_losses(folder, stage.name, WINDOW)),
            rollbacks=on_rank_zero(lambda: events.batches_of('rollback')),
        )
        guard = SpikeGuard(
            policy,
            grad_norm=lambda: clip.norm_on_device,  # noqa: B023
            tokens_per_batch=plan.tokens_per_batch,
            events=events,
            announce=said.append,
        )
        records = TrainRecords(
            folder,
            stage=stage,
            plan=plan,
            order=Order(),
            grad_norm=lambda: clip.norm,  # noqa: B023
            skipped=lambda: guard.skipped,  # noqa: B023
        )
        batches = [batch_of(each, each in (bad or [])) for each in range(batch + 1, NUM_BATCHES + 1)]
        restore = Restore(
            RunState(batch), timestamp=timestamp_at(batch, stage, plan), model=model.pythia, seed=config.seed
        )
        trainer = Trainer(
            model=model,
            optimizers=optimizer,
            train_dataloader=DataSpec(
                [{name: tensor[share] for name, tensor in each.items()} for each in batches],
                get_num_samples_in_batch=lambda each: len(each['input_ids']),
                get_num_tokens_in_batch=lambda each: each['input_ids'].numel(),
            ),
            max_duration=Time(stop_at or NUM_BATCHES, 'ba'),
            algorithms=[guard, clip, fault, restore],
            callbacks=[snapshots, records],
            device='cpu',
            device_train_microbatch_size=config.device_train_microbatch_size,
            precision='fp32',
            schedulers=None,
            spin_dataloaders=False,
            progress_bar=False,
            seed=config.seed,
        )
        try:
            trainer.fit()
        except RollBack as rollback:
            seen['rollbacks'].append([rollback.batch, str(rollback), snapshots.batch])
            where = {'batch': rollback.batch, 'tokens': rollback.tokens}
            events.record('rollback', **where, to=f'ba{snapshots.batch:08d}', reason=rollback.reason)
            trainer.close()
            snapshots.put_back()
            continue
        except UserError as error:
            seen['error'] = str(error)
        trainer.close()
        break
    moments = [each for state in optimizer.state.values() for each in state.values()]
    seen['weights'] = fingerprint(model.state_dict().values())
    seen['moments'] = fingerprint(moments)
    seen['steps'] = sorted({int(state['step']) for state in optimizer.state.values()})
    return seen


def fingerprint(tensors: Iterable[torch.Tensor]) -> str:
    return hashlib.sha256(b''.join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


if __name__ == '__main__':
    dist.initialize_dist(get_device('cpu'))
    outcome = train(Path(sys.argv[1]), **json.loads(sys.argv[2]))
    everyone = dist.all_gather_object(outcome)
    if dist.get_global_rank() == 0:
        Path(sys.argv[1], 'seen.json').write_text(json.dumps(everyone))
