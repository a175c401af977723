from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from rewarm.report.interruptions import interruptions, throughput
from rewarm.report.run_folder import Event, read_run


def events(*lines):
    """Events from (seconds, name, fields)."""
    began = datetime(2026, 11, 2, tzinfo=UTC)
    return [
        Event(name, began + timedelta(seconds=after), batch=fields.pop('batch', 0), tokens=0, stage='a', fields=fields)
        for after, name, fields in ((line[0], line[1], dict(*line[2:])) for line in lines)
    ]


def test_an_unbroken_run_has_none():
    assert interruptions(events((0, 'run_start'), (1, 'stage_start'), (9, 'save'), (10, 'finished'))) == []


def test_a_preemption_lasts_until_the_first_batch_after_it():
    found = interruptions(
        events(
            (0, 'run_start'), (1, 'stage_start'), (50, 'signal'), (51, 'save'), (52, 'preempted'),
            (100, 'run_start'), (103, 'resume', {'batch': 7, 'lost_batches': 0}), (104, 'first_batch'), (200, 'finished'),
        ),
    )  # fmt: skip
    assert [(s.kind, s.batch, s.seconds, s.at_most, s.lost_batches) for s in found] == [
        ('preempted', 7, 52.0, False, 0)
    ]


def test_without_a_first_batch_event_the_resume_counts():
    found = interruptions(events((0, 'run_start'), (10, 'preempted'), (20, 'run_start'), (25, 'resume')))
    assert found[0].seconds == 15


def test_a_kill_leaves_no_event_and_gives_a_bound():
    found = interruptions(
        events(
            (0, 'run_start'), (1, 'stage_start'), (40, 'save'), (70, 'run_start'), (74, 'resume', {'lost_batches': 41})
        ),
    )
    assert [(s.kind, s.seconds, s.at_most, s.lost_batches) for s in found] == [('killed', 34.0, True, 41)]


def test_a_kill_before_the_first_checkpoint_starts_again():
    found = interruptions(events((0, 'run_start'), (1, 'stage_start'), (30, 'run_start'), (31, 'stage_start')))
    assert [(s.kind, s.seconds) for s in found] == [('killed', 30.0)]


def test_starts_that_came_to_nothing_belong_to_one_interruption():
    found = interruptions(
        events((0, 'run_start'), (9, 'preempted'), (20, 'run_start'), (30, 'run_start'), (33, 'resume'), (40, 'save')),
    )
    assert [stop.seconds for stop in found] == [24.0]


def test_a_stage_appended_to_a_finished_run_is_no_interruption():
    lines = (
        (0, 'run_start'),
        (1, 'stage_start'),
        (5, 'finished'),
        (900, 'run_start'),
        (901, 'resume'),
        (902, 'stage_start'),
    )
    assert interruptions(events(*lines)) == []


def test_a_finished_run_that_is_started_again_and_again_was_never_interrupted():
    again = ((100, 'run_start', {'batch': 9}), (101, 'resume', {'batch': 9, 'lost_batches': 0}))
    lines = ((0, 'run_start'), (1, 'stage_start'), (2, 'first_batch'), (50, 'finished', {'batch': 9}), *again * 3)
    assert interruptions(events(*lines)) == []
    appended = (
        (200, 'run_start', {'batch': 9}),
        (201, 'resume', {'batch': 9}),
        (202, 'stage_start'),
        (203, 'first_batch'),
    )
    assert interruptions(events(*lines, *appended)) == []


def test_a_checkpoint_set_aside_is_told_by_the_next_process_and_not_by_the_one_killed():
    found = interruptions(
        events(
            (0, 'run_start'), (1, 'first_batch'), (40, 'save'),
            (1000, 'fallback'), (1000, 'fallback'), (1001, 'run_start'), (1002, 'resume', {'lost_batches': 90}),
            (1010, 'first_batch'),
        ),
    )  # fmt: skip
    assert [(stop.seconds, stop.lost_batches) for stop in found] == [(970.0, 90)]


def test_what_a_background_thread_records_late_does_not_move_the_stop():
    found = interruptions(
        events(
            (0, 'run_start'), (1, 'first_batch', {'batch': 1}), (50, 'signal', {'batch': 60}), (55, 'preempted', {'batch': 60}),
            (56, 'save', {'batch': 60}), (58, 'upload', {'batch': 60}),
            (100, 'run_start'), (103, 'resume', {'batch': 60, 'lost_batches': 0}), (104, 'first_batch', {'batch': 61}),
        ),
    )  # fmt: skip
    assert [(stop.kind, stop.batch, stop.seconds) for stop in found] == [('preempted', 60, 49.0)]


def test_batches_lost_at_a_start_that_came_to_nothing_are_counted():
    found = interruptions(
        events(
            (0, 'run_start'), (1, 'first_batch'), (40, 'save'),
            (70, 'run_start'), (74, 'resume', {'batch': 5, 'lost_batches': 41}),
            (90, 'run_start'), (94, 'resume', {'batch': 5, 'lost_batches': 0}), (95, 'first_batch', {'batch': 6}),
        ),
    )  # fmt: skip
    assert [(stop.seconds, stop.batch, stop.lost_batches) for stop in found] == [(55.0, 5, 41)]


def test_a_lost_rank_and_a_hung_one_are_named():
    again = ((100, 'run_start'), (101, 'resume', {'lost_batches': 3}), (102, 'first_batch'))
    for event, kind in (('rank_lost', 'lost a rank'), ('hang', 'hung')):
        (stop,) = interruptions(events((0, 'run_start'), (1, 'first_batch'), (50, event), *again))
        assert (stop.kind, stop.seconds, stop.at_most) == (kind, 52.0, False)


def test_throughput_of_a_run(make_run):
    speed = throughput(read_run(make_run('rewarm')))
    assert speed.tokens_per_second == pytest.approx(17000, rel=0.01)
    assert speed.training_seconds == pytest.approx(1780 * 1024 / 17000)
    assert speed.wall_seconds == 151
    assert speed.idle_seconds == pytest.approx(28 + 12)
    assert speed.repeated_batches == 41
    assert speed.repeated_seconds == pytest.approx(41 * 1024 / 17000)
    assert (speed.saves, speed.stall_seconds) == (3, pytest.approx(1.2))
