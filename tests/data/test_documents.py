"""Files to parts to documents: every format, every kind of bad record, lines counted right however the file is cut."""

import gzip
import hashlib
import itertools
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet
import pytest
import xxhash
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.config.errors import UserError
from rewarm.data import columns, documents, reading
from rewarm.data.documents import Reject, records
from rewarm.data.reading import read_parts
from rewarm.data.sources import Source, find_sources


def read(path, *, text_key='text', part_bytes=1 << 20, work=None):
    """(documents and rejects with their lines, SHA-256 of the files) of everything at ``path``."""
    found, hashes = [], []
    for index, source in enumerate(find_sources([str(path)])):
        parts = read_parts(
            source, index, text_key=text_key, work=work, on_read=lambda n: None, on_hash=hashes.append,
            part_bytes=part_bytes,
        )  # fmt: skip
        for part in parts:
            assert part.source == index
            found += [(line, text) for line, text in records(part, text_key)]
    return found, hashes


def lines_of(*records_):
    return ''.join(json.dumps(r, ensure_ascii=False) + '\n' for r in records_).encode()


RECORDS = [
    {'text': 'first', 'meta': {'pile_set_name': 'Pile-CC'}},
    {'meta': '{"pile_set_name": "ArXiv"}', 'text': 'meta as a JSON string, and before the text'},
    {'text': 'no meta,\u2028 a line separator and \x85 that are no line ends'},
    {'text': 'zwölf Boxkämpfer 漢字 😀'},
]
TEXTS = [(i, r['text']) for i, r in enumerate(RECORDS, 1)]


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.jsonl.zst', 'a.json.gz', 'a.ndjson'])
def test_lines_of_json_are_read_from_any_compression(tmp_path, name):
    data = lines_of(*RECORDS)
    packed = {'.gz': gzip.compress, '.zst': zstandard.ZstdCompressor().compress}.get(name[name.rindex('.') :], bytes)(
        data
    )
    (tmp_path / name).write_bytes(packed)
    found, hashes = read(tmp_path / name)
    assert found == TEXTS
    assert hashes == [hashlib.sha256(packed).hexdigest()]


@pytest.mark.parametrize('compress', [gzip.compress, zstandard.ZstdCompressor().compress])
def test_files_joined_from_several_streams_are_read_to_their_end(tmp_path, compress):
    path = tmp_path / ('a.jsonl.gz' if compress is gzip.compress else 'a.jsonl.zst')
    path.write_bytes(compress(lines_of(*RECORDS[:2])) + compress(lines_of(*RECORDS[2:])))
    assert read(path)[0] == TEXTS


@pytest.mark.parametrize('suffix', ['gz', 'zst'])
def test_a_truncated_file_is_an_error_not_a_short_file(tmp_path, suffix):
    data = lines_of(*({'text': f'{i} {os.urandom(20).hex()}'} for i in range(2000)))
    packed = gzip.compress(data) if suffix == 'gz' else zstandard.ZstdCompressor().compress(data)
    path = tmp_path / f'a.jsonl.{suffix}'
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(UserError, match='cannot be read to its end'):
        read(path)


def test_each_bad_record_is_named_with_its_line_and_reason(tmp_path):
    raw = b'\xef\xbb\xbf' + lines_of(RECORDS[0]) + b'\r\n   \n'
    raw += b'{"text": "cut off\n["text"]\n{"meta": 1}\n{"text": null}\n{"text": ["a"]}\n{"text": "\\ud800"}\n{"text": "\xff"}\n'
    raw += b'[' * 100_000 + b'\n' + lines_of(RECORDS[1]).replace(b'\n', b'\r\n') + b'{"text": "no line end"}'
    (tmp_path / 'a.jsonl').write_bytes(raw)
    found, _ = read(tmp_path / 'a.jsonl', text_key='text')
    good = [(line, text) for line, text in found if isinstance(text, str)]
    bad = {line: text.reason for line, text in found if isinstance(text, Reject)}
    assert good == [(1, 'first'), (12, RECORDS[1]['text']), (13, 'no line end')]
    assert [bad[line].split(':')[0] for line in (4, 11)] == ['invalid JSON', 'invalid JSON']
    assert bad[5] == 'a JSON list, not an object'
    assert bad[6] == "no key 'text'"
    assert bad[7] == "'text' is NoneType, not a string"
    assert bad[8] == "'text' is list, not a string"
    assert bad[9] == 'lone surrogate'
    assert bad[10] == 'invalid UTF-8'


def test_another_key_can_hold_the_text(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(lines_of({'content': 'x', 'text': 'y'}))
    assert read(tmp_path / 'a.jsonl', text_key='content')[0] == [(1, 'x')]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=30).map(lambda b: b.replace(b'\n', b' ')), max_size=40), st.integers(1, 90))
def test_cutting_keeps_every_line_and_its_number(lines, part_bytes):
    data = b'\n'.join(lines)
    blocks = (data[i : i + 7] for i in range(0, len(data), 7))
    source = Source('a', 'a', 'jsonl', None, len(data), '')
    parts = list(reading._cut_lines(blocks, source, 0, part_bytes))
    assert b''.join(part.lines for part in parts) == data
    assert [part.index for part in parts] == list(range(len(parts)))
    for part, after in itertools.pairwise(parts):
        assert part.lines.endswith(b'\n')
        assert after.first_line == part.first_line + part.lines.count(b'\n')


@pytest.mark.parametrize('part_bytes', [64, 300, 5000])
def test_a_record_beyond_the_bound_is_rejected_without_being_held(tmp_path, monkeypatch, part_bytes):
    monkeypatch.setattr(documents, 'MAX_RECORD_BYTES', 400)
    monkeypatch.setattr(reading, 'MAX_RECORD_BYTES', 400)
    monkeypatch.setattr(reading, '_BLOCK_BYTES', 50)
    texts = [{'text': c * n} for c, n in (('a', 100), ('b', 3000), ('c', 100), ('d', 395), ('e', 350), ('f', 9000))]
    (tmp_path / 'a.jsonl').write_bytes(lines_of(*texts))
    found, _ = read(tmp_path / 'a.jsonl', part_bytes=part_bytes)
    kept = [(line, text[0] if isinstance(text, str) else text) for line, text in sorted(found, key=lambda x: x[0])]
    too_long = documents.TOO_LONG
    assert kept == [(1, 'a'), (2, too_long), (3, 'c'), (4, too_long), (5, 'e'), (6, too_long)]


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / 'b.txt').write_bytes(b'\xef\xbb\xbftwo\n\nlines\r\n')
    (tmp_path / 'a.txt.gz').write_bytes(gzip.compress('ä'.encode()))
    (tmp_path / 'c.txt').write_bytes(b'\xff')
    found, _ = read(tmp_path)
    assert found == [(1, 'ä'), (1, 'two\n\nlines\r\n'), (1, Reject('invalid UTF-8'))]


def test_a_long_text_file_comes_in_pieces_that_make_one_document(tmp_path):
    text = ''.join(f'line {i}, with ünïcödé\n' + '\n' * (i % 3) for i in range(3000))
    (tmp_path / 'a.txt').write_text(text, encoding='utf-8')
    (source,) = find_sources([str(tmp_path / 'a.txt')])
    parts = list(
        read_parts(
            source, 0, text_key='text', work=tmp_path, on_read=lambda n: None, on_hash=lambda h: None, part_bytes=4000
        )
    )
    assert len(parts) > 5
    assert ''.join(text for part in parts for _, text in records(part, 'text')) == text
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.digest for part in parts} == {xxhash.xxh3_64_digest(text.encode(), seed=0x72657761726D3032)}


def test_invalid_utf8_deep_in_a_long_text_file_rejects_all_of_it(tmp_path):
    (tmp_path / 'a.txt').write_bytes(b'line\n' * 5000 + b'\xff' + b'line\n' * 5000)
    found, hashes = read(tmp_path / 'a.txt', part_bytes=4000)
    assert found == [(1, Reject('invalid UTF-8'))]
    assert len(hashes) == 1


@pytest.mark.parametrize('kind', [pa.string(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_parquet_rows_come_in_order_and_nulls_are_rejected(tmp_path, kind):
    texts = [f'ä {i}' * 20 for i in range(2500)]
    column = pa.array([*texts, None, 'last'], pa.string()).cast(kind)
    pyarrow.parquet.write_table(
        pa.table({'n': range(2502), 'text': column}), tmp_path / 'a.parquet', row_group_size=700
    )
    found, _ = read(tmp_path / 'a.parquet', part_bytes=5000)
    assert found == [*enumerate(texts, 1), (2501, Reject('the text is missing')), (2502, 'last')]


def test_a_column_that_is_not_there_or_not_text_is_named(tmp_path):
    pyarrow.parquet.write_table(pa.table({'n': [1], 'body': ['x']}), tmp_path / 'a.parquet')
    with pytest.raises(UserError, match="no column 'text'; it has n, body"):
        read(tmp_path / 'a.parquet')
    with pytest.raises(UserError, match="column 'n' is int64, not text"):
        read(tmp_path / 'a.parquet', text_key='n')


def save_to_disk(folder, shards):
    """What `datasets.Dataset.save_to_disk` writes: Arrow streams, and the order in state.json."""
    folder.mkdir(parents=True)
    names = []
    for number, texts in enumerate(shards):
        names.append(f'data-{number:05}-of-{len(shards):05}.arrow')
        table = pa.table({'text': texts})
        with pa.ipc.new_stream(str(folder / names[-1]), table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    (folder / 'dataset_info.json').write_text('{}')
    (folder / 'state.json').write_text(json.dumps({'_data_files': [{'filename': n} for n in reversed(names)]}))
    (folder / 'cache-123.arrow').write_bytes(b'not part of it')


def test_a_dataset_on_disk_is_read_in_the_order_of_its_state(tmp_path):
    save_to_disk(tmp_path / 'd', [['a', 'b', 'c'], ['d']])
    assert [text for _, text in read(tmp_path / 'd')[0]] == ['d', 'a', 'b', 'c']


def test_a_dataset_with_splits_must_be_named_by_split(tmp_path):
    save_to_disk(tmp_path / 'd' / 'train', [['a']])
    save_to_disk(tmp_path / 'd' / 'test', [['b']])
    (tmp_path / 'd' / 'dataset_dict.json').write_text('{"splits": ["train", "test"]}')
    with pytest.raises(UserError, match=r'several splits \(test, train\)'):
        find_sources([str(tmp_path / 'd')])
    assert [text for _, text in read(tmp_path / 'd' / 'train')[0]] == ['a']


def test_arrow_files_of_other_programs_are_read_too(tmp_path):
    table = pa.table({'text': ['a', 'b']})
    with pa.ipc.new_file(str(tmp_path / 'a.arrow'), table.schema) as writer:
        writer.write_table(table)
    assert read(tmp_path / 'a.arrow')[0] == [(1, 'a'), (2, 'b')]


def test_folders_are_read_in_path_order_and_only_what_is_text(tmp_path):
    for name in ('b/2.jsonl', 'b/1.jsonl', 'a.jsonl', '.hidden.jsonl', '.git/x.jsonl', 'README.md', 'meta.json'):
        (tmp_path / 'c' / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / 'c' / name).write_bytes(lines_of({'text': name}))
    assert [s.name for s in find_sources([str(tmp_path / 'c')])] == ['c/a.jsonl', 'c/b/1.jsonl', 'c/b/2.jsonl']


def test_arguments_keep_their_order_and_equal_names_are_told_apart(tmp_path):
    for folder in ('y', 'x'):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / 'a.jsonl').write_bytes(b'')
    arguments = [str(tmp_path / 'y' / 'a.jsonl'), str(tmp_path / 'x' / 'a.jsonl')]
    assert [s.name for s in find_sources(arguments)] == arguments


def test_what_cannot_be_read_is_refused_with_what_can(tmp_path):
    (tmp_path / 'a.csv').write_bytes(b'')
    (tmp_path / 'empty').mkdir()
    for argument, message in (
        (tmp_path / 'a.csv', 'unknown kind of file. Readable: jsonl'),
        (tmp_path / 'empty', 'no file here that can be read'),
        (tmp_path / 'nowhere', 'no such file or folder'),
    ):
        with pytest.raises(UserError, match=message):
            find_sources([str(argument)])


# ---------------------------------------------------------------- what unpacks to more than memory holds


def frames(size, letter=b'\0', **options):
    """A zstd frame of one letter that is made without holding what it unpacks to."""
    packer = zstandard.ZstdCompressor(**options).compressobj()
    return b''.join(packer.compress(letter * (1 << 24)) for _ in range(size >> 24)) + packer.flush()


READ_ALL = """
import resource, sys
from rewarm.data.documents import records
from rewarm.data.reading import read_parts
from rewarm.data.sources import find_sources
(source,) = find_sources(sys.argv[1:])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
nothing = lambda _: None
parts = read_parts(source, 0, text_key='text', work=None, on_read=nothing, on_hash=nothing)
print(sum(1 for part in parts for _ in records(part, 'text')))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


@pytest.mark.parametrize(
    ('name', 'make', 'expected'),
    [
        ('one-line.jsonl.zst', lambda: frames(1 << 29), 1),
        ('line-ends.jsonl.zst', lambda: frames(1 << 28, b'\n'), 0),
        ('one-line.jsonl.gz', lambda: gzip.compress(bytes(64 << 20), 1), 1),
    ],
)
def test_hundreds_of_megabytes_in_a_few_bytes_are_read_in_little_memory(tmp_path, name, make, expected):
    (tmp_path / name).write_bytes(make())
    done = subprocess.run(
        [sys.executable, '-c', READ_ALL, str(tmp_path / name)], capture_output=True, text=True, check=True
    )
    records_, grown_kb = map(int, done.stdout.split())
    assert records_ == expected
    assert grown_kb < 256 << 10


def test_a_window_beyond_zstds_own_is_refused_with_the_way_out(tmp_path):
    parameters = zstandard.ZstdCompressionParameters.from_level(3, window_log=31)
    (tmp_path / 'a.jsonl.zst').write_bytes(frames(1 << 24, compression_params=parameters))
    with pytest.raises(UserError, match=r'a\.jsonl\.zst: .*128 MiB.*zstd -d --long=31'):
        read(tmp_path / 'a.jsonl.zst')


@pytest.mark.parametrize('name', ['a.parquet', 'b.parquet', 'a.arrow'])
def test_rows_that_unpack_to_more_than_memory_are_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(columns, '_MEMORY_BYTES', 64 << 20)
    if name == 'a.parquet':  # one text
        table = pa.table({'text': ['a b ' * (32 << 20)]})
        pa.parquet.write_table(table, tmp_path / name, compression='zstd', use_dictionary=False)
    elif name == 'b.parquet':  # the same in each row
        pa.parquet.write_table(pa.table({'text': ['a b ' * (1 << 18)] * 300}), tmp_path / name, compression='zstd')
    else:
        table = pa.table({'text': ['a b ' * (1 << 18)] * 300})
        options = pa.ipc.IpcWriteOptions(compression='zstd')
        with pa.OSFile(str(tmp_path / name), 'wb') as file, pa.ipc.new_file(file, table.schema, options=options) as to:
            to.write_table(table)
    assert (tmp_path / name).stat().st_size < 1 << 18
    with pytest.raises(UserError, match=rf'{name}: a batch of its rows unpacks to more than 64 MiB'):
        read(tmp_path / name)
    pa.parquet.write_table(pa.table({'text': ['short']}), tmp_path / 'c.parquet')
    assert read(tmp_path / 'c.parquet')[0] == [(1, 'short')]


def test_a_saved_datasets_state_is_read_strictly(tmp_path):
    save_to_disk(tmp_path / 'saved', [['a']])
    for content, words in {'{"_data_files": [{}]}': 'filename: is missing', '[' * 5000: 'levels deep'}.items():
        (tmp_path / 'saved' / 'state.json').write_text(content)
        with pytest.raises(UserError, match=rf'state\.json: damaged: .*{words}'):
            find_sources([str(tmp_path / 'saved')])
