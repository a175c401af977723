"""index.json: what Streaming and its merge_index write is read, and nothing that could lead elsewhere or be half read."""

import copy
import json
import os

import numpy as np
import pytest
from streaming import MDSWriter
from streaming.base.util import merge_index

from rewarm.config.errors import DamagedFile
from rewarm.formats.shards import Encoding, ShardFile, problem_of, read_index


def entry(number=0, **changes):
    return {
        'version': 2,
        'format': 'mds',
        'compression': 'zstd',
        'hashes': ['sha1'],
        'size_limit': 4096,
        'samples': 3,
        'raw_data': {'basename': f'shard.{number:05}.mds', 'bytes': 1200, 'hashes': {'sha1': '0' * 40}},
        'zip_data': {'basename': f'shard.{number:05}.mds.zstd', 'bytes': 700, 'hashes': {}},
        'column_names': ['tokens'],
        'column_encodings': ['ndarray:uint16:129'],
        'column_sizes': [258],
        **changes,
    }


def index_of(tmp_path, *entries, **changes):
    (tmp_path / 'index.json').write_text(json.dumps({'version': 2, 'shards': list(entries), **changes}))
    return read_index(tmp_path / 'index.json')


def file(name, size=1200):
    return {'basename': name, 'bytes': size, 'hashes': {}}


@pytest.mark.parametrize('compression', [None, 'zstd', 'zstd:7'])
@pytest.mark.parametrize('hashes', [None, ['sha1', 'xxh64']])
@pytest.mark.parametrize(
    ('encoding', 'expected'),
    [
        ('ndarray:uint16:8', Encoding('ndarray', 'uint16', 8)),
        ('ndarray:int64', Encoding('ndarray', 'int64', None)),
        ('ndarray', Encoding('ndarray', None, None)),
        ('bytes', Encoding('bytes', 'int64', None)),
    ],
)
def test_what_streaming_writes_and_merges_is_read(tmp_path, compression, hashes, encoding, expected):
    for group in ('g0', 'g1'):
        dtype = expected.dtype or 'int32'
        with MDSWriter(
            out=str(tmp_path / group), columns={'tokens': encoding}, compression=compression, hashes=hashes,
            size_limit=500,
        ) as writer:  # fmt: skip
            for start in range(30):
                tokens = np.arange(start, start + 8).astype(dtype)
                writer.write({'tokens': tokens.tobytes() if encoding == 'bytes' else tokens})
    merge_index(str(tmp_path), keep_local=True)
    index = read_index(tmp_path / 'index.json')
    assert index.samples == 60
    assert {shard.encoding for shard in index.shards} == {expected}
    assert index.shards[0].raw_data.basename == 'g0/shard.00000.mds'
    for shard in index.shards:
        last = shard.zip_data or shard.raw_data
        assert problem_of(tmp_path / last.basename, last) is None


@pytest.mark.parametrize(
    'name',
    [
        '../shard', 'a/../../shard', '/etc/passwd', 'a//b', './a', 'a/', '', 'a\0b', 'a\x1bb', 'x' * 250, 'index.json',
        'dataset_card.json', 'g0/index.json', 'rejects.jsonl', 'shard.mds.12.tmp', 'shard.00001.mds',
        'shard.00001.mds/a', 7, None,
    ],
)  # fmt: skip
@pytest.mark.parametrize('kind', ['raw_data', 'zip_data'])
def test_a_name_that_leads_elsewhere_or_shadows_another_is_refused(tmp_path, name, kind):
    with pytest.raises(DamagedFile, match=r'index\.json: damaged: '):
        index_of(tmp_path, entry(0, **{kind: file(name)}), entry(1))


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'column_names': ['tokens', 'image'], 'column_encodings': ['bytes', 'jpeg'], 'column_sizes': [None, None]},
         'one column `tokens` and no other; its columns are tokens: bytes, image: jpeg'),
        ({'column_names': ['text']}, 'its columns are text: ndarray:uint16:129'),
        ({'column_names': []}, 'one column'),
        ({'column_encodings': ['pkl']}, "must be ndarray of integers, in one row, or bytes; it is 'pkl'"),
        ({'column_encodings': ['ndarray:float32:129']}, 'ndarray of integers'),
        ({'column_encodings': ['ndarray:uint16:3,43']}, 'ndarray of integers'),
        ({'column_encodings': ['ndarray:uint16:0']}, 'ndarray of integers'),
        ({'column_encodings': ['ndarray:uint16:99999999999999999999']}, 'ndarray of integers'),
        ({'column_sizes': [256]}, 'column_sizes is 256'),
        ({'column_sizes': [None]}, 'column_sizes is None'),
        ({'compression': 'gz'}, "compression must be zstd, zstd:LEVEL or null, not 'gz'"),
        ({'compression': 'zstd:99'}, 'compression must be zstd'),
        ({'compression': None}, 'compression and zip_data'),
        ({'zip_data': None}, 'compression and zip_data'),
        ({'samples': 5}, '5 samples do not fit into the 1200 bytes'),
        ({'samples': -1}, 'shards.0.samples'),
        ({'samples': True}, 'shards.0.samples'),
        ({'version': 1}, 'shards.0.version'),
        ({'format': 'json'}, 'shards.0.format'),
        ({'raw_data': file('a', 1 << 32)}, 'shards.0.raw_data.bytes'),
        ({'raw_data': {'basename': 'a', 'bytes': 1200, 'hashes': None}}, 'shards.0.raw_data.hashes'),
        ({'raw_data': None}, 'shards.0.raw_data'),
    ],
)  # fmt: skip
def test_what_is_not_read_here_is_refused_by_name(tmp_path, changes, words):
    with pytest.raises(DamagedFile) as caught:
        index_of(tmp_path, entry(**changes))
    assert words in str(caught.value)
    assert len(str(caught.value)) < 600


def test_every_key_that_is_needed_is_missed(tmp_path):
    whole = entry()
    for key in set(whole) - {'hashes', 'size_limit', 'zip_data', 'compression'}:
        lacking = copy.deepcopy(whole)
        del lacking[key]
        with pytest.raises(DamagedFile, match=rf'shards\.0\.{key}: is missing'):
            index_of(tmp_path, lacking)


def test_an_index_of_more_samples_than_any_order_is_refused(tmp_path):
    bytes_coded = {'column_encodings': ['bytes'], 'column_sizes': [None], 'compression': None, 'zip_data': None}
    huge = [entry(**bytes_coded, samples=8 << 26, raw_data=file(f's{i}', (1 << 32) - 1)) for i in range(129)]
    with pytest.raises(DamagedFile, match='samples, more than'):
        index_of(tmp_path, *huge)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n', 'git-lfs pointer'),
        ('\n<!DOCTYPE html><html>404</html>', 'an HTML or XML page'),
        ('[' * 5000, 'levels deep'),
        ('', 'no JSON'),
        ('[]', 'damaged'),
        ('{"version": 2, "version": 2, "shards": []}', 'is there twice'),
    ],
)
def test_what_is_no_index_is_called_what_it_is(tmp_path, content, words):
    (tmp_path / 'index.json').write_text(content)
    with pytest.raises(DamagedFile, match=words):
        read_index(tmp_path / 'index.json')


@pytest.mark.parametrize('kind', ['pipe', 'device', 'folder', 'link to itself'])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / 'index.json'
    {
        'pipe': lambda: os.mkfifo(path),
        'device': lambda: path.symlink_to('/dev/zero'),
        'folder': path.mkdir,
        'link to itself': lambda: path.symlink_to(path),
    }[kind]()
    with pytest.raises(DamagedFile, match=r'no regular file|a folder|symbolic links'):
        read_index(path)
    assert problem_of(path, ShardFile(basename='a', bytes=4)) is not None
