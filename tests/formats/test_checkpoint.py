"""A manifest and a state are read whole and right, or it is said what is wrong; nothing in between."""

import copy
import json

import pytest

from rewarm.config.errors import DamagedFile
from rewarm.formats.checkpoint import parse_manifest, parse_state, read_manifest, read_state

ENTRY = {'bytes': 3, 'sha256': 'a' * 64}
MANIFEST = {
    'format': 1,
    'files': {'model.safetensors': ENTRY, 'state.json': ENTRY, 'optimizer-0001.safetensors': ENTRY, 'notes': ENTRY},
}
STATE = {
    'format': 1,
    'batch': 20,
    'run_name': 'x',
    'tokens': 640,
    'lr': 1e-3,
    'settings': {'seed': 1},
    'optimizer': {'max_grad_norm': 1.0},
    'stages': [
        {
            'start_batch': 0,
            'lr_before': None,
            'mix': {'order': 'a'},
            'identity': {
                'name': 'a', 'batches': 100, 'tokens': 3200, 'tokens_per_batch': 32, 'schedule': {},
                'schedule_as_written': {}, 'streams': [], 'optimizer_state': 'keep',
            },
        }
    ],
    'algorithms': {
        'Rewarm': {
            'stage': 'a', 'start_batch': 0, 'start_tokens': 0, 'lr': 1e-3, 'lr_before': None, 'optimizer': {'eps': 1e-8},
        }
    },
}  # fmt: skip


def changed(content, *way, value=None, drop=False, name=None):
    """A copy in which one key is another value, is gone, or has another name."""
    content = copy.deepcopy(content)
    *parents, last = way
    inner = content
    for key in parents:
        inner = inner[key]
    if drop:
        del inner[last]
    elif name is not None:
        inner[name] = inner.pop(last)
    else:
        inner[last] = value
    return content


def manifest(content):
    return parse_manifest(json.dumps(content).encode(), 'ba00000020/manifest.json')


def state(content):
    return parse_state(json.dumps(content).encode(), 'ba00000020/state.json')


def test_a_manifest_gives_its_files_and_says_what_is_not_there():
    read = manifest(MANIFEST)
    assert read.files['notes'].bytes == 3
    assert read.optimizer_files == ['optimizer-0001.safetensors']
    there = dict.fromkeys(MANIFEST['files'], 3)
    assert read.wrong_sizes(there) == []
    assert read.wrong_sizes({**there, 'notes': 1_000, 'other': 1}) == ['notes has 1,000 bytes instead of 3']
    assert read.wrong_sizes({}) == [f'{name} is missing' for name in MANIFEST['files']]


FILE = ('files', 'state.json')


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (changed(MANIFEST, 'format', drop=True), 'format: is missing'),
        (changed(MANIFEST, 'format', value=2), 'has format 2, and this version of rewarm reads format 1'),
        (changed(MANIFEST, 'format', value=True), 'valid integer'),
        (changed(MANIFEST, 'files', value=[]), 'files: '),
        (changed(MANIFEST, *FILE, drop=True), 'does not list state.json'),
        (changed(MANIFEST, 'files', 'model.safetensors', name='Model.safetensors'), 'does not list model.safetensors'),
        *((changed(MANIFEST, *FILE, value=value), r'files.state\.json') for value in (None, 5, 'x', [], {})),
        *((changed(MANIFEST, *FILE, 'bytes', value=value), 'bytes') for value in (None, '3', -1, 1.5, True, 3.0)),
        *(
            (changed(MANIFEST, *FILE, 'sha256', value=value), 'sha256')
            for value in (None, '', 'a' * 63, 'a' * 65, 'A' * 64, 'g' * 64, 'a' * 64 + '\n', 5)
        ),
        *((changed(MANIFEST, *FILE, key, drop=True), f'{key}: is missing') for key in ('bytes', 'sha256')),
        *(
            (changed(MANIFEST, 'files', 'notes', name=name), 'the name')
            for name in ('', '.', '..', '../x', '/etc/passwd', 'a/b', 'a\0b', 'x' * 300, 'manifest.json', 'unfinished.json')
        ),
        ([], 'object'),
        (None, 'object'),
    ],
)  # fmt: skip
def test_a_manifest_with_anything_wrong_is_refused_with_the_place(content, words):
    with pytest.raises(DamagedFile, match=words):
        manifest(content)


@pytest.mark.parametrize('text', [b'', b'{', b'\xff', b'[' * 100_000, b'{"format": 1, "format": 1}', b'NaN'])
def test_what_is_no_json_is_damage(text):
    for read in (parse_manifest, parse_state):
        with pytest.raises(DamagedFile, match='a file: damaged'):
            read(text, 'a file')


def test_files_that_are_no_files_are_damage_and_a_missing_one_is_missing(tmp_path):
    for read, name in ((read_manifest, 'manifest.json'), (read_state, 'state.json')):
        with pytest.raises(FileNotFoundError):
            read(tmp_path)
        (tmp_path / name).symlink_to('/dev/zero')
        with pytest.raises(DamagedFile, match='no regular file'):
            read(tmp_path)


def test_a_state_is_one_of_a_run_with_all_its_parts_or_one_with_the_position_only():
    trained, content = state({**STATE, 'added_later': 1})
    assert trained.is_trained
    assert trained.stages is not None
    assert (trained.batch, trained.stages[0].identity.name, content['added_later']) == (20, 'a', 1)
    assert not state({'batch': 0})[0].is_trained
    imported = {'lr': None, 'stages': [], 'algorithms': {'Rewarm': {'stage': None, 'lr': None, 'optimizer': None}}}
    assert not state({'batch': 0, 'tokens': 0, **imported})[0].is_trained
    for key in ('settings', 'optimizer', 'stages', 'algorithms', 'tokens', 'lr', 'batch'):
        with pytest.raises(DamagedFile, match=f'{key}.*is missing'):
            state(changed(STATE, key, drop=True))


WAYS = [
    *((key,) for key in STATE if key != 'format'),
    *(('stages', 0, key) for key in STATE['stages'][0]),
    *(('stages', 0, 'identity', key) for key in STATE['stages'][0]['identity']),
    *(('algorithms', 'Rewarm', key) for key in STATE['algorithms']['Rewarm']),
]


@pytest.mark.parametrize('way', WAYS)
def test_each_key_of_a_state_has_its_type(way):
    for value in (5, 'x', -1, True, [1], {'a': 1}, 1.5):
        content = changed(STATE, *way, value=value)
        inner = STATE
        for key in way:
            inner = inner[key]
        fits = type(value) is type(inner) or (isinstance(inner, float) and type(value) is int) or inner is None
        if fits and not isinstance(value, list):
            continue  # another value of the same type is another state
        with pytest.raises(DamagedFile):
            state(content)


def test_a_run_goes_on_only_from_a_state_with_every_key():
    assert state(STATE)[0].lacks() == []
    for way in WAYS:
        content = changed(STATE, *way, drop=True)
        try:
            assert '.'.join(map(str, way)) in state(content)[0].lacks()
        except DamagedFile as error:
            assert f'{way[-1]}' in str(error)  # noqa: PT017
    assert state(changed(STATE, 'algorithms', 'Rewarm', name='Other'))[0].lacks() == ['algorithms.Rewarm']
