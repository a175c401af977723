"""A reader gives a value that means one thing, or says what is damaged and where."""

import os

import pytest

from rewarm.config.errors import DamagedFile
from rewarm.formats.strict_json import Record, parse_json, parse_record, read_file, read_json


class Shard(Record):
    name: str
    samples: int
    share: float = 1.0


@pytest.mark.parametrize(
    ('data', 'what'),
    [
        (b'', 'no JSON'),
        (b'{', 'no JSON'),
        (b'[' * 100_000, 'nested more than 100 levels deep'),
        (b'[' * 101 + b']' * 101, 'nested more than 100 levels deep'),
        (b'{"a":' * 400 + b'1' + b'}' * 400, 'nested more than 100 levels deep'),
        (b'{"a": NaN}', 'the number NaN'),
        (b'{"a": -Infinity}', 'the number -Infinity'),
        (b'{"a": 1e999}', 'too large for 64 bits'),
        (b'{"a": 18446744073709551616}', 'too large for 64 bits'),
        (b'9' * 5000, 'digits'),
        (b'{"a": 1, "b": 2, "a": 1}', "'a' is there twice"),
        (b'{"a": "\xff"}', 'no valid UTF-8'),
        (b'{"a": "\\ud800"}', 'half of a surrogate pair'),
        (b'\xef\xbb\xbf{}', 'BOM'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n', 'git lfs pull'),
    ],
)
def test_what_readers_disagree_on_is_damage(data, what):
    with pytest.raises(DamagedFile, match=what) as caught:
        parse_json(data, 'index.json')
    assert str(caught.value).startswith('index.json: damaged: ')
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ('data', 'what'),
    [
        (b'null', 'should be an object, not None'),
        (b'{"name": "a"}', 'samples: is missing; there are name$'),
        (
            b'{"name": "a", "sample": 3}',
            'samples: is missing; there are name, sample, and `sample` may be meant for it$',
        ),
        (
            b'{"samples": 3, ' + b', '.join(b'"k%d": 1' % n for n in range(50)) + b'}',
            'name: is missing; there are samples, k0, .*k18, [.]{3}$',
        ),
        (b'{}', 'is missing; there are no keys$'),
        (b'{"name": "a", "samples": "5"}', "samples: should be a valid integer, not '5'"),
        (b'{"name": "a", "samples": true}', 'samples: should be a valid integer, not True'),
        (b'{"name": 1, "samples": 5}', 'name: should be a valid string, not 1'),
        (b'{"name": "a", "samples": 1.5}', 'samples: '),
    ],
)
def test_a_record_of_another_shape_is_named_with_its_place(data, what):
    with pytest.raises(DamagedFile, match=what):
        parse_record(Shard, data, 'x.json:3')


def test_what_is_right_is_read_and_what_a_newer_version_says_is_left_out():
    assert parse_record(Shard, b'{"name": "\\ud83d\\ude00", "samples": 5, "new": [1]}', 'x') == Shard(
        name='😀', samples=5
    )


def test_only_regular_files_are_read_and_a_pipe_does_not_hang(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    (tmp_path / 'folder').mkdir()
    (tmp_path / 'device').symlink_to('/dev/zero')
    (tmp_path / 'loop').symlink_to(tmp_path / 'loop')
    for name in ('pipe', 'folder', 'device', 'loop'):
        with pytest.raises(DamagedFile, match=name):
            read_json(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / 'absent')
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / 'absent' / 'below')
    (tmp_path / 'large').write_bytes(b'[' + b'1,' * 50 + b'1]')
    with pytest.raises(DamagedFile, match='103 bytes, more than 64'):
        read_json(tmp_path / 'large', largest_bytes=64)
    (tmp_path / 'right').write_text('{"name": "a", "samples": 1}')
    (tmp_path / 'link').symlink_to(tmp_path / 'right')
    assert read_file(Shard, tmp_path / 'link').samples == 1
