"""The demo's text: what is taken from a standard library, what is held out, and what happens when there is too little."""

import json
import shutil
import sysconfig
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from rewarm.demo import corpus, stdlib

ROOT = Path(__file__).parents[2]
NAMES = ('old', 'old-unseen', 'old-val', 'new', 'new-val')


def read(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f'{name}.jsonl').read_text().splitlines()]


def test_validation_keeps_every_file_and_shortens_the_long_ones():
    documents = [stdlib.Document(str(n), 'line of text\n' * 10 ** (1 + n % 4)) for n in range(20)]
    kept = corpus.middles(documents)
    assert [document.source for document in kept] == [document.source for document in documents]
    assert sum(len(document.text) for document in kept) <= corpus.VAL_CHARACTERS
    assert kept[0] == documents[0]
    assert kept[3].text.startswith('line of text\n')


def test_too_small_a_library_is_refused_with_what_is_missing_and_what_to_write(tmp_path):
    library, out = tmp_path / 'lib', tmp_path / 'text'
    library.mkdir()
    for n in range(40):
        (library / f'module{n}.py').write_text(f'def f{n}():\n' + f'    x{n} = {n} + {n}\n' * 50)
    with pytest.raises(UserError) as refused:
        corpus.build(library, out, workers=1)
    message = str(refused.value)
    assert 'tokens of old data' in message
    assert 'no test, idlelib, tkinter' in message
    assert 'make demo PYTHON=' in message


def test_a_library_without_tests_is_enough_and_the_shortfall_is_said(tmp_path):
    tokens = {'old': 1_031_000, 'old-unseen': 640_000, 'new': 530_000}
    messages = corpus.check_amounts(tokens, tmp_path)
    assert len(messages) == 2
    assert '1.2 times' in messages[0]
    assert '1.5 times' in messages[1]
    assert corpus.check_amounts({**tokens, 'old-unseen': 800_000, 'new': 790_000}, tmp_path) == []


def test_amounts_are_those_that_the_yamls_read():
    rewarm, quick = (make_plan(load(ROOT / f'yamls/demo/{name}.yaml')) for name in ('rewarm', 'quick'))
    assert rewarm.stages[0].tokens <= corpus.UPSTREAM_TOKENS
    assert rewarm.stages[1].tokens == corpus.STAGE_TOKENS
    assert quick.stages[1].tokens < corpus.LEAST_TOKENS * corpus.STAGE_TOKENS


def test_the_same_library_gives_the_same_bytes_for_any_number_of_workers(tmp_path, monkeypatch):
    stdlib, library = Path(sysconfig.get_paths()['stdlib']), tmp_path / 'lib'
    for name in ('asyncio', 'email', 'json'):
        shutil.copytree(stdlib / name, library / name)
    monkeypatch.setattr(corpus, 'UPSTREAM_TOKENS', 20_000)
    monkeypatch.setattr(corpus, 'STAGE_TOKENS', 20_000)
    for workers in (1, 2):
        corpus.build(library, tmp_path / str(workers), workers=workers)
    for name in (*(f'{name}.jsonl' for name in NAMES), 'tokenizer.json'):
        assert (tmp_path / '1' / name).read_bytes() == (tmp_path / '2' / name).read_bytes()


@pytest.mark.slow
def test_this_pythons_library_becomes_the_demos_text(tmp_path):
    tokens = corpus.build(Path(sysconfig.get_paths()['stdlib']), tmp_path, workers=2)
    records = {name: read(tmp_path, name) for name in NAMES}
    sources = {name: {record['meta']['source'] for record in records[name]} for name in NAMES}
    assert not sources['old'] & sources['old-unseen']
    assert not (sources['old'] | sources['old-unseen'] | sources['new']) & (sources['old-val'] | sources['new-val'])
    assert not any(record['text'].lstrip().startswith('#') for record in records['old'])
    assert corpus.UPSTREAM_TOKENS <= tokens['old'] < corpus.UPSTREAM_TOKENS + 60_000  # less than a file more
    assert 25_000 < tokens['old-val'] < 60_000
    assert 25_000 < tokens['new-val'] < 60_000

    tokenizer = Tokenizer.from_file(str(tmp_path / 'tokenizer.json'))
    assert tokenizer.get_vocab_size() == corpus.VOCAB_SIZE
    assert tokenizer.token_to_id('<|endoftext|>') == 0
    text = records['new-val'][0]['text']
    assert tokenizer.decode(tokenizer.encode(text).ids) == text
