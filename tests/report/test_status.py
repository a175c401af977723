from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from datetime import timedelta

import pytest

from rewarm.config.errors import UserError
from rewarm.report.run_folder import read_run
from rewarm.report.show_status import duration_text, size_text, status_command, status_lines, to_json
from rewarm.report.spending import device_hours
from rewarm.report.status import find_status
from rewarm.report.timeline import find_timeline
from tests.buckets.servers import BUCKET
from tests.report.story import CHECKPOINT_BYTES, Story


@pytest.fixture
def story(tmp_path):
    """A run that was killed once, preempted once, and stopped 60 s after batch 461, 61 batches after its last save."""
    story = Story(tmp_path / 'run')
    story.start().train(299).save().train(50).kill().start().train(49).save().train(40).preempt().start().train(
        9
    ).save()
    return story.train(61).kill(60)


def lines_of(story, **after):
    return status_lines(find_status(story.write(), now=story.now + timedelta(**after)))


def test_where_a_stopped_run_is(story):
    lines = lines_of(story)
    assert list(lines) == [
        'where', 'training', 'held by', 'last save', 'stops', 'spent', 'goodput', 'to the end', 'if started now',
    ]  # fmt: skip
    assert lines['where'] == (
        'stage code, batch 461 of 1,000 of the stage, 461 of 1,800 of the run (25.6%), 472,064 tokens'
    )
    assert lines['training'].startswith('loss 4.0022 at rate 0.001; 1,024 tokens/s, the median of the last 100 batches')
    assert lines['held by'] == 'nobody; last batch 60 s ago'
    assert lines['last save'] == 'ba00000400, 902 bytes, 2 min ago, on disk'
    assert lines['stops'] == '3 (2 killed, 1 preempted), 50 batches repeated'
    assert lines['if started now'].startswith('it would go on from ba00000400, repeating 61 batches. Sizes')


def test_goodput_is_the_timelines_and_the_rest_takes_longer_for_it(story):
    folder = story.write()
    status = find_status(folder, now=story.now)
    assert status.goodput == pytest.approx(find_timeline(read_run(folder)).goodput)
    assert 0.5 < status.goodput < 0.9
    assert status.eta_seconds == pytest.approx((1800 - 461) / status.goodput)


def test_why_a_run_stopped(story):
    assert find_status(story.write()).reason == 'killed without a word, or its machine is gone'
    story.start().train(9).preempt(signal='the notice of aws: terminate')
    assert find_status(story.write()).reason == 'preempted: the notice of aws: terminate'
    story.start().train(9).event('rank_lost', rank=3, host='b', seconds=31)
    assert find_status(story.write()).reason == 'rank lost: rank 3 on b'
    story.start().train(9).finish()
    assert find_status(story.write()).reason == 'finished once, but its last checkpoint is not here'


def test_a_stop_counts_at_once_and_once(tmp_path, hold):
    story = Story(tmp_path / 'run').start().train(99).preempt(signal='SIGINT')
    status = find_status(story.write(), now=story.now)
    assert status.reason == 'preempted: SIGINT'
    assert status_lines(status)['stops'] == '1 (1 preempted), 0 batches repeated'
    story.start(first_batch=False)  # it is not known yet whether this start comes to something
    hold(story.write())
    assert lines_of(story)['stops'] == '1 (1 preempted), 0 batches repeated'
    story.spend('starting', 8)
    story.train(1).event('first_batch', seconds=20)
    assert lines_of(story)['stops'] == '1 (1 preempted), 0 batches repeated'


def test_a_kill_counts_at_once_but_neither_a_run_that_goes_on_nor_one_that_is_finished(tmp_path, hold):
    story = Story(tmp_path / 'run', {'code': 100}).start().train(49).save().train(20).kill()
    assert lines_of(story)['stops'] == '1 (1 killed), 0 batches repeated'
    holder = hold(story.folder)
    assert lines_of(story)['stops'] == 'none'
    holder.kill()
    holder.wait(timeout=60)
    story.start().train(49).finish()
    assert lines_of(story)['stops'] == '1 (1 killed), 20 batches repeated'


def test_a_process_that_has_not_trained_yet_is_told(tmp_path, hold):
    story = Story(tmp_path / 'run')
    story.event('run_start', world_size=1, host='laptop', seconds=4)
    story.train(9).event('first_batch', seconds=9)
    story.save(1).train(9).kill()
    story.event('run_start', world_size=1, host='laptop', seconds=4)
    story.event('resume', **{'from': 'ba00000009', 'where': 'disk', 'lost_batches': 9})
    holder = hold(story.write())
    assert lines_of(story)['held by'].endswith('; loading, before its first batch')
    story.event('eval_start', sets=['code', 'prose'], evaluated_tokens=259000)
    assert lines_of(story, seconds=200)['held by'].endswith(
        '; evaluating code, prose (259,000 tokens) before its first batch, since 3 min ago'
    )
    said = lines_of(story, minutes=9)['held by']
    assert said.startswith(f'nothing for 9 min although process {holder.pid} on')
    assert said.endswith('before its first batch, since 9 min ago')
    assert to_json(find_status(story.folder))['evaluating']['sets'] == ['code', 'prose']
    story.event('eval_end', sets=['code', 'prose'], seconds=90)
    story.train(1).event('first_batch', seconds=9)
    assert 'evaluat' not in lines_of(story)['held by']


def test_the_first_process_of_all_evaluates_before_its_first_batch_too(tmp_path, hold):
    story = Story(tmp_path / 'run')
    story.event('run_start', world_size=1, host='laptop', seconds=4)
    story.event('stage_start')
    story.event('eval_start', sets=['code'], evaluated_tokens=100)
    hold(story.write())
    assert lines_of(story, seconds=9)['held by'].endswith(
        'no batch yet; evaluating code (100 tokens) before its first batch, since 9 s ago'
    )


def test_hours_and_cost_are_told_so_far_and_to_the_end(story, hold):
    folder = story.write()
    status = find_status(folder, now=story.now)
    assert status.device_hours == pytest.approx(device_hours(read_run(folder)), rel=0.1)
    lines = status_lines(status, price=2.5)
    assert lines['spent'] == (
        f'{status.device_hours:,.2f} process hours, about {status.device_hours_to_come:,.2f} to come; cost '
        f'{2.5 * status.device_hours:,.2f}, about {2.5 * status.device_hours_to_come:,.2f} to come, '
        'at 2.5 for an hour of one process'
    )
    assert status.device_hours_to_come == pytest.approx((1800 - 461) / status.goodput / 3600)
    assert to_json(status)['cost'] is None
    assert to_json(status, price=2)['cost'] == 2 * status.device_hours
    hold(folder)
    later = find_status(folder, now=story.now + timedelta(hours=1)).device_hours
    assert later == pytest.approx(status.device_hours + 1, abs=0.05)  # an evaluation that hangs costs too


def test_hours_count_every_device(tmp_path):
    story = Story(tmp_path / 'run').start().train(99).preempt()
    one = find_status(story.write()).device_hours
    for event in story.events:
        if event['event'] == 'run_start':
            event['world_size'] = 8
    assert find_status(story.write()).device_hours == pytest.approx(8 * one)


def test_validation_losses_and_what_became_of_them(make_run):
    status = find_status(make_run('rewarm', stop=300))
    lines = status_lines(status)
    newest = {line.set: line.loss for line in status.run.evaluations}
    began = next(line.loss for line in status.run.evaluations if (line.stage, line.set) == ('prose', 'code'))
    assert lines['validation'] == (
        f'code (old) {newest["code"]:.4f}, prose (new) {newest["prose"]:.4f}, at batch 1,280 (20 batches ago)'
    )
    assert lines['forgetting'] == f'code {newest["code"] - began:+.3f} in stage prose'
    assert lines['adaptation'].startswith('prose +')
    content = {entry['set']: entry for entry in to_json(status)['evaluations']}
    assert content['code']['last_stage']['forgetting'] == pytest.approx(newest['code'] - began)
    assert (content['prose']['kind'], content['prose']['batch']) == ('new', 1280)
    assert content['code']['since_began']['adaptation'] > 3


def test_losses_that_are_not_finite_and_very_many_sets(tmp_path):
    story = Story(tmp_path / 'run').start().train(9)
    line = {'stage': 'code', 'batch': 10, 'tokens': 10240, 'stage_tokens': 10240, 'role': 'downstream'}
    folder = story.write()
    losses = {f's{number}': float(number) for number in range(9)}
    text = ''.join(json.dumps({**line, 'set': name, 'loss': loss}) + '\n' for name, loss in losses.items())
    (folder / 'evals.jsonl').write_text(text + json.dumps({**line, 'set': 'broken', 'loss': None}) + '\n')
    status = find_status(folder)
    assert status_lines(status)['validation'].endswith(' 5.0000 and 3 more, at batch 10')
    assert [entry['loss'] for entry in to_json(status)['evaluations'] if entry['set'] == 'broken'] == [None]
    json.dumps(to_json(status), allow_nan=False)


def test_the_batch_of_the_stage_is_that_of_its_checkpoint_too(tmp_path):
    story = Story(tmp_path / 'run', {'code': 20, 'prose': 30})
    story.start().train(24).save().train(9).kill()
    status = find_status(story.write())
    assert lines_of(story)['where'].startswith('stage prose, batch 14 of 30 of the stage, 34 of 50 of the run (68.0%)')
    content = to_json(status)
    assert (content['stage_batch'], content['stage_batches']) == (14, 30)
    assert (content['checkpoint_stage'], content['checkpoint_stage_batch']) == ('prose', 5)
    (story.folder / 'plan.json').unlink()
    assert lines_of(story)['where'].startswith('stage prose, batch 34 of 50') is False
    assert status_lines(find_status(tmp_path / 'run'))['where']


def test_pinned_checkpoints_are_named(story):
    (story.write() / 'checkpoints/ba00000390/pinned').touch()
    assert lines_of(story)['pinned'] == 'ba00000390'
    assert to_json(find_status(story.folder))['pinned'] == ['ba00000390']


def test_a_finished_run_does_nothing(tmp_path):
    story = Story(tmp_path / 'run', {'code': 100})
    story.start().train(99).finish()
    status = find_status(story.write(), now=story.now)
    assert (status.state, status.eta_seconds) == ('finished', None)
    assert 'nothing: the run is finished' in status.next_start
    assert find_status(story.folder, now=story.now + timedelta(days=9)).goodput == status.goodput


def test_a_damaged_newest_checkpoint_is_seen_by_its_size(story):
    folder = story.write()
    os.truncate(folder / 'checkpoints/ba00000400/model.safetensors', 10)
    status = find_status(folder)
    assert status.next_start == (
        'it would set ba00000400 aside (model.safetensors has 10 bytes instead of 300) and go on from ba00000390, '
        'repeating 71 batches'
    )
    assert status.checkpoint.name == 'ba00000390'
    (folder / 'checkpoints/ba00000390/state.json').unlink()
    (folder / 'checkpoints/ba00000350/manifest.json').write_text('{"files')
    (folder / 'checkpoints/ba00000300').rename(folder / 'checkpoints/ba00000300.broken')
    said = find_status(folder).next_start
    assert said.startswith('it would refuse: there are checkpoints and none is whole (ba00000400: model')
    for words in (
        'ba00000390: state.json is missing',
        'ba00000350: manifest.json cannot',
        'ba00000300.broken: was set aside',
    ):
        assert words in said


def test_a_missing_manifest_is_a_damage_and_half_written_folders_are_none(story):
    folder = story.write()
    (folder / 'checkpoints/ba00000400/manifest.json').unlink()
    (folder / 'checkpoints/.writing-ba00000460').mkdir()
    assert 'set ba00000400 aside (manifest.json is missing) and go on from ba00000390' in find_status(folder).next_start


def test_a_run_without_a_checkpoint_begins_again(tmp_path):
    story = Story(tmp_path / 'run').start().train(30).kill()
    assert lines_of(story)['if started now'] == 'it would begin at the beginning, repeating 31 batches'
    assert lines_of(story)['last save'] == 'none'


def test_before_the_first_start_and_without_a_batch(tmp_path):
    status = find_status(Story(tmp_path / 'a').write())
    assert (status.state, status.next_start) == ('not started', 'it would begin at the beginning')
    lines = status_lines(status)
    assert 'where' not in lines
    assert lines['held by'] == 'nobody; no batch yet'
    story = Story(tmp_path / 'b').start(first_batch=False)
    assert find_status(story.write()).state == 'stopped'


def test_torn_last_lines_are_left_out(story):
    folder = story.write()
    for name in ('metrics.jsonl', 'events.jsonl'):
        with (folder / name).open('a') as file:
            file.write('{"stage": "code", "batch": 46')
    assert lines_of(story)['where'].startswith('stage code, batch 461')


def test_old_folders_tell_the_age_of_a_batch_by_the_file(make_run):
    folder = make_run('rewarm', stop=300)
    status = find_status(folder)
    assert 'time' not in (folder / 'metrics.jsonl').read_text()
    assert abs((status.now - status.last_batch_at).total_seconds()) < 60
    assert status.batch == 1300


def test_folders_of_another_kind_are_refused(tmp_path):
    (tmp_path / 'empty').mkdir()
    for folder, problem in ((tmp_path / 'empty', 'not a run folder'), (tmp_path / 'nowhere', 'no such folder')):
        with pytest.raises(UserError, match=problem):
            find_status(folder)


def test_how_far_the_bucket_is_behind(story, tmp_path):
    assert find_status(story.write()).lag is None
    story = Story(tmp_path / 'bucket')
    story.bucket = True
    story.start().train(99).save().train(99)
    assert lines_of(story)['last save'].endswith('on disk and in the bucket')
    assert lines_of(story, minutes=10)['bucket'] == 'newest there is ba00000100, uploaded 12 min ago'
    story.bucket = False
    story.save().train(50).save().train(20)
    story.event('upload_failed', reason='connection refused', attempt=3, retry_in_seconds=8)
    assert lines_of(story)['last save'].endswith('on disk')
    assert lines_of(story)['bucket'] == (
        f'newest there is ba00000100, uploaded 3 min ago; 2 newer on the disk only, {2 * CHECKPOINT_BYTES / 1e6:.0f} MB. '
        'The last upload failed: connection refused'
    )
    content = to_json(find_status(story.folder, now=story.now))['bucket']
    assert content['waiting_checkpoints'] == 2
    assert content['failure'] == {'reason': 'connection refused', 'attempt': 3, 'retry_in_seconds': 8}


def test_a_run_in_a_bucket_is_told_without_its_tensors(story, bucket):
    folder = story.write()
    (folder / 'owner.json').write_text('{"id": "1", "host": "spot-7", "pid": 41, "since": "2026-11-02T09:10:00+00:00"}')
    os.truncate(folder / 'checkpoints/ba00000400/model.safetensors', 299)
    (folder / 'checkpoints/ba00000460').mkdir()
    (folder / 'checkpoints/ba00000460/model.safetensors').write_bytes(b'0')  # still going up: its manifest comes last
    status = find_status(bucket(folder), now=story.now)
    lines = status_lines(status)
    assert status.state == 'running or killed'
    assert lines['where'] == (
        'stage code, batch 461 of 1,000 of the stage, 461 of 1,800 of the run (25.6%), 472,064 tokens'
    )
    assert lines['held by'].startswith('last taken by process 41 on spot-7, since')
    assert lines['last save'].startswith('ba00000390, 902 bytes, ')
    assert lines['last save'].endswith('ago, in the bucket')
    assert lines['if started now'].startswith(
        'it would set ba00000400 aside (model.safetensors has 299 bytes instead of 300) and go on from ba00000390, '
        'repeating 71 batches, and take the run over from process 41 on spot-7'
    )
    assert to_json(status)['run_folder'] == f's3://{BUCKET}/runs/story'


def test_a_run_in_a_bucket_that_said_it_stopped_is_taken_over_from_nobody(story, bucket):
    story.start().train(9).preempt()
    folder = story.write()
    claim = '{"id": "1", "host": "spot-7", "pid": 41, "since": "%s"}'
    (folder / 'owner.json').write_text(claim % story.events[-3]['time'])
    status = find_status(bucket(folder), now=story.now)
    assert (status.state, status.reason) == ('stopped', 'preempted: SIGTERM')
    assert status.next_start == 'it would go on from ba00000410'
    assert status_lines(status)['held by'].startswith('nobody: process 41 on spot-7 said that it stopped; last batch')
    assert to_json(status)['stops'] == {'killed': 2, 'preempted': 2}
    (folder / 'owner.json').write_text(claim % story.now.isoformat())  # and nothing was uploaded since
    status = find_status(bucket(folder), now=story.now)
    assert status.state == 'running or killed'
    assert status.next_start.endswith('take the run over from process 41 on spot-7, which stops if it is still there')


def test_a_bucket_with_nothing_there_is_the_users_mistake(bucket, tmp_path):
    url = bucket(tmp_path / 'nothing')
    with pytest.raises(UserError, match='nothing there; give what `run_folder` says'):
        find_status(url)
    with pytest.raises(UserError, match='no bucket'):
        find_status('ftp://data/run')


HOLDER = """
import pathlib, sys
from rewarm.resume.lock import run_lock
with run_lock(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold():
    """Holds the lock of a run folder in a process of its own."""
    holders = []

    def start(folder):
        command = [sys.executable, '-c', HOLDER, str(folder)]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        holders.append(holder)
        assert holder.stdout.readline() == 'held\n'
        return holder

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate(timeout=60)


def test_who_holds_a_run_and_that_looking_changes_nothing(story, hold):
    folder = story.write()
    assert find_status(folder).owner is None
    holder = hold(folder)
    for _ in range(2):  # the first look did not take it away
        status = find_status(folder)
        assert (status.state, status.owner.pid) == ('running', holder.pid)
    assert f'process {holder.pid} on {os.uname().nodename} holds the run folder' in status.next_start
    assert 'Killed now and started again, it would go on from ba00000400, repeating 61 batches' in status.next_start
    holder.kill()
    holder.wait(timeout=60)
    assert (folder / 'run.lock').read_text()  # the dead one's word is still there, and not believed
    assert find_status(folder).owner is None
    hold(folder)


def test_a_process_that_is_silent_is_told(story, hold):
    holder = hold(story.write())
    lines = lines_of(story, minutes=13)
    assert lines['held by'].startswith(f'nothing for 14 min although process {holder.pid} on')
    assert lines_of(story, seconds=-48)['held by'].endswith('; last batch 12 s ago')
    assert 'from the first start to now' in lines['goodput']


def test_the_command_prints_words_or_json(story, capsys):
    status_command(str(story.write()))
    text = capsys.readouterr().out
    assert text.startswith('story is stopped (killed without a word, or its machine is gone)\n')
    assert '461 of 1,800' in text
    status_command(str(story.folder), as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert (content['batch'], content['state'], content['stops']) == (461, 'stopped', {'killed': 2, 'preempted': 1})
    assert content['checkpoint'] == {'name': 'ba00000400', 'batch': 400, 'bytes': 902}


def test_a_long_run_is_told_within_a_second_and_without_torch(tmp_path):
    story = Story(tmp_path / 'run', {'code': 200_000})
    folder = story.start().train(999).write()
    line = json.loads((folder / 'metrics.jsonl').read_text().splitlines()[-1])
    line['samples'] = {'slimpajama': 137_000_000, 'pile': 7_000_000}
    with (folder / 'metrics.jsonl').open('a') as file:
        for batch in range(1001, 130_001):
            file.write(json.dumps({**line, 'batch': batch}) + '\n')
    program = (
        'import sys, time\n'
        'from rewarm.report.show_status import status_command\n'
        f'status_command({str(folder)!r}, as_json=True)\n'
        'heavy = {"torch", "composer", "streaming", "transformers", "numpy", "rich"} & set(sys.modules)\n'
        'print(time.process_time(), file=sys.stderr)\n'
        'sys.exit(f"imported {heavy}" if heavy else 0)'
    )
    begun = time.monotonic()
    done = subprocess.run([sys.executable, '-c', program], capture_output=True, text=True, timeout=60)
    assert time.monotonic() - begun < 60
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)['batch'] == 130_000
    assert float(done.stderr) < 1.0


def test_times_and_sizes_read_well():
    assert [duration_text(s) for s in (3, 99, 840, 22_300, 400_000)] == ['3 s', '99 s', '14 min', '6.2 h', '4.6 days']
    assert [size_text(n) for n in (12, 902_000, 4_864_008_192)] == ['12 bytes', '902 kB', '4.86 GB']
