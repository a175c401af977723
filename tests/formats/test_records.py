"""Lines of a run's records: what is right is read, what is damaged is left out, counted and told with its line."""

import io
import json
import math
import os
from datetime import UTC, datetime

import pytest

from rewarm.config.errors import DamagedFile
from rewarm.formats.records import BATCHES, EVALUATIONS, EVENTS, Damage, parse_lines, read_lines

BATCH = {'stage': 's', 'batch': 7, 'tokens': 70, 'stage_tokens': 70, 'lr': 0.1, 'loss': 4.5}
EVALUATION = {**BATCH, 'set': 'old', 'role': 'upstream'}


def read(kind, *lines):
    damage = Damage('x.jsonl')
    data = b''.join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b'\n' for line in lines)
    return [record for _, record in parse_lines(kind, io.BytesIO(data), damage)], damage


def test_what_training_writes_is_read():
    (batch,), damage = read(
        BATCHES,
        {
            **BATCH,
            'grad_norm': 1.0,
            'tokens_per_second': 17.5,
            'seconds': 2,
            'samples': {'code': 3},
            'sample_ids_crc32': 1,
            'time': '2026-11-02T09:00:00.250+00:00',
            'skipped': True,
        },
    )
    assert (batch.stage, batch.batch, batch.loss, batch.seconds, batch.skipped) == ('s', 7, 4.5, 2.0, True)
    assert batch.samples == {'code': 3}
    assert batch.time == datetime(2026, 11, 2, 9, 0, 0, 250_000, tzinfo=UTC)
    (evaluation,), _ = read(EVALUATIONS, {**EVALUATION, 'perplexity': math.exp(700), 'when': 'end'})
    assert (evaluation.set, evaluation.role, evaluation.when) == ('old', 'upstream', 'end')
    (event,), _ = read(EVENTS, {'event': 'save', 'batch': 7, 'path': 'ba7', 'seconds': 0.5, 'bytes': 9, 'new': [1]})
    assert (event.event, event.batch, event.time) == ('save', 7, None)
    assert event.fields == {'path': 'ba7', 'seconds': 0.5, 'bytes': 9, 'new': [1]}
    assert not damage.lines


def test_null_stands_for_a_loss_that_was_no_number():
    (batch,), _ = read(BATCHES, {**BATCH, 'loss': None, 'lr': None})
    assert math.isnan(batch.loss)
    assert math.isnan(batch.lr)


@pytest.mark.parametrize('time', ['0001-01-01T00:00:00+23:59', '9999-12-31T23:59:59-23:59', '2026-13-01', '', 'x'])
def test_a_time_in_no_year_of_a_run_is_not_known(time):
    assert read(BATCHES, {**BATCH, 'time': time})[0][0].time is None


def test_a_time_of_another_zone_is_the_same_moment():
    assert read(BATCHES, {**BATCH, 'time': '2026-11-02T11:00:00+02:00'})[0][0].time == datetime(
        2026, 11, 2, 9, tzinfo=UTC
    )


@pytest.mark.parametrize(
    ('line', 'what'),
    [
        (b'{', 'no JSON'),
        (b'null', ''),
        (b'[]', ''),
        (b'{}', 'stage: is missing'),
        (b'[' * 100_000, 'nested'),
        (b'\x00\x00', 'no JSON'),
        (b'\xff', 'UTF-8'),
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a":1 ,"a" :2, "b": "\\u003a"}', "'a' is there twice"),
        (b'{"a": "\\ud800"}', 'surrogate'),
        (b'9' * 5000, 'digits'),
        (b' ' * (1 << 20) + b'1', 'more than 1,048,576 bytes'),
        ({**BATCH, 'loss': math.nan}, 'NaN'),
        ({**BATCH, 'new': math.inf}, 'Infinity'),
        (json.dumps(BATCH).replace('4.5', '1e400').encode(), 'too large'),
        ({**BATCH, 'loss': 1e300}, 'loss: should be a number of at most 1e+39'),
        ({**BATCH, 'loss': '4.5'}, 'loss'),
        ({**BATCH, 'loss': True}, 'loss'),
        ({**BATCH, 'lr': -1e-9}, 'lr'),
        ({**BATCH, 'batch': 0}, 'batch'),
        ({**BATCH, 'batch': 1.5}, 'batch'),
        ({**BATCH, 'batch': True}, 'batch'),
        ({**BATCH, 'batch': '7'}, 'batch'),
        ({**BATCH, 'tokens': -1}, 'tokens'),
        ({**BATCH, 'tokens': 1 << 63}, 'tokens'),
        ({**BATCH, 'seconds': -1}, 'seconds'),
        ({**BATCH, 'seconds': 1e10}, 'seconds'),
        ({**BATCH, 'samples': [1]}, 'samples'),
        ({**BATCH, 'samples': {'a': -1}}, 'samples.a'),
        ({**BATCH, 'skipped': 1}, 'skipped'),
        ({**BATCH, 'time': 5}, 'time'),
        ({**BATCH, 'stage': 'x' * 1001}, 'stage'),
        ({key: value for key, value in BATCH.items() if key != 'loss'}, 'loss: is missing'),
    ],
)
def test_a_damaged_line_is_left_out_and_told_with_its_number(line, what):
    found, damage = read(BATCHES, BATCH, line, b'', {**BATCH, 'batch': 8}, line)
    assert [batch.batch for batch in found] == [7, 8]
    assert damage.lines == 2
    assert str(damage).startswith('2 damaged lines of x.jsonl left out, the first: x.jsonl:2: damaged: ')
    assert what in str(damage)
    assert len(str(damage)) < 300


@pytest.mark.parametrize(
    'fields',
    [{'seconds': 'x'}, {'stall_seconds': -1}, {'bytes': 1.5}, {'lost_batches': []}, {'path': 3}, {'x': math.inf}],
)
def test_what_is_reckoned_with_in_an_event_has_its_type(fields):
    assert read(EVENTS, {'event': 'save', **fields})[1].lines == 1


@pytest.mark.parametrize('torn', [b'{"stage": "s", "bat', b'{"', b'\xff'])
def test_a_last_line_that_a_kill_has_torn_is_not_counted(torn):
    damage = Damage('x')
    data = json.dumps(BATCH).encode() + b'\n' + torn
    assert len(list(parse_lines(BATCHES, io.BytesIO(data), damage))) == 1
    assert not damage.lines


def test_lines_are_given_as_they_stand():
    lines = [json.dumps({**BATCH, 'batch': n, 'new': n}).encode() for n in (1, 2)]
    found = parse_lines(BATCHES, io.BytesIO(b'\n'.join(lines)), Damage('x'))
    assert [text for text, _ in found] == [line + b'\n' for line in lines]


def test_the_end_of_a_file_is_read_alone_and_its_lines_keep_their_numbers(tmp_path):
    lines = [json.dumps({**BATCH, 'batch': n}) for n in range(1, 101)]
    lines[95] = '{}'
    (tmp_path / 'm').write_text('\n'.join(lines) + '\n')
    damage = Damage('m')
    found = read_lines(BATCHES, tmp_path / 'm', damage, last_bytes=1000)
    assert found[-1].batch == 100
    assert 5 < len(found) < 20
    assert 'm:96:' in str(damage)


def test_only_a_regular_file_is_read_and_a_missing_one_is_empty(tmp_path):
    assert read_lines(BATCHES, tmp_path / 'none', Damage('x')) == []
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'device').symlink_to('/dev/zero')
    (tmp_path / 'lost').symlink_to(tmp_path / 'none')
    for name in ('pipe', 'folder', 'device', 'lost'):
        with pytest.raises(DamagedFile, match=name):
            read_lines(BATCHES, tmp_path / name, Damage('x'))


def test_zeros_without_end_are_one_line(tmp_path):
    with (tmp_path / 'm').open('wb') as file:
        file.truncate(1 << 25)
    damage = Damage('m')
    assert read_lines(BATCHES, tmp_path / 'm', damage) == []
    assert 'm:1: damaged: it has more than' in str(damage)
    with (tmp_path / 'm').open('wb') as file:
        file.truncate((1 << 30) + 1)
    with pytest.raises(DamagedFile, match='m: damaged: it has 1,073,741,825 bytes'):
        read_lines(BATCHES, tmp_path / 'm', damage)


def test_duplicates_are_found_in_any_spelling():
    """Text without a key twice has as many colons as its value; spaces, escapes and colons in texts do not hide one."""
    for line in ('{"a":":","a":1}', '{"a" : 1, "a": 2}', '{"a": "\\u003a\\u003a", "a": 2}', '{"\\u0061": 1, "a": 2}'):
        assert read(EVENTS, line.encode())[1].lines == 1
    right = {**BATCH, 'stage': 'a":"b', 'time': '2026-11-02T09:00:00+00:00'}
    assert read(BATCHES, right)[1].lines == 0
