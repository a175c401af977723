"""Our shards are Streaming's, byte for byte; a packer can stop anywhere; damage is found."""

import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.config.errors import UserError
from rewarm.data.convert import convert
from rewarm.data.shards import Packer, ShardFormat, write_index
from rewarm.data.verify import foreign_datasets, verify_dataset
from rewarm.formats.card import CARD_NAME


def pack(shape, folder, chunks, **kwargs):
    folder.mkdir(exist_ok=True)
    entries = []
    packer = Packer(shape, folder, entries.append, **kwargs)
    for chunk in chunks:
        packer.add(np.asarray(chunk, shape.dtype))
    left = packer.close()
    return entries, left


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob('*') if path.is_file()}


@pytest.mark.parametrize('compression', [None, 'zstd', 'zstd:7'])
@pytest.mark.parametrize('dtype', ['uint16', 'uint32'])
def test_shards_and_index_are_what_mdswriter_writes(tmp_path, compression, dtype):
    from streaming import MDSWriter

    seq_len, count = 32, 201
    tokens = np.random.default_rng(0).integers(0, 1 << 16, count * seq_len + 5).astype(dtype)
    shape = ShardFormat(seq_len, dtype, compression, shard_bytes=3000)
    entries, left = pack(shape, tmp_path / 'ours', [tokens[:777], tokens[777:800], tokens[800:]])
    write_index(tmp_path / 'ours', iter(entries))
    assert left == 4
    with MDSWriter(
        columns={'tokens': f'ndarray:{dtype}:{seq_len + 1}'}, out=str(tmp_path / 'theirs'), compression=compression,
        hashes=['sha1'], size_limit=3000,
    ) as writer:  # fmt: skip
        for i in range(count):
            writer.write({'tokens': tokens[i * seq_len : (i + 1) * seq_len + 1]})
    ours, theirs = files(tmp_path / 'ours'), files(tmp_path / 'theirs')
    assert ours.keys() == theirs.keys()
    assert len(ours) > 5
    if compression:
        # zstd's bytes may differ by version of the library; what they hold may not.
        a, b = json.loads(ours['index.json']), json.loads(theirs['index.json'])
        for entry in (*a['shards'], *b['shards']):
            entry['zip_data'] = entry['zip_data']['basename']
        assert a == b
    else:
        assert ours == theirs


@settings(max_examples=50, deadline=None)
@given(
    total=st.integers(0, 700), cuts=st.lists(st.integers(0, 700), max_size=6), seq_len=st.integers(1, 9),
    stop=st.integers(0, 6),
)  # fmt: skip
def test_a_packer_that_stops_and_goes_on_packs_the_same(tmp_path_factory, total, cuts, seq_len, stop):
    shape = ShardFormat(seq_len, 'uint16', shard_bytes=400)
    tokens = np.arange(total, dtype='uint16')
    edges = [0, *sorted(min(c, total) for c in cuts), total]
    chunks = [tokens[a:b] for a, b in zip(edges, edges[1:], strict=False)]  # noqa: RUF007
    whole, broken = tmp_path_factory.mktemp('a'), tmp_path_factory.mktemp('b')
    expected, left = pack(shape, whole, chunks)
    entries = []
    first = Packer(shape, broken, entries.append)
    for chunk in chunks[:stop]:
        first.add(chunk)
    first.wait()
    rest, left_too = pack(shape, broken, chunks[stop:], pending=first.pending, number=len(entries))
    assert (entries + rest, left_too) == (expected, left)
    assert files(whole) == files(broken)
    samples = sum(entry['samples'] for entry in expected)
    assert samples == max(0, total - 1) // seq_len
    assert left == (total - 1 - samples * seq_len if samples else total)


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        ({'seq_len': 0}, '--seq-len must be at least 1'),
        ({'compression': 'gz'}, '--compression must be zstd'),
        ({'compression': 'zstd:99'}, 'level from 1 to 22'),
        ({'shard_bytes': 100}, '--shard-bytes must hold a block'),
        ({'shard_bytes': 1 << 33}, 'below 4 GiB'),
    ],
)
def test_a_format_that_cannot_be_is_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        ShardFormat(**{'seq_len': 64, 'dtype': 'uint16', **kwargs})


@pytest.fixture(scope='module')
def dataset(tmp_path_factory, tokenizer_path) -> Path:
    folder = tmp_path_factory.mktemp('verify')
    lines = [json.dumps({'text': f'document {i * 7919 % 1000} of {i * i} words, ' * (i % 7 + 1)}) for i in range(300)]
    (folder / 'a.jsonl').write_text('\n'.join(lines))
    convert([str(folder / 'a.jsonl')], str(folder / 'out'), tokenizer=str(tokenizer_path), seq_len=32, workers=1,
            shard_bytes=4000, compression='zstd', val_fraction=0.2, progress=False)  # fmt: skip
    return folder / 'out'


@pytest.fixture
def copy(dataset, tmp_path) -> Path:
    import shutil

    return Path(shutil.copytree(dataset, tmp_path / 'copy'))


def test_a_whole_dataset_has_no_problems(dataset):
    assert verify_dataset(dataset) == []
    assert verify_dataset(dataset / 'val') == []


def edit_json(path, edit):
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ('damage', 'problem'),
    [
        (lambda f: flip(f / 'shard.00001.mds.zstd'), 'its sha1 is not what index.json says'),
        (lambda f: (f / 'shard.00001.mds.zstd').unlink(), r'shard\.00001\.mds: missing'),
        (lambda f: (f / 'shard.00001.mds.zstd').write_bytes(b'short'), 'it has 5 bytes instead of'),
        (lambda f: (f / CARD_NAME).unlink(), 'missing; without it'),
        (lambda f: (f / CARD_NAME).write_text('{}'), 'damaged: version: is missing'),
        (lambda f: edit_json(f / CARD_NAME, lambda c: c.update(vocab_size=100)), 'the vocabulary has 100 ids'),
        (lambda f: edit_json(f / CARD_NAME, lambda c: c.update(samples=c['samples'] + 1)), 'the card'),
        (lambda f: edit_json(f / CARD_NAME, lambda c: c.update(documents=3)), 'the card counts 3'),
        (lambda f: edit_json(f / CARD_NAME, lambda c: c.update(seq_len=64)), 'the card says 65'),
        (lambda f: edit_json(f / 'index.json', lambda c: c['shards'].pop(1)), 'the last token of the block before'),
        (lambda f: bomb(f), 'it unpacks to 268,435,456 bytes, the index says'),
        (lambda f: pipe(f), 'it is no regular file'),
        (lambda f: edit_json(f / 'index.json', lambda c: c['shards'][0].update(column_sizes=[4])), 'column_sizes is 4'),
        (lambda f: (f / 'index.json').write_text('{'), r'index\.json: damaged: byte 1: no JSON'),
    ],
)
def test_each_kind_of_damage_is_named(copy, damage, problem):
    import re

    damage(copy / 'train')
    problems = verify_dataset(copy)
    assert any(re.search(problem, line) for line in problems), problems


def lose_card(folder):
    for name in (CARD_NAME, 'rejects.jsonl'):
        (folder / name).unlink()


def test_a_dataset_of_another_program_is_foreign_and_not_damaged(copy):
    assert foreign_datasets(copy) == []
    lose_card(copy / 'train')
    assert verify_dataset(copy) == []
    assert foreign_datasets(copy) == [copy / 'train']
    flip(copy / 'train' / 'shard.00001.mds.zstd')
    assert len(verify_dataset(copy)) == 1


def test_a_shard_that_is_there_both_ways_is_checked_both_ways(copy):
    folder = copy / 'val'
    for packed in folder.glob('*.zstd'):
        packed.with_suffix('').write_bytes(zstandard.ZstdDecompressor().decompress(packed.read_bytes()))
    assert verify_dataset(folder) == []
    flip(folder / 'shard.00000.mds')
    assert [line.split(': ')[0] for line in verify_dataset(folder)] == [str(folder / 'shard.00000.mds')]


def bomb(folder):
    data = zstandard.ZstdCompressor(level=1).compress(bytes(256 << 20))
    (folder / 'shard.00001.mds.zstd').write_bytes(data)
    edit_json(
        folder / 'index.json',
        lambda c: c['shards'][1]['zip_data'].update(bytes=len(data), hashes={'sha1': hashlib.sha1(data).hexdigest()}),
    )


def pipe(folder):
    (folder / 'shard.00001.mds.zstd').unlink()
    os.mkfifo(folder / 'shard.00001.mds.zstd')


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_a_folder_that_is_no_dataset_is_said_to_be_none(tmp_path):
    with pytest.raises(UserError, match='this is no dataset'):
        verify_dataset(tmp_path)
