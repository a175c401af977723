"""The records as training writes and cuts them: damage is dropped and told, nothing outside the run folder is written."""

import json
import os

import pytest

from rewarm.config.errors import DamagedFile
from rewarm.formats.records import BATCHES, EVENTS, Damage
from rewarm.report.records import Events, JsonLines


def line(batch, **more):
    return {'stage': 's', 'batch': batch, 'tokens': batch, 'stage_tokens': batch, 'lr': 0.1, 'loss': 4.5, **more}


@pytest.fixture
def metrics(tmp_path):
    lines = JsonLines(tmp_path / 'metrics.jsonl', BATCHES)
    lines.append(line(batch, grad_norm=1.0) for batch in (1, 2, 3))
    return lines


def test_what_is_cut_is_counted_and_what_stays_is_byte_for_byte_as_it_was(metrics):
    before = metrics.path.read_bytes().splitlines(keepends=True)
    damage = Damage('metrics.jsonl')
    assert metrics.cut(lambda each: each.batch <= 2, damage) == 1
    assert metrics.path.read_bytes().splitlines(keepends=True) == before[:2]
    assert damage.lines == 0


def test_a_damaged_line_is_dropped_and_told_and_a_torn_one_dropped(metrics):
    with metrics.path.open('a') as file:
        file.write('{}\n' + json.dumps(line(4)) + '\n{"stage": "s", "ba')
    damage = Damage('metrics.jsonl')
    assert metrics.cut(lambda each: each.batch != 2, damage) == 1
    assert [each.batch for each in metrics.read()] == [1, 3, 4]
    assert str(damage) == (
        '1 damaged line of metrics.jsonl left out, the first: metrics.jsonl:4: damaged: stage: is missing; there are no keys'
    )
    again = Damage('metrics.jsonl')
    metrics.cut(lambda each: True, again)
    assert again.lines == 0


def test_a_torn_line_is_not_written_on(metrics):
    with metrics.path.open('a') as file:
        file.write('{"stage": "s", "ba')
    metrics.append([line(4)])
    damage = Damage('m')
    assert [each.batch for each in metrics.read(damage)] == [1, 2, 3, 4]
    assert damage.lines == 1


@pytest.mark.parametrize('kind', ['folder', 'pipe', 'device', 'lost link'])
def test_what_is_no_regular_file_is_refused_in_words_and_left_alone(tmp_path, kind):
    path = tmp_path / 'metrics.jsonl'
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    else:
        path.symlink_to('/dev/zero' if kind == 'device' else tmp_path / 'outside')
    lines = JsonLines(path, BATCHES)
    for act in (lines.read, lambda: lines.cut(lambda _: True, Damage('x')), lambda: lines.append([line(1)])):
        with pytest.raises(DamagedFile, match=r'metrics\.jsonl: damaged: it '):
            act()
    assert os.listdir(tmp_path) == ['metrics.jsonl']


def test_a_link_gives_way_to_a_copy_and_its_target_stays(tmp_path):
    outside = tmp_path / 'outside'
    outside.write_text(json.dumps({'event': 'save', 'batch': 1}) + '\n')
    before = outside.read_text()
    (tmp_path / 'run').mkdir()
    path = tmp_path / 'run/events.jsonl'
    path.symlink_to(outside)
    Events(tmp_path / 'run', active=True).record('run_start')
    assert [each.event for each in JsonLines(path, EVENTS).read()] == ['save', 'run_start']
    assert outside.read_text() == before
    assert not path.is_symlink()


def test_an_event_of_an_earlier_start_is_not_written_again_and_damage_does_not_matter(tmp_path):
    (tmp_path / 'events.jsonl').write_text('{}\n{"event": "rollback"}\n{"event": "rollback", "batch": 7}\n[[\n')
    events = Events(tmp_path, active=True)
    assert events.batches_of('rollback') == [7]
    for _ in range(2):
        events.at(batch=5, tokens=50, stage='s')
        events.record_once('stage_end')
    assert [each.event for each in events.lines.read()] == ['rollback', 'rollback', 'stage_end']


def test_an_event_holds_no_secret(tmp_path):
    events = Events(tmp_path, active=True)
    events.record('upload_failed', reason='PUT https://me:hunter2@host/x?token=hunter2 failed', attempt=1)
    events.record('fallback', path='a', reason='password=hunter2', instead={'api_key': 'hunter2'})
    assert 'hunter2' not in (tmp_path / 'events.jsonl').read_text()
