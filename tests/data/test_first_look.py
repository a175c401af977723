"""A text that is not where it is said to be is told at the first record of each file, with what is there instead."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet
import pytest
import zstandard

from rewarm.config.errors import UserError
from rewarm.data.first_look import look_at_sources
from rewarm.data.sources import find_sources


def look(path, text_key='text'):
    look_at_sources(find_sources([str(path)]), text_key)


def problem_of(path, text_key='text'):
    with pytest.raises(UserError) as error:
        look(path, text_key)
    return str(error.value).replace(f'{path}/', '')


def lines_of(*records):
    return ''.join(json.dumps(record) + '\n' for record in records).encode()


def write_table(path, **columns):
    table = pa.table(columns)
    if path.suffix == '.parquet':
        pyarrow.parquet.write_table(table, path)
    else:
        make = pa.ipc.new_file if 'file' in path.name else pa.ipc.new_stream
        with make(str(path), table.schema) as writer:
            writer.write_table(table)


@pytest.mark.parametrize('name', ['a.jsonl', 'a.jsonl.gz', 'a.jsonl.zst'])
def test_lines_say_which_keys_the_first_record_has(tmp_path, name):
    data = lines_of({'id': 'x', 'content': 'a text', 'meta': {}}, {'id': 'y', 'content': 'another', 'meta': {}})
    pack = {'.gz': gzip.compress, '.zst': zstandard.ZstdCompressor().compress}.get(name[7:], bytes)
    (tmp_path / name).write_bytes(pack(data))
    assert problem_of(tmp_path) == (
        f"{name}:1: no key 'text'; the record has id, content, meta. Name one with --text-key, such as --text-key content"
    )
    look(tmp_path, 'content')


@pytest.mark.parametrize('name', ['a.parquet', 'a.arrow', 'a-file.arrow'])
def test_tables_say_which_columns_they_have(tmp_path, name):
    write_table(tmp_path / name, n=[1], body=['x'])
    assert problem_of(tmp_path) == (
        f"{name}: no column 'text'; it has n, body. Name one with --text-key, such as --text-key body"
    )
    assert "column 'n' is int64, not text" in problem_of(tmp_path, 'n')
    look(tmp_path, 'body')


def test_a_key_that_holds_no_text_is_said(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(lines_of({'text': ['a', 'b'], 'raw': 'a b'}))
    assert problem_of(tmp_path).startswith(
        "a.jsonl:1: 'text' is list, not a string; the record has text, raw. Name one"
    )


def test_a_folder_of_several_formats_names_every_key_that_is_needed(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(lines_of({'text': 'x'}))
    write_table(tmp_path / 'b.parquet', content=['x'], id=[1])
    (tmp_path / 'c.jsonl').write_bytes(lines_of({'body': 'x'}))
    said = problem_of(tmp_path)
    assert said.splitlines()[0] == "b.parquet: no column 'text'; it has content, id"
    assert "c.jsonl:1: no key 'text'; the record has body. " in said
    assert 'Name them with --text-key text,content,body' in said
    look(tmp_path, 'text,content,body')
    look(tmp_path, 'body, content, text')


def test_many_files_are_not_all_listed(tmp_path):
    for number in range(8):
        (tmp_path / f'{number}.jsonl').write_bytes(lines_of({'body': 'x'}))
    said = problem_of(tmp_path)
    assert said.count('no key') == 5
    assert 'and 3 more files. Name one with --text-key, such as --text-key body' in said


@pytest.mark.parametrize(
    'data',
    [
        b'',
        b'\n  \n',
        b'{"text": ""}',
        b'\xef\xbb\xbf{"text": "behind a byte order mark"}',
        b'no json\n' * 5,
        b'{"header": 1}\n{"text": "one has it"}\n',
        b'{"header": 1}\n' * 900 + b'{"text": "the last that is looked at has it"}\n' * 100,
        b'{"text": null}\n' * 5,
        b'[' * 100_000,
        b'{"text": "' + b'long ' * 100_000 + b'"}\n',
    ],
)
def test_single_bad_records_are_none_of_its_business(tmp_path, data):
    (tmp_path / 'a.jsonl').write_bytes(data)
    look(tmp_path)


def test_a_key_with_a_comma_is_taken_as_it_is_written(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(lines_of({'a,b': 'x'}))
    look(tmp_path, 'a,b')
    write_table(tmp_path / 'b.parquet', **{'a,b': ['x']})
    look(tmp_path, 'a,b')


def test_a_record_of_many_and_long_keys_is_shortened(tmp_path):
    (tmp_path / 'a.jsonl').write_bytes(lines_of({'k' * 500: 1, **{f'key{n}': n for n in range(100)}}))
    said = problem_of(tmp_path)
    assert len(said) < 500
    assert 'key18, ...' in said


@pytest.mark.parametrize(('name', 'words'), [('a.jsonl.gz', 'read to its end'), ('a.parquet', 'read as parquet')])
def test_a_file_that_cannot_be_read_is_said_at_once(tmp_path, name, words):
    (tmp_path / name).write_bytes(b'not that kind of file at all')
    assert words in problem_of(tmp_path)
