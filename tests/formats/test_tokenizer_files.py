"""A tokenizer's hash is remembered by what its file holds, and by nothing else."""

import json

import pytest

from rewarm.config.errors import UserError
from rewarm.formats import tokenizer_files
from rewarm.formats.tokenizer import tokenizer_hash
from rewarm.formats.tokenizer_files import is_in_hub_cache, remembered_hash


@pytest.fixture(autouse=True)
def memory(tmp_path, monkeypatch):
    """A temporary folder of this test's own; each call as in a new process."""
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'tmp'))
    (tmp_path / 'tmp').mkdir()
    tokenizer_files._hash_of.cache_clear()
    yield lambda: [path for path in (tmp_path / 'tmp').rglob('*') if path.is_file()]
    tokenizer_files._hash_of.cache_clear()


def write(path, **content):
    path.write_text(json.dumps({'model': {'vocab': {'a': 0}}, **content}))
    return path


def test_it_is_computed_once_and_follows_the_file(tmp_path, memory, monkeypatch):
    path, calls = write(tmp_path / 'tokenizer.json'), []
    monkeypatch.setattr(tokenizer_files, 'tokenizer_hash', lambda path: calls.append(path) or tokenizer_hash(path))
    first = remembered_hash(path)
    assert first == tokenizer_hash(path)
    tokenizer_files._hash_of.cache_clear()
    assert remembered_hash(path) == first
    assert len(calls) == 1
    write(path, version='2')
    assert remembered_hash(path) == tokenizer_hash(path) != first
    assert len(memory()) == 2


def test_what_is_kept_and_damaged_is_made_anew(tmp_path, memory):
    path = write(tmp_path / 'tokenizer.json')
    first = remembered_hash(path)
    (kept,) = memory()
    kept.write_text('sha256:no hash')
    tokenizer_files._hash_of.cache_clear()
    assert remembered_hash(path) == first
    assert kept.read_text() == first


def test_a_folder_that_nobody_can_write_costs_time_only(tmp_path, monkeypatch):
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'not there'))
    path = write(tmp_path / 'tokenizer.json')
    assert remembered_hash(path) == tokenizer_hash(path)


def test_a_file_that_is_not_there_is_said(tmp_path):
    with pytest.raises(UserError, match='there is no such file'):
        remembered_hash(tmp_path / 'tokenizer.json')


@pytest.mark.parametrize(
    ('variables', 'folder'),
    [
        ({'HF_HUB_CACHE': '{0}/a'}, 'a'),
        ({'HF_HOME': '{0}/b'}, 'b/hub'),
        ({'XDG_CACHE_HOME': '{0}/c'}, 'c/huggingface/hub'),
        ({'HOME': '{0}/d'}, 'd/.cache/huggingface/hub'),
    ],
)
def test_the_cache_of_ids_is_where_the_library_has_it(tmp_path, monkeypatch, variables, folder):
    for name in ('HF_HUB_CACHE', 'HUGGINGFACE_HUB_CACHE', 'HF_HOME', 'XDG_CACHE_HOME'):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    assert not is_in_hub_cache('org/model')
    (tmp_path / folder / 'models--org--model').mkdir(parents=True)
    assert is_in_hub_cache('org/model')
    assert is_in_hub_cache('org/model@main')
