"""A shard is what its index says, or damaged: its count, its offsets, what each sample says of itself, its ids."""

import io
import struct

import numpy as np
import pytest
from streaming import MDSWriter

from rewarm.config.errors import DamagedFile
from rewarm.formats import mds
from rewarm.formats.mds import problem_of_tokens, read_blocks
from rewarm.formats.shards import read_index

SAMPLES, LENGTH = 20, 9


def shard_of(tmp_path, encoding, dtype, length=lambda sample: LENGTH):
    with MDSWriter(out=str(tmp_path), columns={'tokens': encoding}) as writer:
        for sample in range(SAMPLES):
            tokens = np.arange(sample, sample + length(sample)).astype(dtype)
            writer.write({'tokens': tokens.tobytes() if encoding == 'bytes' else tokens})
    (shard,) = read_index(tmp_path / 'index.json').shards
    return shard, bytearray((tmp_path / shard.raw_data.basename).read_bytes())


def read(data, shard):
    return list(read_blocks(io.BytesIO(data), shard.samples, shard.encoding, 'shard'))


ENCODINGS = [
    (f'ndarray:uint16:{LENGTH}', 'uint16'),
    (f'ndarray:int64:{LENGTH}', 'int64'),
    ('ndarray:uint32', 'uint32'),
    ('ndarray', 'int32'),
    ('bytes', 'int64'),
]


@pytest.mark.parametrize('chunk_bytes', [1, 100, 8 << 20])
@pytest.mark.parametrize(('encoding', 'dtype'), ENCODINGS)
def test_all_tokens_are_read_in_any_chunks(tmp_path, monkeypatch, encoding, dtype, chunk_bytes):
    monkeypatch.setattr(mds, 'CHUNK_BYTES', chunk_bytes)
    blocks = read(*reversed(shard_of(tmp_path, encoding, dtype)))
    assert np.array_equal(np.concatenate(blocks), np.arange(SAMPLES)[:, None] + np.arange(LENGTH))


def test_samples_of_different_lengths_come_one_by_one(tmp_path):
    blocks = read(*reversed(shard_of(tmp_path, 'ndarray:uint16', 'uint16', length=lambda sample: sample % 3 + 1)))
    assert [block.shape for block in blocks] == [(1, sample % 3 + 1) for sample in range(SAMPLES)]


def set_word(place, value):
    def change(data):
        data[place : place + 4] = struct.pack('<I', value)

    return change


@pytest.mark.parametrize(
    ('damage', 'words'),
    [
        (set_word(0, SAMPLES + 1), 'it holds 21 samples, the index says 20'),
        (set_word(4, 3), 'not inside it, or not in order'),
        (set_word(8, 0), 'not inside it, or not in order'),
        (set_word(4 * (SAMPLES + 1), 1 << 31), 'not inside it, or not in order'),
        (lambda data: data.extend(b'more'), 'not inside it, or not in order'),
        (lambda data: data.__delitem__(slice(40, None)), 'ends before'),
        (lambda data: data.clear(), 'it holds 0 samples'),
    ],
)
@pytest.mark.parametrize(('encoding', 'dtype'), ENCODINGS)
def test_a_shard_that_is_not_laid_out_as_it_says_is_damaged(tmp_path, damage, words, encoding, dtype):
    shard, data = shard_of(tmp_path, encoding, dtype)
    damage(data)
    with pytest.raises(DamagedFile, match=words):
        read(data, shard)


@pytest.mark.parametrize(('encoding', 'dtype'), ENCODINGS)
def test_no_byte_makes_another_error(tmp_path, encoding, dtype):
    """Each byte of the shard set to three values: what is read is integers of the index's shape, or damage."""
    shard, data = shard_of(tmp_path, encoding, dtype)
    for place in range(len(data)):
        for value in (0, 0xFF, data[place] ^ 4):
            changed = bytearray(data)
            changed[place] = value
            try:
                blocks = read(changed, shard)
            except DamagedFile:
                continue
            assert sum(len(block) for block in blocks) == SAMPLES
            assert all(block.dtype.kind in 'iu' for block in blocks)


def test_floats_in_a_shard_that_does_not_say_its_type_are_refused(tmp_path):
    shard, data = shard_of(tmp_path, 'ndarray', 'float32')
    with pytest.raises(DamagedFile, match='no integer'):
        read(data, shard)


def test_tables_in_place_of_rows_are_refused(tmp_path):
    with MDSWriter(out=str(tmp_path), columns={'tokens': 'ndarray'}) as writer:
        writer.write({'tokens': np.zeros((3, 3), np.int32)})
    (shard,) = read_index(tmp_path / 'index.json').shards
    with pytest.raises(DamagedFile, match='2 dimensions'):
        read((tmp_path / shard.raw_data.basename).read_bytes(), shard)


def test_ids_that_the_vocabulary_lacks_are_named():
    assert problem_of_tokens(np.array([[0, 99]], np.uint16), 100) is None
    assert problem_of_tokens(np.array([[0, 100]], np.uint16), 100) == (
        'it holds the token id 100, but the vocabulary has 100 ids, 0 to 99'
    )
    assert problem_of_tokens(np.array([[-1, 5]], np.int64), None) == 'it holds the token id -1'
    assert problem_of_tokens(np.array([[1 << 63]], np.uint64), None) is None
