"""A run folder with checkpoints and records, small enough for a test, and its mirror."""

from pathlib import Path

import torch

from rewarm.formats.records import BATCHES, EVENTS
from rewarm.report.records import JsonLines
from rewarm.resume.checkpoint import checkpoint_name, problems, write
from rewarm.resume.mirror import Mirror

URL = 's3://data/runs/tiny'


class Run:
    """One machine's disk."""

    def __init__(self, folder: Path, url: str = URL, **options) -> None:
        self.folder, self.root = folder, folder / 'checkpoints'
        self.root.mkdir(parents=True)
        self.events: list[tuple[str, dict]] = []
        self.said: list[str] = []
        self.mirror = Mirror(folder, url, record=self.record, say=self.said.append, **options)

    def record(self, event: str, **fields) -> None:
        self.events.append((event, fields))

    def recorded(self, event: str) -> list[dict]:
        return [fields for name, fields in self.events if name == event]

    def train(self, batch: int, *, values: int = 5, seed: int = 0) -> str:
        """Writes the records up to a batch and its checkpoint, as training does; returns the checkpoint's name."""
        metrics = JsonLines(self.folder / 'metrics.jsonl', BATCHES)
        done = len(metrics.read())
        metrics.append(metrics_line(number) for number in range(done + 1, batch + 1))
        JsonLines(self.folder / 'events.jsonl', EVENTS).append(
            [{'time': f'2026-01-01T00:00:{batch:02d}', 'event': 'save'}]
        )
        generator = torch.Generator().manual_seed(batch + 1000 * seed)
        tensors = {'a': torch.rand(values, generator=generator), 'b': torch.arange(3.0)}
        moments = {'b.exp_avg': torch.rand(3, generator=generator)}
        return write(self.root, batch=batch, model=tensors, optimizer=moments, state={'tokens': batch}).name

    def publish(self, batch: int, *, keep: int = 3, stage_ends=(), **options) -> str:
        name = self.train(batch, **options)
        self.mirror.publish(name, keep=keep, stage_ends=set(stage_ends))
        return name


def metrics_line(batch: int) -> dict:
    return {'stage': 's', 'batch': batch, 'tokens': batch, 'stage_tokens': batch, 'lr': 0.1, 'loss': 1 / batch}


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def name(batch: int) -> str:
    return checkpoint_name(batch)


def is_whole(path: Path) -> bool:
    return path.is_dir() and problems(path) == []
