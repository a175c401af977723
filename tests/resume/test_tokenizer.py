"""A run keeps its tokenizer: written once, found again, and another one refused."""

import json
from types import SimpleNamespace

import pytest
from tokenizers import Tokenizer, models

from rewarm.config.errors import UserError
from rewarm.formats.tokenizer import tokenizer_hash
from rewarm.resume.tokenizer import keep_tokenizer


def make_tokenizer(path, letters='abc', **config):
    path.parent.mkdir(parents=True, exist_ok=True)
    vocab = {'<|endoftext|>': 0} | {letter: i + 1 for i, letter in enumerate(letters)}
    Tokenizer(models.BPE(vocab=vocab, merges=[])).save(str(path))
    if config:
        path.with_name('tokenizer_config.json').write_text(json.dumps(config))
    return path


def saved(path, tokenizer_hash):
    """A checkpoint, as far as it is looked at."""
    return SimpleNamespace(path=path, saved=SimpleNamespace(tokenizer_hash=tokenizer_hash))


def contents(folder):
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_it_is_written_once_with_what_lies_beside_it_and_transformers_loads_it(tmp_path):
    from transformers import AutoTokenizer

    source = make_tokenizer(tmp_path / 'source/tokenizer.json', eos_token='<|endoftext|>', model_max_length=10**30)
    kept = keep_tokenizer(tmp_path / 'run', named='source', found=source, saved=None)
    own = tmp_path / 'run/tokenizer'
    assert kept.hash == tokenizer_hash(own / 'tokenizer.json') == tokenizer_hash(source)
    assert {name: data for name, (data, _) in contents(own).items()} == kept.files
    assert (own / 'tokenizer_config.json').read_bytes() == source.with_name('tokenizer_config.json').read_bytes()
    before = contents(own)
    for found, checkpoint in ((source, None), (source, saved(tmp_path, kept.hash)), (None, saved(tmp_path, kept.hash))):
        assert keep_tokenizer(tmp_path / 'run', named='source', found=found, saved=checkpoint) == kept
    assert contents(own) == before
    assert AutoTokenizer.from_pretrained(own).eos_token == '<|endoftext|>'


def test_a_tokenizer_alone_gets_a_description_that_transformers_loads(tmp_path):
    from transformers import AutoTokenizer

    source = make_tokenizer(tmp_path / 'source/tokenizer.json')
    keep_tokenizer(tmp_path / 'run', named='source', found=source, saved=None)
    loaded = AutoTokenizer.from_pretrained(tmp_path / 'run/tokenizer')
    assert (loaded.eos_token, loaded('abc')['input_ids']) == ('<|endoftext|>', [1, 2, 3])


def test_another_one_than_the_run_has_begun_with_is_refused_and_before_that_it_is_put_right(tmp_path):
    first, other = make_tokenizer(tmp_path / 'a/tokenizer.json'), make_tokenizer(tmp_path / 'b/tokenizer.json', 'xyz')
    run = tmp_path / 'run'
    kept = keep_tokenizer(run, named='a', found=first, saved=None)
    with pytest.raises(UserError, match=r'`tokenizer`: b is another tokenizer .* Write `tokenizer: .*run/tokenizer`'):
        keep_tokenizer(run, named='b', found=other, saved=saved(tmp_path, kept.hash))
    assert tokenizer_hash(run / 'tokenizer/tokenizer.json') == kept.hash
    keep_tokenizer(run, named='b', found=other, saved=None)  # no batch was ever saved
    assert tokenizer_hash(run / 'tokenizer/tokenizer.json') == tokenizer_hash(other)


@pytest.mark.parametrize('damage', ['', '{}', 'missing', 'another'])
def test_one_that_was_damaged_comes_back_from_the_run_file_or_from_the_checkpoint(tmp_path, damage):
    source = make_tokenizer(tmp_path / 'source/tokenizer.json')
    run = tmp_path / 'run'
    kept = keep_tokenizer(run, named='source', found=source, saved=None)
    own = run / 'tokenizer/tokenizer.json'
    for found, checkpoint in ((source, tmp_path), (None, source.parent)):
        if damage == 'missing':
            own.unlink()
        elif damage == 'another':
            make_tokenizer(own, 'xyz')
        else:
            own.write_text(damage)
        assert keep_tokenizer(run, named='source', found=found, saved=saved(checkpoint, kept.hash)) == kept
        assert tokenizer_hash(own) == kept.hash


def test_nowhere_to_be_had_is_none_and_nothing_is_written_through_a_link(tmp_path):
    (tmp_path / 'run').mkdir()
    assert keep_tokenizer(tmp_path / 'run', named='x/y', found=None, saved=None) is None
    (tmp_path / 'elsewhere').mkdir()
    (tmp_path / 'run/tokenizer').symlink_to(tmp_path / 'elsewhere')
    source = make_tokenizer(tmp_path / 'source/tokenizer.json')
    with pytest.raises(UserError, match='is a file or a link'):
        keep_tokenizer(tmp_path / 'run', named='source', found=source, saved=None)
    assert list((tmp_path / 'elsewhere').iterdir()) == []
