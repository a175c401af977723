"""One rule for every key that holds a path or a URL."""

from pathlib import Path

import pytest

from rewarm.config.load import dump, load

KEYS = {
    'run_folder': lambda path: f'run_folder={path}',
    'tokenizer': lambda path: f'tokenizer={path}',
    'stages.0.train.streams.0.local': lambda path: f'stages.0.train.streams.0.local={path}',
    'stages.0.train.streams.0.remote': lambda path: f'stages.0.train.streams.0.remote={path}',
    'eval.sets.0.local': lambda path: f'eval.sets.0.local={path}',
    'eval.sets.0.remote': lambda path: f'eval.sets.0.remote={path}',
    'model.init_from': lambda path: f'model.init_from=hf:{path}',
    'loggers': lambda path: f'loggers.tensorboard.log_dir={path}',
}


def value_of(config, key: str) -> str:
    if key == 'loggers':
        return config.loggers['tensorboard']['log_dir']
    value = config
    for part in key.split('.'):
        value = value[int(part)] if part.isdigit() else getattr(value, part)
    return value.removeprefix('hf:')


@pytest.mark.parametrize('key', KEYS)
@pytest.mark.parametrize(
    ('written', 'expanded'),
    [('~/x', '/home/me/x'), ('$DISK/x', '/big/x'), ('/a/$DISK', '/a//big'), ('a~/x', 'a~/x'), ('a/$1', 'a/$1')],
)
def test_home_and_variables_are_put_in(write_run, monkeypatch, key, written, expanded):
    monkeypatch.setenv('HOME', '/home/me')
    monkeypatch.setenv('DISK', '/big')
    config = load(write_run(), [KEYS[key](written)])
    assert value_of(config, key) == expanded
    Path('again.yaml').write_text(dump(config))
    assert load('again.yaml') == config


@pytest.mark.parametrize('key', KEYS)
@pytest.mark.parametrize(
    ('written', 'problem'),
    [
        ('$NOT_SET_HERE/x', 'holds `$NOT_SET_HERE`, which is not set in the environment. Set it, or write the path'),
        ('~nobody-of-that-name/x', 'begins with `~nobody-of-that-name`, whose home folder is not known'),
        ('$AGAIN/x', "is '$HOME/x' with its variables put in, which holds one again"),
        ('"a\\0b"', 'must not hold control characters'),
        ('"a\\e[31mb"', 'must not hold control characters'),
        ('"a\\u202eb"', 'must not hold control characters'),
        ('a\ufeffb', 'must not hold control characters'),
        ('" "', 'must not be empty'),
        ('a/' + 'b' * 256, 'has a name of 256 bytes in it, and file systems take 255'),
        ('a/' + 'ä' * 128, 'has a name of 256 bytes in it'),
        ('a/' * 3000, 'has 6,000 bytes, and at most 3,840 are possible'),
        ('s3://b/' + 'k/' * 600, 'has 1,207 bytes, and at most 1,024'),
        ('s3://me:hunter2@b/x', 'must not hold a password or key'),
        ('https://host/x?token=hunter2', 'must not hold a password or key'),
    ],
)
def test_what_no_path_is_is_refused_in_its_line(problems_of, monkeypatch, key, written, problem):
    monkeypatch.delenv('NOT_SET_HERE', raising=False)
    monkeypatch.setenv('AGAIN', '$HOME')
    override = KEYS[key](written).replace('hf:"', '"hf:')
    problems = problems_of(overrides=(override,))
    assert any(line.startswith(f'command line: `{key}') and problem in line for line in problems), problems
    assert 'hunter2' not in str(problems)


def test_a_path_is_one_line(problems_of):
    (problem,) = problems_of(overrides=('run_folder="a\\nb"',))
    assert problem.startswith('command line: `run_folder` must not hold control characters')
    (problem,) = problems_of(overrides=('model.init_from="hf:a\\nb"',))
    assert problem.startswith('command line: `model.init_from` must be `hf:<id or folder>`')


def test_the_password_of_a_bucket_belongs_into_the_environment(problems_of):
    (problem,) = problems_of(('runs/${run_name}', 's3://AKIA:hunter2@bucket/x'))
    assert problem.startswith('run.yaml:2: `run_folder` must not hold a password or key')
    assert '`AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`' in problem
    assert 'hunter2' not in problem


@pytest.mark.parametrize('key', ['run_name', 'stages.0.name', 'eval.sets.0.name', 'stages.0.train.streams.0.name'])
def test_a_name_fits_into_a_file_name(problems_of, key):
    problems = problems_of(overrides=(f'{key}={"a" * 300}',))
    assert f'command line: `{key}` has 300 characters, and at most 200 are possible' in problems
