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
        'where', 'training', 'held by', 'last save', 'stops', 'goodput', 'to the end', 'if started now',
    ]  # fmt: skip
    assert lines['where'] == 'stage code, batch 461 of 1,800 (25.6%), 472,064 tokens'
    assert lines['training'].startswith('loss 4.0022 at rate 0.001; 1,024 tokens/s, the median of the last 100 batches')
    assert lines['held by'] == 'nobody; last batch 60 s ago'
    assert lines['last save'] == 'ba00000400, 902 bytes, 2 min ago, on disk'
    assert lines['stops'] == '2 (1 killed, 1 preempted), 50 batches repeated'
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
    assert lines['where'] == 'stage code, batch 461 of 1,800 (25.6%), 472,064 tokens'
    assert lines['held by'].startswith('last taken by process 41 on spot-7, since')
    assert lines['last save'].startswith('ba00000390, 902 bytes, ')
    assert lines['last save'].endswith('ago, in the bucket')
    assert lines['if started now'].startswith(
        'it would set ba00000400 aside (model.safetensors has 299 bytes instead of 300) and go on from ba00000390, '
        'repeating 71 batches, and take the run over from process 41 on spot-7'
    )
    assert to_json(status)['run_folder'] == f's3://{BUCKET}/runs/story'


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
    assert 'batch 461 of 1,800' in text
    status_command(str(story.folder), as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert (content['batch'], content['state'], content['stops']) == (461, 'stopped', {'killed': 1, 'preempted': 1})
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
