"""Run folders made by formula: two stages, a preemption and a hard kill, shaped like the demo's own."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from rewarm.buckets.bucket import open_bucket
from tests.buckets.servers import BUCKET, S3Server

TOKENS_PER_BATCH = 1024
OLD_BATCHES = 1000
NEW_BATCHES = 780
EVERY = 40
UPSTREAM = 'runs/demo-rewarm'
"""The run whose first stage the others began from."""
BEGAN = datetime(2026, 11, 2, 9, 0, tzinfo=UTC)

# role: (peak rate, rise of the old loss, its end minus its start, new loss at the end)
SHAPES = {
    'rewarm': (4e-3, 1.18, 0.95, 4.126),
    'constant': (4e-4, 0.62, 0.61, 4.395),
    'scratch': (4e-3, 0.0, 0.0, 4.306),
    'replay': (4e-3, 0.54, 0.10, 4.178),
    'same-data': (4e-3, 0.32, -0.17, 5.6),
}


def rate(role: str, stage: int, n: int, total: int) -> float:
    """The learning rate of the n-th batch (0-based) of a stage."""
    peak = 4e-3 if stage == 0 else SHAPES[role][0]
    if stage == 1 and role == 'constant':
        return peak
    warmup = 16
    if n < warmup:
        return peak * n / warmup
    return 0.1 * peak + 0.45 * peak * (1 + math.cos(math.pi * (n - warmup) / (total - warmup)))


def losses(role: str, stage: int, share: float) -> tuple[float, float]:
    """(old, new) validation loss at a share of a stage."""
    if stage == 0:
        return 3.647 + 4.2 * math.exp(-6 * share) - 4.2 * math.exp(-6) * share, 5.83 + 2.0 * math.exp(-6 * share)
    _, rise, end, new_end = SHAPES[role]
    if role == 'scratch':
        return 5.167 + 2.67 * math.exp(-12 * share), new_end + 3.5 * (math.exp(-7 * share) - math.exp(-7))
    old = 3.647 + rise * (1 - math.exp(-20 * share)) + (end - rise) * share
    speed = 20 if role == 'constant' else 7
    left = (math.exp(-speed * share) - math.exp(-speed)) / (1 - math.exp(-speed))
    return old, new_end + (5.83 - new_end) * left


def write_run(folder: Path, role: str = 'rewarm', *, name: str | None = None, stop: int | None = None) -> Path:
    """Writes a run folder; ``stop`` ends the run after so many batches of its last stage.

    The re-warmed run has both stages; the other arms began from its checkpoint and have only the second.
    """
    folder.mkdir(parents=True)
    stages = [('code', 0, OLD_BATCHES)] if role == 'rewarm' else []
    stages.append(('code again' if role == 'same-data' else 'prose', 1, NEW_BATCHES))
    metrics, evals, plan, batch = [], [], [], 0
    for stage, kind, total in stages:
        plan.append(_plan(role, stage, kind, total, batch))
        for n in range(total + 1):
            if stop is not None and kind == 1 and n > stop:
                break
            if n:
                metrics.append(_metrics_line(role, stage, kind, n, total, batch + n))
            if n % EVERY == 0 or n in (4, 8, 16, total):
                when = 'start' if n == 0 else 'end' if n == total else 'interval'
                evals += _eval_lines(role, stage, kind, n, total, batch + n, when)
        batch += total
    _write_lines(folder / 'metrics.jsonl', metrics)
    _write_lines(folder / 'evals.jsonl', evals)
    _write_lines(folder / 'events.jsonl', _events(role, metrics))
    (folder / 'plan.json').write_text(json.dumps({'tokens_per_batch': TOKENS_PER_BATCH, 'stages': plan}))
    (folder / 'environment.json').write_text(json.dumps(ENVIRONMENT))
    start = 'scratch' if role in ('rewarm', 'scratch') else f'checkpoint:{UPSTREAM}/checkpoints/ba{OLD_BATCHES:08d}'
    (folder / 'config.yaml').write_text(
        f'run_name: {name or "demo-" + role}\nrun_folder: {UPSTREAM if role == "rewarm" else folder}\n'
        f'seed: 17\ntokenizer: demo/tokenizer.json\nmodel: {{name: custom, init_from: {start}}}\n',
    )
    return folder


ENVIRONMENT = {
    'versions': {'python': '3.11.7', 'torch': '2.13.0+cpu', 'mosaicml': '0.32.1', 'mosaicml-streaming': '0.13.0'},
    'host': 'laptop',
    'device': 'cpu',
    'world_size': 1,
}


def _plan(role: str, stage: str, kind: int, total: int, batch: int) -> dict[str, Any]:
    tokens = total * TOKENS_PER_BATCH
    old = {'name': 'code', 'share': '1', 'samples': total * 8, 'tokens': tokens}
    streams = [old]
    if kind == 1 and role != 'same-data':
        streams = [{'name': 'prose', 'share': '1', 'samples': total * 8, 'tokens': tokens}]
        if role == 'replay':
            streams[0]['share'] = '3/4'
            streams.append({**old, 'share': '1/4'})
    start = batch * TOKENS_PER_BATCH
    schedule = {'name': 'constant' if role == 'constant' else 'cosine', 'lr': SHAPES[role][0], 'warmup_tokens': 16384}
    return {
        'name': stage,
        'tokens': tokens,
        'batches': total,
        'start_tokens': start,
        'end_tokens': start + tokens,
        'schedule': schedule,
        'streams': streams,
        'optimizer_state': 'reset',
    }


def _metrics_line(role: str, stage: str, kind: int, n: int, total: int, batch: int) -> dict[str, Any]:
    old, new = losses(role, kind, n / total)
    wobble = 0.12 * math.sin(12.9898 * batch) * math.cos(78.233 * n)
    return {
        'stage': stage,
        'batch': batch,
        'tokens': batch * TOKENS_PER_BATCH,
        'stage_tokens': n * TOKENS_PER_BATCH,
        'lr': rate(role, kind, n - 1, total),
        'loss': (old if kind == 0 or role == 'same-data' else new) + wobble,
        'grad_norm': 1.0,
        'tokens_per_second': 17000.0 + 500 * math.sin(n),
        'seconds': TOKENS_PER_BATCH / 17000,
        'samples': {'code' if kind == 0 else 'prose': n * 8},
    }


def _eval_lines(role: str, stage: str, kind: int, n: int, total: int, batch: int, when: str) -> list[dict[str, Any]]:
    pair = losses(role, kind, n / total)
    return [
        {
            'stage': stage,
            'batch': batch,
            'tokens': batch * TOKENS_PER_BATCH,
            'stage_tokens': n * TOKENS_PER_BATCH,
            'set': name,
            'role': part,
            'loss': loss,
            'perplexity': math.exp(loss),
            'bits_per_byte': loss / math.log(2) / 2.9,
            'tokens_evaluated': 32768,
            'when': when,
        }
        for name, part, loss in (('code', 'upstream', pair[0]), ('prose', 'downstream', pair[1]))
    ]


def _events(role: str, metrics: list[dict[str, Any]]) -> list[dict[str, Any]]:
    last = metrics[-1] if metrics else {'batch': 0}
    events: list[dict[str, Any]] = []

    def add(after: float, event: str, batch: int, **fields: Any) -> None:
        time = (BEGAN + timedelta(seconds=after)).isoformat()
        line = next((line for line in metrics if line['batch'] == batch), {'stage': None})
        tokens = batch * TOKENS_PER_BATCH
        events.append(
            {'time': time, 'event': event, 'batch': batch, 'tokens': tokens, 'stage': line['stage'], **fields}
        )

    add(0, 'run_start', 0)
    add(1, 'stage_start', 0)
    if role == 'rewarm' and last['batch'] > 1300:
        add(36, 'save', 600, path='checkpoints/ba00000600', seconds=0.4, bytes=7_400_000)
        add(60, 'run_start', 0)  # killed without a word somewhere after batch 600
        add(64, 'resume', 600, **{'from': 'ba00000600', 'lost_batches': 41})
        add(90, 'stage_start', 1000)
        add(110, 'signal', 1300, signal='SIGTERM')
        add(110.4, 'save', 1300, path='checkpoints/ba00001300', seconds=0.4, bytes=7_400_000)
        add(110.5, 'preempted', 1300)
        add(118, 'run_start', 1300)
        add(122.5, 'resume', 1300, **{'from': 'ba00001300', 'lost_batches': 0})
    add(150, 'save', last['batch'], path='checkpoints/last', seconds=0.4, bytes=7_400_000)
    add(151, 'finished', last['batch'])
    return events


def _write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """Makes a run folder under ``tmp_path``: ``make_run('rewarm', name=..., stop=...)``."""

    def make(role: str = 'rewarm', **kwargs: Any) -> Path:
        return write_run(tmp_path / 'runs' / (kwargs.get('name') or f'demo-{role}').replace('/', '_'), role, **kwargs)

    return make


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """A real S3 server; puts a run folder into it."""
    server = S3Server(tmp_path / 's3')
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)

    def put(folder):
        url = f's3://{BUCKET}/runs/story'
        store = open_bucket(url)
        for path in sorted(folder.rglob('*')):
            if path.is_file():
                store.upload(path, f'{url}/{path.relative_to(folder)}')
        return url

    yield put
    server.stop()
