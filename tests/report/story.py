"""Tells the story of a run to the second and writes the run folder that it would have left, as the trainer does.

The story keeps its own account of where the time went, second by second, without looking at what it writes.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.report.conftest import BEGAN, TOKENS_PER_BATCH

CHECKPOINT_BYTES = 4_000_000


class Story:
    """A run of two stages, of which each batch takes a second.

    Args:
        folder (Path): The run folder to write.
        stages (dict[str, int]): Batches of each stage, in order.
    """

    def __init__(self, folder: Path, stages: dict[str, int] | None = None, began: datetime = BEGAN) -> None:
        self.folder = folder
        self.stages = stages or {'code': 1000, 'prose': 800}
        self.now = began
        self.truth: Counter[str] = Counter()
        self.metrics: list[dict[str, Any]] = []
        self.events: list[dict[str, Any]] = []
        self.batch = 0
        self.saved: list[int] = []
        self.pending: list[tuple[datetime, dict[str, Any]]] = []
        self.lost = 0
        self.bucket = False
        (folder / 'checkpoints').mkdir(parents=True)

    def stage(self, batch: int | None = None) -> str:
        end = 0
        for name, batches in self.stages.items():
            end += batches
            if (self.batch if batch is None else batch) < end:
                return name
        return name

    def event(self, event: str, **fields: Any) -> None:
        at = {'batch': self.batch, 'tokens': self.batch * TOKENS_PER_BATCH, 'stage': self.stage()}
        self.events.append({'time': self.now.isoformat(timespec='milliseconds'), 'event': event, **at, **fields})

    def spend(self, kind: str, seconds: float) -> None:
        """Lets time pass; what a background thread finishes meanwhile is recorded then."""
        self.truth[kind] += seconds
        end = self.now + timedelta(seconds=seconds)
        for when, line in sorted(self.pending, key=lambda each: each[0]):
            if when <= end:
                self.pending.remove((when, line))
                self.now = when
                self._published(line)
        self.now = end

    def start(self, seconds: float = 20, *, first_batch: bool = True, began: datetime | None = None) -> Story:
        """A process begins (or began already), restores the newest checkpoint, and trains its first batch."""
        began = began or self.now
        self._go_on(0.6 * seconds)
        if first_batch:
            self.spend('starting', 0.4 * seconds)
            self.train(1)
            self.event('first_batch', seconds=(self.now - began).total_seconds(), peak_memory_bytes=10**9)
        return self

    def roll_back(self, seconds: float) -> Story:
        """Sees a spike and starts over from the newest checkpoint, in the same process."""
        self.event('rollback', reason='the loss is 9.1')
        self.pending.clear()
        self._go_on(0.5 * seconds)
        self.spend('starting', 0.5 * seconds)
        return self

    def _go_on(self, seconds: float) -> None:
        cut = [line for line in self.metrics if line['batch'] > (self.saved[-1] if self.saved else 0)]
        self.metrics = self.metrics[: len(self.metrics) - len(cut)]
        self.batch = self.metrics[-1]['batch'] if self.metrics else 0
        self.truth['training'] -= len(cut)
        self.truth['repeating'] += len(cut)
        self.spend('starting', seconds)
        self.event('run_start', world_size=1, host='laptop')
        if self.saved:
            self.event('resume', **{'from': f'ba{self.batch:08d}', 'where': 'disk', 'lost_batches': len(cut)})

    def train(self, batches: int) -> Story:
        for _ in range(batches):
            name = self.stage()
            if self.batch in (0, *self.ends()) and all(
                each['event'] != 'stage_start' or each['stage'] != name for each in self.events
            ):
                self.event('stage_start')
            self.spend('training', 1.0)
            self.batch += 1
            inside = self.batch - sum(
                n for key, n in self.stages.items() if list(self.stages).index(key) < list(self.stages).index(name)
            )
            self.metrics.append(
                {
                    'stage': name, 'batch': self.batch, 'tokens': self.batch * TOKENS_PER_BATCH,
                    'stage_tokens': inside * TOKENS_PER_BATCH, 'lr': 1e-3, 'loss': 4 + 1 / self.batch, 'grad_norm': 1.0,
                    'tokens_per_second': float(TOKENS_PER_BATCH), 'seconds': 1.0,
                    'time': self.now.isoformat(timespec='milliseconds'),
                }
            )  # fmt: skip
        return self

    def ends(self) -> list[int]:
        total, ends = 0, []
        for batches in self.stages.values():
            total += batches
            ends.append(total)
        return ends

    def save(self, seconds: float = 8, stall: float = 0.5, *, wait: bool = False) -> Story:
        """Copies, and is whole later unless the process is killed before; one that is in flight is waited for first."""
        at = {'batch': self.batch, 'tokens': self.batch * TOKENS_PER_BATCH, 'stage': self.stage(self.batch - 1)}
        in_flight = max([(when - self.now).total_seconds() for when, _ in self.pending], default=0.0)
        seconds += in_flight
        stall = seconds if wait else stall + in_flight
        self.pending.append((self.now + timedelta(seconds=seconds), {**at, 'seconds': seconds, 'stall_seconds': stall}))
        self.spend('saving', stall)
        return self

    def _published(self, line: dict[str, Any]) -> None:
        path = self.folder / 'checkpoints' / f'ba{line["batch"]:08d}'
        self.event('save', **line, path=str(path), bytes=CHECKPOINT_BYTES)
        self.saved.append(line['batch'])
        write_checkpoint(path)
        if self.bucket:
            self.event(
                'upload', path=str(path), bytes=CHECKPOINT_BYTES, seconds=3.0, url=f's3://bucket/run/{path.name}'
            )

    def evaluate(self, seconds: float = 15) -> Story:
        self.spend('other', seconds)
        return self

    def kill(self, seconds_stopped: float = 60) -> Story:
        """Dies without a word."""
        self.pending.clear()
        self.spend('stopped', seconds_stopped)
        return self

    def preempt(self, seconds_stopped: float = 60, signal: str = 'SIGTERM') -> Story:
        """Is told to go, saves and leaves."""
        self.event('signal', signal=signal)
        self.save(6, wait=True)
        self.event('preempted', signal=signal)
        self.spend('stopped', seconds_stopped)
        return self

    def finish(self) -> Story:
        self.save(6, wait=True)
        self.event('finished')
        return self

    def write(self) -> Path:
        """Writes the folder."""
        start, plan = 0, []
        for name, batches in self.stages.items():
            tokens = batches * TOKENS_PER_BATCH
            plan.append(
                {
                    'name': name,
                    'tokens': tokens,
                    'batches': batches,
                    'start_tokens': start,
                    'end_tokens': start + tokens,
                }
            )
            start += tokens
        (self.folder / 'plan.json').write_text(json.dumps({'tokens_per_batch': TOKENS_PER_BATCH, 'stages': plan}))
        (self.folder / 'config.yaml').write_text(f'run_name: story\nrun_folder: {self.folder}\n')
        (self.folder / 'environment.json').write_text(json.dumps({'world_size': 1, 'host': 'laptop'}))
        for name, lines in (('metrics', self.metrics), ('events', self.events)):
            (self.folder / f'{name}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
        return self.folder


def eventful(folder: Path, stages: dict[str, int] | None = None) -> Story:
    """All that a run can go through."""
    story = Story(folder, stages)
    story.bucket = True
    story.start().evaluate().train(299).save().train(50).kill(90).start().train(99)
    story.event('notice', cloud='aws', what='terminate', deadline_seconds=120)
    story.preempt(45, 'the notice of aws: terminate').start().train(600).event('spike', loss=9.0, action='skip')
    story.event('upload_failed', reason='<refused>', attempt=1, retry_in_seconds=2)
    story.save().train(50).event('rank_lost', rank=1, host='b', seconds=30.0)
    story.kill(30)
    story.event('fallback', path='checkpoints/ba00001000', reason='truncated', instead='ba00000400')
    return story.start().train(200)


def write_checkpoint(path: Path) -> None:
    """Writes a small folder with a manifest that fits its files."""
    path.mkdir(exist_ok=True)  # the same batch may be saved again
    files = {'model.safetensors': b'0' * 300, 'optimizer-0000.safetensors': b'1' * 600, 'state.json': b'{}'}
    for name, content in files.items():
        (path / name).write_bytes(content)
    described = {
        name: {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }
    (path / 'manifest.json').write_text(json.dumps({'format': 1, 'files': described}))
    (path.parent / 'latest').write_text(path.name + '\n')
