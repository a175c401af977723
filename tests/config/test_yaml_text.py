"""Run files that are no run files: each is refused in a line, at once, whatever it holds."""

import time
from pathlib import Path

import pytest

from rewarm.config.errors import ConfigError
from rewarm.config.load import load
from rewarm.config.source import read_source

ALIAS_BOMB = 'a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n' + ''.join(
    f'a{level + 1}: &a{level + 1} [{", ".join([f"*a{level}"] * 10)}]\n' for level in range(9)
)


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        ('run_name: x'.encode('utf-16'), ':1: the file is UTF-16, as Windows writes it. Save it as UTF-8'),
        ('run_name: x'.encode('utf-16-le'), ':1: the file is UTF-16'),
        (
            'a: 1\n# größe'.encode('latin-1'),
            ':2: the byte 0xf6 is no UTF-8 (the file may be Latin-1). Save it as UTF-8',
        ),
        (b'model:\n\tname: x\n', ':2: not valid YAML: a tab. Indent with spaces'),
        (b'a: 1\n---\nb: 2\n', ':2: a second document begins here'),
        (b'a: 1\nb: \x1b[2J\n', ':2: not valid YAML: the control character U+001B'),
        ('a: 1 # b\u2028seed: 99\n'.encode(), ':1: the character U+2028 breaks the line where no editor shows it'),
        (b'%YAML 1.1\n---\nseed: 017\n', ':1: run files are YAML 1.2'),
        (b'a: 1\n' + b'[' * 2000, ':2: '),
        (b'[' * 2000, ':1: nested more than 40 levels deep'),
        (b'{a: ' * 2000, ':1: nested more than 40 levels deep'),
        (b'- ' * 2000, ':1: nested more than 40 levels deep'),
        (ALIAS_BOMB.encode(), ': more than 10,000 keys and values'),
        (b'a: &a [*a]', ':1: `a.0` contains itself through an alias'),
        (b'a: [' + b'a,' * 60_000, ':1: more than 10,000 keys and values'),
        (b'\n'.join(b'k%d: 1' % key for key in range(9000)), ':5000: more than 10,000 keys and values'),
        (b'#' * 200_000, ': this is no run file: it has 200,000 bytes, more than 131,072'),
        (b'x: 1\ny: "' + b'${x}' * 20_000 + b'"', ':2: `y`: more than 4,096 characters with a `${`'),
    ],
)
def test_what_is_no_run_file_is_refused_in_a_line(tmp_path: Path, content: bytes, problem: str):
    path = tmp_path / 'run.yaml'
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert time.monotonic() - began < 10
    text = str(caught.value)
    assert problem in text
    assert len(text) < 20_000


@pytest.mark.parametrize('path', ['/dev/zero', '/', 'a\0b'])
def test_a_run_file_is_a_regular_file(path):
    with pytest.raises(ConfigError, match='this is no run file'):
        load(path)


def test_of_many_problems_the_first_are_shown(tmp_path: Path):
    path = tmp_path / 'run.yaml'
    path.write_text('\n'.join(f'{"k" * 20}{key}: 1' for key in range(2000)))
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert len(caught.value.problems) == 21
    assert caught.value.problems[-1].startswith('... and ')


def test_what_a_file_holds_does_not_steer_the_terminal(tmp_path: Path):
    path = tmp_path / 'run.yaml'
    path.write_text(
        '"a\\e]52;c;eA\\a\\nrun.yaml:1: b": 1\nrun_name: "\\e[31m\\n"\nseed: "\\u202e"\n' + f'{"k" * 120}: 1\n'
    )
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert all(line.isprintable() for line in caught.value.problems)
    assert any('unknown key `a\\x1b]52' in line for line in caught.value.problems)


def test_integers_beyond_any_setting_are_shown_short(tmp_path: Path):
    path = tmp_path / 'run.yaml'
    path.write_text(f'seed: {"9" * 5000}\nmax_seq_len: 0x{"f" * 5000}\n')
    with pytest.raises(ConfigError, match='`seed` must be an integer') as caught:
        load(path)
    assert max(map(len, caught.value.problems)) < 400


def test_a_byte_order_mark_is_no_part_of_the_first_key(tmp_path: Path):
    path = tmp_path / 'run.yaml'
    path.write_bytes(b'\xef\xbb\xbfrun_name: x\r\nseed: 1\r\n')
    source = read_source(path)
    assert source.data == {'run_name': 'x', 'seed': 1}
    assert source.line(('seed',)) == 2
