"""Callbacks that write a line for each batch and each evaluation, and show progress."""

import math
import sys
import time
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from composer import Callback, Event, Logger, State, Trainer
from composer.utils import dist
from tqdm import tqdm

from rewarm.config.plan import Plan, StagePlan
from rewarm.config.schema import EvalSetConfig, RunConfig
from rewarm.formats.card import DatasetCard
from rewarm.formats.records import BATCHES, EVALUATIONS, EVENTS, Damage, Evaluation
from rewarm.report.records import JsonLines

__all__ = [
    'EvalRecords',
    'TrainRecords',
    'cut_back',
    'lacks_evaluation',
    'recent_losses',
    'reopen_stage',
    'sync_records',
]


class Order(Protocol):
    """The order of samples, as far as this module reads it."""

    def ids(self, begin: int, end: int) -> np.ndarray:
        """Sample ids number ``begin`` to ``end`` of the stage, int64."""
        ...

    def counts(self, samples: int) -> dict[str, int]:
        """Samples of each stream among the first ``samples`` of the stage."""
        ...


def cut_back(run_folder: Path, batch: int, *, tell: Callable[[Damage], object] = lambda _: None) -> int:
    """Removes metrics and evaluations after ``batch``, which the run is about to repeat, and lines that are damaged.

    Args:
        run_folder (Path): The run's folder.
        batch (int): Batches of the run that are kept.
        tell (Callable): Gets the damaged lines of each file that has some, also of the events, where they stay.

    Returns:
        int: Batches that were trained and are lost.

    Raises:
        DamagedFile: If one of the files is no regular file.
    """
    evaluations, batches, events = (
        Damage(str(run_folder / name)) for name in ('evals.jsonl', 'metrics.jsonl', 'events.jsonl')
    )
    JsonLines(run_folder / 'events.jsonl', EVENTS).read(events)
    JsonLines(run_folder / 'evals.jsonl', EVALUATIONS).cut(lambda line: line.batch <= batch, evaluations)
    lost = JsonLines(run_folder / 'metrics.jsonl', BATCHES).cut(lambda line: line.batch <= batch, batches)
    for damage in (evaluations, batches, events):
        if damage.lines:
            tell(damage)
    return lost


def reopen_stage(run_folder: Path, stage: StagePlan, batch: int) -> None:
    """What was evaluated at ``batch`` as the end of a stage that goes on there is within it."""
    lines = JsonLines(run_folder / 'evals.jsonl', EVALUATIONS)
    if stage.start_batch < batch < stage.end_batch:
        lines.amend(lambda line: (line.stage, line.batch, line.when) == (stage.name, batch, 'end'), when='interval')


def sync_records(run_folder: Path) -> None:
    """Forces metrics and evaluations to the disk: no checkpoint may be newer than the records that lead to it."""
    JsonLines(run_folder / 'metrics.jsonl', BATCHES).sync()
    JsonLines(run_folder / 'evals.jsonl', EVALUATIONS).sync()


def recent_losses(run_folder: Path, stage: str, count: int) -> list[tuple[float | None, bool]]:
    """The loss of each of a stage's last batches, ``None`` if it was no number, and whether the batch was skipped."""
    lines = JsonLines(run_folder / 'metrics.jsonl', BATCHES).read()
    recent = [line for line in lines if line.stage == stage][-count:]
    return [(line.loss if math.isfinite(line.loss) else None, line.skipped) for line in recent]


def lacks_evaluation(run_folder: Path, config: RunConfig, stage: StagePlan, batch: int) -> bool:
    """Whether a set of the run file has no record for the weights of ``batch`` in ``stage``."""
    recorded = _sets_recorded(JsonLines(run_folder / 'evals.jsonl', EVALUATIONS).read(), stage, batch)
    return not recorded >= {each.name for each in config.eval.sets}


def _sets_recorded(lines: Iterable[Evaluation], stage: StagePlan | None, batch: int) -> set[str]:
    return {line.set for line in lines if stage is not None and (line.stage, line.batch) == (stage.name, batch)}


class TrainRecords(Callback):
    """Writes ``metrics.jsonl``, draws the progress bar, and checks that the batch holds the samples it should.

    Args:
        run_folder (Path): The run's folder.
        stage (StagePlan): The stage being trained.
        plan (Plan): The whole run's.
        order (Order): The stage's order of samples.
        grad_norm (Callable[[], float]): Gradient norm of the batch, before clipping.
        skipped (Callable[[], bool]): Whether the batch was left out of training.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        stage: StagePlan,
        plan: Plan,
        order: Order,
        grad_norm: Callable[[], float],
        skipped: Callable[[], bool] = lambda: False,
    ) -> None:
        self.lines = JsonLines(run_folder / 'metrics.jsonl', BATCHES)
        self.stage = stage
        self.plan = plan
        self.order = order
        self.grad_norm = grad_norm
        self.skipped = skipped
        self._started = time.monotonic()
        self._ids: np.ndarray = np.empty(0, np.int64)
        self._bar: tqdm | None = None

    def fit_start(self, state: State, logger: Logger) -> None:
        """Opens the bar and starts the clock."""
        if dist.get_global_rank() == 0:
            interactive = sys.stderr.isatty()
            self._bar = tqdm(
                total=self.stage.batches,
                initial=int(state.timestamp.batch) - self.stage.start_batch,
                desc=self.stage.name,
                unit='ba',
                dynamic_ncols=interactive,
                mininterval=0.5 if interactive else 30,
                smoothing=0.05,
            )
        self._started = time.monotonic()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Compares the samples that were loaded with those that the order names.

        Raises:
            RuntimeError: If they differ: the run would silently train on other data than it says.
        """
        begin = (int(state.timestamp.batch) - self.stage.start_batch) * self.plan.global_batch_size
        self._ids = self.order.ids(begin, begin + self.plan.global_batch_size)
        share = self.plan.global_batch_size // dist.get_world_size()
        first = dist.get_global_rank() * share
        expected, loaded = self._ids[first : first + share], state.batch['sample_ids'].cpu().numpy()
        if not np.array_equal(expected, loaded):
            raise RuntimeError(
                f'batch {int(state.timestamp.batch)} holds samples {loaded[:4].tolist()}... instead of '
                f'{expected[:4].tolist()}...: the data loader is out of step'
            )

    def batch_end(self, state: State, logger: Logger) -> None:
        """Writes the batch's line."""
        seconds = time.monotonic() - self._started
        batch = int(state.timestamp.batch)
        inside = batch - self.stage.start_batch
        record = {
            'stage': self.stage.name,
            'batch': batch,
            'tokens': batch * self.plan.tokens_per_batch,
            'stage_tokens': inside * self.plan.tokens_per_batch,
            'lr': state.optimizers[0].param_groups[0]['lr'],
            'loss': state.total_loss_dict['loss/train/total'],
            'grad_norm': self.grad_norm(),
            'tokens_per_second': round(self.plan.tokens_per_batch / seconds, 1),
            'seconds': round(seconds, 4),
            'samples': self.order.counts(inside * self.plan.global_batch_size),
            'sample_ids_crc32': zlib.crc32(self._ids.astype('<i8').tobytes()),
            'time': datetime.now(UTC).isoformat(timespec='milliseconds'),
            **({'skipped': True} if self.skipped() else {}),
        }
        logger.log_metrics({f'train/{key}': record[key] for key in ('lr', 'loss', 'grad_norm', 'tokens_per_second')})
        if dist.get_global_rank() == 0:
            self.lines.append([record])
        if self._bar is not None:
            speed = f'{record["tokens_per_second"]:,.0f} tok/s'
            self._bar.set_postfix_str(f'loss {record["loss"]:.4f}, lr {record["lr"]:.2e}, {speed}', refresh=False)
            self._bar.update()

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Restarts the clock: evaluations and saves are no part of a batch's time. Last of the callbacks."""
        self._started = time.monotonic()

    def close(self, state: State, logger: Logger) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


class EvalRecords(Callback):
    """Writes ``evals.jsonl``, all sets of one evaluation together, and says which evaluations are due.

    Args:
        run_folder (Path): The run's folder.
        stage (StagePlan): The stage being trained.
        previous (StagePlan | None): The one before; what is evaluated at its end is recorded for both.
        plan (Plan): The whole run's.
        sets (dict): Settings and dataset card (or None) of each set, by name.
        stopping (Callable[[], bool]): Whether the run was told to go: nothing is evaluated in a grace period.
    """

    def __init__(
        self,
        run_folder: Path,
        *,
        stage: StagePlan,
        previous: StagePlan | None,
        plan: Plan,
        sets: dict[str, tuple[EvalSetConfig, DatasetCard | None]],
        stopping: Callable[[], bool],
    ) -> None:
        self.lines = JsonLines(run_folder / 'evals.jsonl', EVALUATIONS)
        self.stage = stage
        self.previous = previous
        self.plan = plan
        self.sets = sets
        self.stopping = stopping
        self._found: dict[str, dict[str, Any]] = {}

    def due(self, state: State, event: Event) -> bool:
        """Composer's ``eval_interval``: within the stage and at its end, and never for a run that was told to go.

        A callable, because a time string would also evaluate when a preempted run stops.
        """
        return event == Event.BATCH_END and not self.stopping() and self._is_mark(int(state.timestamp.batch))

    def missing_at(self, batch: int) -> list[str]:
        """The sets that should have been evaluated for this stage with the weights of ``batch`` and were not; asked on rank 0.

        Where the previous stage's end has the same weights, its numbers are recorded, and nothing is to be evaluated.
        """
        if not self.sets or not (batch == self.stage.start_batch or self._is_mark(batch)):
            return []
        records = self.lines.read()
        missing = set(self.sets) - _sets_recorded(records, self.stage, batch)
        known = missing & _sets_recorded(records, self.previous, batch)
        if known:
            self.lines.append(
                {**asdict(record), **self._where(self.stage, batch), **self._what(self.stage, record.set)}
                for record in records
                if self.previous and (record.stage, record.batch) == (self.previous.name, batch)
                if record.set in known
            )
        return [name for name in self.sets if name in missing - known]

    def evaluate(self, trainer: Trainer, sets: Collection[str]) -> None:
        """Evaluates some of the Trainer's sets where it is, and writes them."""
        every = list(trainer.state.evaluators)
        trainer.state.evaluators = [each for each in every if each.label in sets]
        trainer.eval()
        trainer.state.evaluators = every
        self.write(int(trainer.state.timestamp.batch))

    def eval_end(self, state: State, logger: Logger) -> None:
        """Collects one set's loss."""
        name = state.dataloader_label
        assert name is not None
        metrics = state.eval_metrics[name]
        loss, targets = float(metrics['loss'].compute()), int(metrics['targets'].compute())
        _, card = self.sets[name]
        # Bits of the set's targets over the bytes of the text they encode; the card counts both.
        bits = loss / math.log(2) * card.tokens / card.bytes if card and card.bytes else None
        self._found[name] = {
            'set': name,
            'loss': loss,
            'perplexity': math.exp(min(loss, 700)),
            'bits_per_byte': bits,
            'tokens_evaluated': targets,
        }

    def eval_after_all(self, state: State, logger: Logger) -> None:
        """Writes the sets of an evaluation during training."""
        self.write(int(state.timestamp.batch))

    def write(self, batch: int) -> None:
        """Writes the collected sets for the weights of ``batch``."""
        found, self._found = list(self._found.values()), {}
        if dist.get_global_rank() != 0 or not found:
            return
        stages = [self.stage]
        if batch == self.stage.start_batch and self.previous is not None:
            stages.insert(0, self.previous)
        recorded = self.lines.read()  # of a set that was there before another was added
        self.lines.append(
            {**self._where(stage, batch), **self._what(stage, record['set']), **record}
            for stage in stages
            for record in found
            if record['set'] not in _sets_recorded(recorded, stage, batch)
        )

    def _where(self, stage: StagePlan, batch: int) -> dict[str, Any]:
        tokens = self.plan.tokens_per_batch
        when = 'start' if batch == stage.start_batch else 'end' if batch == stage.end_batch else 'interval'
        return {
            'stage': stage.name,
            'batch': batch,
            'tokens': batch * tokens,
            'stage_tokens': (batch - stage.start_batch) * tokens,
            'when': when,
        }

    def _what(self, stage: StagePlan, name: str) -> dict[str, Any]:
        """What a set is when the run begins, and in a stage."""
        return {'role': self.sets[name][0].role, 'kind': self.plan.eval_sets[name][stage.index]}

    def _is_mark(self, batch: int) -> bool:
        inside = batch - self.stage.start_batch
        return batch == self.stage.end_batch or (inside > 0 and inside % self.plan.eval_interval_batches == 0)
