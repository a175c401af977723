"""The demo's text: what is taken from a standard library, what is held out, and what happens when there is too little."""

import ast
import json
import shutil
import sysconfig
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from rewarm.config.load import load
from rewarm.config.plan import make_plan
from scripts.demo import corpus

ROOT = Path(__file__).parents[2]
NAMES = ('old', 'old-unseen', 'old-val', 'new', 'new-val')

SOURCE = '''"""Module prose."""
# a comment
import os  # another


class A:
    """Class prose,
    two lines."""

    name = '# not a comment'

    def f(self):
        """Method prose."""
        return """not a docstring"""  # gone

    async def g(self):
        # only
        return 1


if os:
    def h():
        "Prose in a branch."
        x = 1
        "a string that is no docstring"
'''

CODE = '''import os


class A:
    name = '# not a comment'

    def f(self):
        return """not a docstring"""

    async def g(self):
        return 1


if os:
    def h():
        x = 1
        "a string that is no docstring"
'''


def read(folder: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (folder / f'{name}.jsonl').read_text().splitlines()]


def test_code_keeps_strings_and_loses_docstrings_and_comments():
    code = corpus.code_without_prose(SOURCE, ast.parse(SOURCE))
    assert code == CODE


def test_docstrings_are_found_at_every_depth_and_other_strings_are_not():
    found = {expr.value.value.split()[0] for expr in corpus.docstrings(ast.parse(SOURCE))}
    assert found == {'Module', 'Class', 'Method', 'Prose'}


def test_tests_give_prose_and_no_code(tmp_path):
    long = 'A docstring that is longer than sixty characters, so that it says something.'
    for name in ('test/a.py', 'b.py'):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f'def f():\n    """{long}"""\n    return 1\n')
    assert corpus.read_file(str(tmp_path / 'test/a.py')) == ('', [long])
    assert corpus.read_file(str(tmp_path / 'b.py')) == ('def f():\n    return 1\n', [long])
    (tmp_path / 'python2.py').write_text('print "no"\n')
    (tmp_path / 'latin.py').write_bytes(b'x = "\xe9"\n')
    assert corpus.read_file(str(tmp_path / 'python2.py')) == ('', [])
    assert corpus.read_file(str(tmp_path / 'latin.py')) == ('', [])


def test_who_is_held_out_depends_on_the_name_alone():
    held_out = [n for n in range(2400) if corpus.Document(f'package/module{n}.py', '').held_out]
    assert 150 < len(held_out) < 250  # one in twelve
    assert all(corpus.Document(f'package/module{n}.py', 'other text').held_out for n in held_out)


def test_validation_keeps_every_file_and_shortens_the_long_ones():
    documents = [corpus.Document(str(n), 'line of text\n' * 10 ** (1 + n % 4)) for n in range(20)]
    kept = corpus.middles(documents)
    assert [document.source for document in kept] == [document.source for document in documents]
    assert sum(len(document.text) for document in kept) <= corpus.VAL_CHARACTERS
    assert kept[0] == documents[0]
    assert kept[3].text.startswith('line of text\n')


def test_too_small_a_library_is_refused_with_what_is_missing_and_what_to_write(tmp_path, capsys):
    library, out = tmp_path / 'lib', tmp_path / 'text'
    library.mkdir()
    for n in range(40):
        (library / f'module{n}.py').write_text(f'def f{n}():\n' + f'    x{n} = {n} + {n}\n' * 50)
    with pytest.raises(SystemExit) as stopped:
        corpus.build(library, out, workers=1)
    assert stopped.value.code == 2
    message = capsys.readouterr().err
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
