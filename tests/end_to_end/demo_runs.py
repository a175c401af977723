"""What the demo leaves in its folder."""

import json
from pathlib import Path

from rewarm.config.load import load
from rewarm.config.plan import make_plan

ROOT = Path(__file__).parents[2]


def records(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_preempted_and_whole(place: Path, name: str) -> None:
    """The run was preempted once, lost nothing, and did every batch once at the rate that the plan has for it."""
    folder = place / f'runs/demo-{name}'
    events = records(folder / 'events.jsonl')
    resumes = [event for event in events if event['event'] == 'resume']
    assert [event['signal'] for event in events if event['event'] == 'signal'] == ['SIGTERM']
    assert [event['lost_batches'] for event in resumes] == [0]
    assert [event['stage'] for event in events if event['event'] == 'stage_start'] == ['upstream', 'downstream']

    plan = make_plan(load(ROOT / f'yamls/demo/{name}.yaml', world_size=1))
    second = plan.stages[1]
    assert second.start_batch < resumes[0]['batch'] < second.end_batch
    metrics = records(folder / 'metrics.jsonl')
    assert [line['batch'] for line in metrics] == list(range(1, second.end_batch + 1))
    for line in metrics:
        assert line['lr'] == plan.lr_at(line['tokens'] - plan.tokens_per_batch)
