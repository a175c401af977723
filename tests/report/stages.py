"""Run folders of a few batches, written by hand: stages with their streams, and the losses of each set at each stage's edges."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TOKENS = 1000
"""Tokens in a batch; a stage has two batches unless it says otherwise."""

Losses = Mapping[str, Mapping[str, Sequence[float | None]]]


def write_stages(
    folder: Path,
    stages: Mapping[str, Sequence[str] | Mapping[str, str]],
    losses: Losses,
    *,
    upstream: Sequence[str] = ('pile',),
    init_from: str = 'hf:pythia',
    sets: Sequence[Mapping[str, Any]] | None = None,
    rates: Mapping[str, Mapping[str, Any]] | None = None,
    **config: Any,
) -> Path:
    """Writes a run folder.

    Args:
        folder (Path): To make.
        stages (Mapping): Streams of each stage, by name; with shares (``'1/4'``) or, as a list, with equal ones.
        losses (Mapping): By set and stage, the losses at its start, after each batch; ``None`` where nothing was evaluated.
        upstream (Sequence[str]): Sets whose data the starting weights learned.
        init_from (str): The starting weights.
        sets (Sequence | None): The sets as the run file has them. Default: names and roles.
        rates (Mapping | None): Each stage's schedule in the plan; ``before`` is the rate at its start.
        config: More keys of the run file.
    """
    folder.mkdir(parents=True)
    if sets is None:
        sets = [{'name': name, 'role': 'upstream' if name in upstream else 'downstream'} for name in losses]
    roles = {each['name']: each['role'] for each in sets}
    plan, lines, batches, events, batch = [], [], [], [], 0
    for name, streams in stages.items():
        points = max(len(found) for by_stage in losses.values() for found in [by_stage.get(name, ())])
        count = max(2, points - 1)
        shares = streams if isinstance(streams, Mapping) else {each: f'1/{len(streams)}' for each in streams}
        schedule = {'name': 'cosine', 'lr': 1e-3, **(rates or {}).get(name, {})}
        before = schedule.pop('before', None)
        plan.append(
            {
                'name': name,
                'tokens': count * TOKENS,
                'batches': count,
                'schedule': schedule,
                'streams': [{'name': stream, 'share': share} for stream, share in shares.items()],
            }
        )
        fields = {'batch': batch, 'tokens': batch * TOKENS, 'stage': name, 'changes': {'lr': [before, 0.0]}}
        events.append({'event': 'stage_start', **fields})
        for at in range(count + 1):
            here = {'stage': name, 'batch': batch + at, 'tokens': (batch + at) * TOKENS, 'stage_tokens': at * TOKENS}
            if at:
                batches.append(
                    {**here, 'lr': 0.0 if at == 1 and 'warmup_tokens' in schedule else schedule['lr'], 'loss': 3.0}
                )
            for each, role in roles.items():
                found = losses.get(each, {}).get(name, ())
                if at < len(found) and found[at] is not None:
                    lines.append({**here, 'set': each, 'role': role, 'loss': found[at]})
        batch += count
    settings = {
        'run_name': folder.name,
        'run_folder': str(folder),
        'tokenizer': 'neox',
        'model': {'name': 'pythia-14m', 'init_from': init_from},
        'eval': {'sets': list(sets)},
        **config,
    }
    (folder / 'config.yaml').write_text(json.dumps(settings))
    (folder / 'plan.json').write_text(json.dumps({'tokens_per_batch': TOKENS, 'stages': plan}))
    for name, records in (('metrics', batches), ('evals', lines), ('events', events)):
        (folder / f'{name}.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in records))
    return folder
