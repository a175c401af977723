"""A tokenizer.json means one thing, or is refused before a library that aborts sees it."""

import copy
import json

import pytest

from rewarm.config.errors import UserError
from rewarm.formats.tokenizer import read_eos_token, read_tokenizer_file, tokenizer_hash

END = {'id': 0, 'content': '<|endoftext|>', 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False}
TOKENIZER = {
    'version': '1.0',
    'added_tokens': [{**END, 'special': True}],
    'normalizer': {'type': 'NFC'},
    'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False},
    'model': {'type': 'BPE', 'vocab': {'<|endoftext|>': 0, 'a': 1, 'b': 2}, 'merges': []},
}


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / 'tokenizer.json'
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


def changed(*keys, to):
    content = copy.deepcopy(TOKENIZER)
    place = content
    for key in keys[:-1]:
        place = place[key]
    place[keys[-1]] = to
    return content


def test_ids_are_those_of_the_vocabulary_and_the_added_tokens(written):
    file = read_tokenizer_file(written(changed('added_tokens', to=[{**END}, {**END, 'id': 7, 'content': '  '}])))
    assert file.ids == {'<|endoftext|>': 0, 'a': 1, 'b': 2, '  ': 7}
    assert file.num_ids == 8
    assert [token.content for token in file.added] == ['<|endoftext|>', '  ']


def test_in_a_unigram_the_place_is_the_id(written):
    content = changed('model', to={'type': 'Unigram', 'unk_id': 0, 'vocab': [['<|endoftext|>', 0.0], ['b', -1.5]]})
    assert read_tokenizer_file(written(content)).ids == {'<|endoftext|>': 0, 'b': 1}


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('', 'no JSON'),
        ('[]', r'tokenizer\.json: damaged: .*should be an object'),
        ('{}', 'model: is missing'),
        ('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n', 'git lfs pull'),
        (changed('model', to=None), 'model: should be an object'),
        ('{"model": {"type": "BPE", "vocab": {}}}', 'no token at all'),
        (changed('model', 'vocab', to=7), r'model\.vocab'),
        (changed('model', 'vocab', 'a', to='1'), r'model\.vocab.*integer'),
        (changed('model', 'vocab', 'a', to=2**31), r'model\.vocab.*less than 4194304'),
        (changed('model', 'vocab', 'a', to=-1), r'model\.vocab.*greater than or equal to 0'),
        (changed('model', 'vocab', 'a', to=2), "'a' and 'b' both have the id 2"),
        (changed('added_tokens', 0, 'id', to=2**31), r'added_tokens\.0\.id'),
        (
            changed('added_tokens', 0, 'id', to=9),
            r"added_tokens\.0: the token '<\|endoftext\|>' has the id 9 here and 0",
        ),
        (changed('added_tokens', 0, 'content', to=''), r'added_tokens\.0: a token without text'),
        (changed('added_tokens', 0, 'content', to='x'), 'both have the id 0'),
        (changed('added_tokens', to=[1]), r'added_tokens\.0'),
        (changed('pre_tokenizer', to='ByteLevel'), 'pre_tokenizer: should be'),
        (changed('pre_tokenizer', 'pattern', to=[{'Regex': '(a|b)' * 4000}]), 'Regex: a pattern of 20,000 characters'),
    ],
)
def test_what_is_no_tokenizer_is_told_with_its_place(written, content, words):
    with pytest.raises(UserError, match=words):
        read_tokenizer_file(written(content))


def test_an_absent_file_is_told(tmp_path):
    for read in (read_tokenizer_file, tokenizer_hash):
        with pytest.raises(UserError, match=r'none\.json: not a readable tokenizer\.json \(there is no such file\)'):
            read(tmp_path / 'none.json')


def test_the_hash_is_of_the_content(tmp_path):
    first, second = tmp_path / 'a.json', tmp_path / 'b.json'
    first.write_text(json.dumps({'a': 1, 'b': 'é'}))
    second.write_text(json.dumps({'b': 'é', 'a': 1}, indent=2, ensure_ascii=False))
    assert tokenizer_hash(first) == tokenizer_hash(second)
    assert tokenizer_hash(first).startswith('sha256:')
    second.write_text(json.dumps({'b': 'e', 'a': 1}))
    assert tokenizer_hash(first) != tokenizer_hash(second)


@pytest.mark.parametrize(
    ('text', 'token'),
    [
        ('{"eos_token": "</s>", "model_max_length": 1000000000000000019884624838656}', '</s>'),  # as most are written
        ('{"eos_token": {"__type": "AddedToken", "content": "</s>", "lstrip": false}}', '</s>'),
        ('{"eos_token": null}', None),
        ('{}', None),
    ],
)
def test_the_end_of_a_document_as_transformers_writes_it(tmp_path, text, token):
    (tmp_path / 'tokenizer_config.json').write_text(text)
    assert read_eos_token(tmp_path / 'tokenizer_config.json') == token
    assert read_eos_token(tmp_path / 'none.json') is None


@pytest.mark.parametrize(
    'text', ['', '[]', '{"eos_token": 5}', '{"eos_token": {}}', '{"a": ' * 5000, '{"a": "\\ud800"}x']
)
def test_a_damaged_tokenizer_config_is_told(tmp_path, text):
    (tmp_path / 'tokenizer_config.json').write_text(text)
    with pytest.raises(UserError, match=r'tokenizer_config\.json: damaged'):
        read_eos_token(tmp_path / 'tokenizer_config.json')
