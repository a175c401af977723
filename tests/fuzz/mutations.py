"""Small changes to what a file says: a hostile value in its place, a key gone or renamed, bits, a file that is none."""

import copy
import json
import os
import shutil
from pathlib import Path
from random import Random
from typing import Any

HOSTILE: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 3, 1.5, -0.0, 5e-324, 1e308, -1e308, float('inf'), float('-inf'), float('nan')),
    *(10**6, 10**12, 2**31, 2**32, 2**63, 2**64, 10**30, -(10**30)),
    *('', ' ', 'x', '0', '1', '-1', '1e5', '1/3', 'null', 'none', 'auto', 'current', 'NaN', 'A' * 300, 'A' * 70_000),
    *(
        '../x',
        '/etc/passwd',
        '/dev/zero',
        '/dev/null',
        '.',
        '..',
        'a/../b',
        'a\0b',
        'a\nb',
        '~',
        '~nobody',
        '$HOME',
        '${x}',
    ),
    *(
        's3://',
        's3://b/x',
        's3://key:secret@b/x',
        'file:///etc',
        'http://x/y',
        'hf:',
        'hf:../x',
        'checkpoint:',
        'index.json',
    ),
    *(
        '0tok',
        '1ba',
        '1e9tok',
        '1e400tok',
        '1e-5tok',
        '1e999999999tok',
        '1__0ba',
        '101%',
        '1dur',
        '10 min',
        '1e300h',
        '٣ba',
    ),
    *(
        'ndarray:uint16:1',
        'ndarray:int64:129',
        'ndarray:object:3',
        'ndarray:uint16:99999999',
        'bytes',
        'pkl',
        'jpeg',
        'json',
    ),
    *(
        'zstd',
        'zstd:99',
        'gz',
        'br',
        'mds',
        'sha1',
        'xxh64',
        'upstream',
        'downstream',
        'start',
        'end',
        'save',
        'finished',
    ),
    *(
        '</script><script>alert(1)</script>',
        '<img src=x onerror=alert(1)>',
        '"><svg/onload=alert(1)>',
        '[bold red]x[/]',
        '[/]',
    ),
    *('\x1b]52;c;aGk=\x07\x1b[2J', '\x9b2J', '\ud800', '\u202egpj', '\ufeff', '💥', '$(id)', '`id`', '{{x}}', '%s%n'),
    *('9999-12-31T23:59:59+00:00', '0001-01-01T00:00:00+23:59', '2026-13-01', '2026-01-01T00:00:00'),
    *([], {}, [[]], [None], {'a': 1}, {'old': None}, {'old': 1e308}, [1, 2, 3], ['x'] * 50),
)
"""Values that some reader, somewhere, took for something else."""

TEXTS: tuple[bytes, ...] = (
    *(
        b'',
        b' ',
        b'null',
        b'[]',
        b'{}',
        b'1',
        b'"x"',
        b'{',
        b'NaN',
        b'Infinity',
        b'\x00\x00',
        b'\xff\xfe',
        b'\xef\xbb\xbf{}',
    ),
    *(b'[' * 50_000, b'{"a":' * 3_000 + b'1' + b'}' * 3_000, b'9' * 5_000, b'{"a": 1}{"b": 2}', b'{"a": 1, "a": 2}'),
    *(b'{"a": 1e999}', b'{"a": "\\ud800"}', b'{"batch": 99999999999999999999999999}', b'<!DOCTYPE html><html></html>'),
    b'version https://git-lfs.github.com/spec/v1\noid sha256:' + b'0' * 64 + b'\nsize 12345\n',
)
"""Contents that are not what any of our files holds."""


def places(value: Any, at: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The way to each value inside plain data."""
    inside: list[tuple[str | int, Any]] = []
    if isinstance(value, dict):
        inside = list(value.items())
    elif isinstance(value, list):
        inside = list(enumerate(value))
    found = [(*at, key) for key, _ in inside]
    for key, item in inside:
        found += places(item, (*at, key))
    return found


def change_value(rng: Random, value: Any) -> Any:
    """Plain data with one place changed."""
    value = copy.deepcopy(value)
    if not (ways := places(value)):
        return rng.choice(HOSTILE)
    *way, last = rng.choice(ways)
    parent = value
    for step in way:
        parent = parent[step]
    what = rng.random()
    if what < 0.15:
        del parent[last]
    elif what < 0.25 and isinstance(parent, dict):
        parent[str(rng.choice(HOSTILE))] = parent.pop(last)
    elif what < 0.32 and isinstance(parent, list):
        parent.insert(last, copy.deepcopy(parent[last]))
    elif what < 0.40:
        parent[last] = copy.deepcopy(_at(value, rng.choice(ways)))
    else:
        parent[last] = copy.deepcopy(rng.choice(HOSTILE))
    return value


def change_json(rng: Random, data: bytes) -> bytes:
    """The text of a JSON value, changed in one place or replaced."""
    if rng.random() < 0.15:
        return rng.choice(TEXTS)
    return json.dumps(change_value(rng, json.loads(data))).encode()


def change_bytes(rng: Random, data: bytes) -> bytes:
    """Bytes with a bit flipped, some overwritten, some inserted, or the end cut off."""
    if not data:
        return b'\0'
    changed, what = bytearray(data), rng.random()
    if what < 0.4:
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what < 0.6:
        for _ in range(rng.randint(1, 5)):
            changed[rng.randrange(len(data))] = rng.randrange(256)
    elif what < 0.8:
        at = rng.randrange(len(data))
        changed[at:at] = rng.choice((*TEXTS, *_SPLICES, bytes(data[:at])))[:100_000]
    else:
        del changed[rng.randrange(len(data)) :]
    return bytes(changed)


_SPLICES = (
    *(
        b'\t',
        b'\n',
        b'\r',
        b'\x1b[2J',
        b'&a ',
        b'*a ',
        b'<<: ',
        b'--- ',
        b'? ',
        b': ',
        b'- ',
        b'#',
        b'"',
        b"'",
        b'|\n',
        b'@',
    ),
    *(b'%YAML 1.1\n', b'!!python/object:os.system ', b'!!binary ', b'!!set ', b'\xe2\x80\xa8', b'{' * 500, b'${seed}'),
)


def change_lines(rng: Random, data: bytes) -> bytes:
    """JSON lines with one of them changed, gone, there twice, elsewhere or replaced."""
    lines = data.split(b'\n')[:-1]
    number, what = rng.randrange(len(lines)), rng.random()
    if what < 0.55:
        lines[number] = change_json(rng, lines[number])
    elif what < 0.7:
        lines[number] = change_bytes(rng, lines[number])
    elif what < 0.78:
        del lines[number]
    elif what < 0.86:
        lines.insert(rng.randrange(len(lines)), lines[number])
    elif what < 0.92:
        rng.shuffle(lines)
    else:
        return data[: rng.randrange(len(data))]
    return b'\n'.join(lines) + b'\n'


def replace_file(rng: Random, path: Path) -> str:
    """Puts something in a file's place that is no regular file, or nothing; says what."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    kind = rng.choice(('gone', 'folder', 'pipe', '/dev/zero', '/dev/null', '/nowhere', '/etc/passwd', str(path)))
    if kind == 'folder':
        path.mkdir()
    elif kind == 'pipe':
        os.mkfifo(path)
    elif kind != 'gone':
        path.symlink_to(kind)
    return f'{path.name}: {kind}'


def _at(value: Any, way: tuple[str | int, ...]) -> Any:
    for step in way:
        value = value[step]
    return value
