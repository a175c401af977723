from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import pytest

from rewarm.report.run_folder import read_run
from rewarm.report.timeline import KINDS, find_timeline
from tests.report.story import Story


def timeline_of(story):
    return find_timeline(read_run(story.write()))


def test_the_kinds_add_up_to_the_wall_time_and_are_those_of_the_story(tmp_path):
    story = Story(tmp_path / 'run')
    story.start(30).evaluate(10).train(300).save().train(200).kill(90)  # 200 batches lost, 8 s after the save
    story.start(25).train(400).save().train(100).save().train(50).preempt(120)
    story.start(20, first_batch=False).kill(40)  # killed while it was starting
    story.start(30).train(149).evaluate(20).save(wait=True).train(799).evaluate(20).finish()
    timeline = timeline_of(story)
    assert set(timeline.seconds) == set(KINDS)
    assert sum(timeline.seconds.values()) == pytest.approx(timeline.wall_seconds, abs=1e-6)
    assert timeline.wall_seconds == pytest.approx(sum(story.truth.values()), abs=0.01)
    for kind in KINDS:
        # A process killed while starting leaves its `run_start`, and not how long it lived before and after it.
        assert timeline.seconds[kind] == pytest.approx(
            story.truth[kind], abs=25 if kind in ('starting', 'stopped') else 1
        ), kind
    assert [life.lost_batches for life in timeline.lives] == [200, 0, 0, 0]
    assert timeline.goodput == pytest.approx(story.truth['training'] / timeline.wall_seconds)


def test_a_save_that_becomes_whole_after_later_batches_changes_nothing(tmp_path):
    story = Story(tmp_path / 'run')
    story.start().train(99).save(seconds=50, stall=0.5).train(70).kill().start().train(10)
    timeline = timeline_of(story)
    saves = [line for line in story.events if line['event'] == 'save']
    assert [line['batch'] for line in saves] == [100]  # recorded after batch 150
    first, second = timeline.lives
    assert (first.lost_batches, len(first.kept), second.start.from_batch) == (70, 100, 100)
    assert first.seconds['repeating'] == pytest.approx(70, abs=0.01)
    assert first.seconds['saving'] == 0.5
    assert timeline.seconds['stopped'] == pytest.approx(60, abs=0.6)


def test_a_fallback_to_an_older_checkpoint_takes_batches_of_earlier_processes(tmp_path):
    story = Story(tmp_path / 'run')
    story.start().train(99).save().train(99).preempt().start().train(49).save().train(30).kill()
    story.event('fallback', path='checkpoints/ba00000249', reason='truncated', instead='ba00000100')
    story.saved = [100]
    story.start().train(299)
    timeline = timeline_of(story)
    assert [life.lost_batches for life in timeline.lives] == [99, 80, 0]
    assert timeline.seconds['training'] == 100 + 300
    assert timeline.seconds['repeating'] == pytest.approx(99 + 80, abs=0.6)
    assert sum(timeline.seconds.values()) == pytest.approx(timeline.wall_seconds)


def test_waiting_for_an_appended_stage_is_no_loss(tmp_path):
    story = Story(tmp_path / 'run', {'code': 100})
    story.start().train(99).finish().spend('waiting', 86_400)
    story.event('run_start')  # started again with nothing to do
    story.event('resume', **{'from': 'ba00000100', 'lost_batches': 0})
    story.spend('waiting', 86_400)
    story.stages = {'code': 100, 'prose': 50}
    story.start().train(49).finish()
    timeline = timeline_of(story)
    assert len(timeline.lives) == 2
    assert timeline.seconds['waiting'] == pytest.approx(2 * 86_400)
    assert timeline.seconds['stopped'] == 0
    assert timeline.goodput == pytest.approx(150 / (150 + 40 + 12))


def test_skipped_and_rolled_back_batches_count_as_lost(tmp_path):
    story = Story(tmp_path / 'run')
    story.start().train(99).save().train(60)
    story.metrics[-70]['skipped'] = True
    story.roll_back(12).train(50)
    story.metrics[-1]['skipped'] = True
    timeline = timeline_of(story)
    assert [life.lost_batches for life in timeline.lives] == [60, 0]
    assert timeline.seconds['training'] == 148
    assert timeline.seconds['repeating'] == pytest.approx(62, abs=0.01)
    assert timeline.seconds['starting'] == pytest.approx(20 + 12, abs=0.01)  # the process itself went on
    assert timeline.seconds['stopped'] == 0
    assert sum(timeline.seconds.values()) == pytest.approx(timeline.wall_seconds)


def test_uploads_of_a_process_that_starts_do_not_keep_a_killed_one_alive(tmp_path):
    story = Story(tmp_path / 'run')
    story.start().train(99).save().train(50).kill(100)
    began = story.now
    story.spend('starting', 30)
    story.event('upload', path='checkpoints/ba00000100', bytes=1, seconds=25.0)  # before it says that it has started
    story.start(20, began=began).train(10)
    timeline = timeline_of(story)
    assert timeline.seconds['stopped'] == pytest.approx(100, abs=1)
    assert timeline.seconds['starting'] == pytest.approx(20 + 50, abs=0.01)


@pytest.mark.parametrize('role', ['rewarm', 'constant'])
def test_old_run_folders_without_times_of_batches_and_stalls_add_up_too(make_run, role):
    timeline = find_timeline(read_run(make_run(role)))
    assert sum(timeline.seconds.values()) == pytest.approx(timeline.wall_seconds, abs=1e-6)
    assert timeline.wall_seconds == 151
    assert timeline.seconds['training'] == pytest.approx((1780 if role == 'rewarm' else 780) * 1024 / 17000, rel=0.01)
    if role == 'rewarm':
        assert timeline.seconds['repeating'] == pytest.approx(41 * 1024 / 17000)
        assert timeline.seconds['saving'] == pytest.approx(0.8)  # a save blocked then; the last one left no room for it


def test_a_clock_that_went_back_still_adds_up(tmp_path):
    story = Story(tmp_path / 'run')
    story.start().train(200).save().train(50).kill().start().train(100)
    folder = story.write()
    lines = (folder / 'events.jsonl').read_text().splitlines()
    moved = [line.replace('2026-11-02T09', '2026-11-02T08') if n > 4 else line for n, line in enumerate(lines)]
    assert moved != lines
    (folder / 'events.jsonl').write_text('\n'.join(moved) + '\n')
    timeline = find_timeline(read_run(folder))
    assert sum(timeline.seconds.values()) == pytest.approx(timeline.wall_seconds, abs=1e-6)
    assert all(seconds >= 0 for seconds in timeline.seconds.values())


def test_nothing_recorded_is_no_time(tmp_path):
    timeline = timeline_of(Story(tmp_path / 'run'))
    assert timeline.lives == ()
    assert (timeline.wall_seconds, timeline.goodput) == (0, None)
    assert json.dumps(timeline.seconds) == json.dumps(dict.fromkeys(KINDS, 0.0))


def test_what_a_real_trainer_recorded_adds_up_by_arithmetic_of_its_lines():
    folder = Path(__file__).parent / 'recorded'  # its README says how the run was broken
    events = [json.loads(line) for line in (folder / 'events.jsonl').read_text().splitlines()]
    metrics = [json.loads(line) for line in (folder / 'metrics.jsonl').read_text().splitlines()]

    def clock(line):
        return datetime.fromisoformat(line['time']).timestamp()

    firsts = [event for event in events if event['event'] == 'first_batch']
    began = [clock(event) - event['seconds'] for event in firsts]
    seconds = {line['batch']: line['seconds'] for line in metrics}
    timeline = find_timeline(read_run(folder))
    assert timeline.wall_seconds == pytest.approx(clock(events[-1]) - began[0], abs=0.01)
    assert sum(timeline.seconds.values()) == pytest.approx(timeline.wall_seconds, abs=1e-6)
    assert timeline.seconds['training'] == pytest.approx(sum(seconds.values()))
    starting = sum(event['seconds'] - seconds[event['batch']] for event in firsts)
    assert timeline.seconds['starting'] == pytest.approx(starting, abs=0.01)
    stalls = sum(event['stall_seconds'] for event in events if event['event'] == 'save')
    assert timeline.seconds['saving'] == pytest.approx(stalls, abs=0.01)
    assert [life.lost_batches for life in timeline.lives] == [7, 0, 0]
    # Between the processes: 5 s and 3 s of waiting, and what a process takes to end and to begin.
    first, second, third = timeline.lives
    assert 5 < (second.began - first.ended).total_seconds() < 8
    assert 3 < (third.began - second.ended).total_seconds() < 9
    assert timeline.seconds['stopped'] == pytest.approx(
        sum((b.began - a.ended).total_seconds() for a, b in [(first, second), (second, third)])
    )
