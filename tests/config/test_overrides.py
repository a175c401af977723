import pytest

from rewarm.config.load import load


@pytest.mark.parametrize(
    ('override', 'problem'),
    [
        ('stages.²=1', '`stages.²`: `stages` is a list with positions 0 to 1'),
        ('stages.٣.name=x', '`stages.٣`: `stages` is a list'),
        ('stages.' + '9' * 5000 + '=1', '`stages.999'),
        ('a.' * 3000 + 'b=1', '`a.a.'),
        ('seed=' + '[' * 2000, 'nested more than 40 levels deep'),
        ('seed=' + '{a: ' * 2000, 'nested more than 40 levels deep'),
        (
            'run_folder=runs/a #2',
            '`run_folder=runs/a #2`: YAML reads ` #` and what follows as a comment. Put the value in quotes',
        ),
        ('eval.sets=[] # none', '`eval.sets=[] # none`: YAML reads ` #`'),
        ('seed=1\n---\n2', 'a second document begins here'),
        ('run_folder=\ud800', 'not valid YAML'),
    ],
)
def test_an_override_that_cannot_be_put_in(problems_of, override, problem):
    problems = problems_of(overrides=(override,))
    assert any(line.startswith('command line: ') and problem in line for line in problems), problems
    assert max(map(len, problems)) <= 1000


def test_a_hash_in_quotes_or_in_a_word_is_no_comment(write_run):
    config = load(write_run(), ['run_folder="runs/a #2"', 'stages.0.train.streams.0.local=data/a#b'])
    assert config.run_folder == 'runs/a #2'
    assert config.stages[0].train.streams[0].local == 'data/a#b'


def test_what_a_shell_takes_away_is_advised_with_it(problems_of):
    assert problems_of(overrides=('run_name=007',)) == (
        'command line: `run_name` must be text, got 7. Put it in quotes that the shell leaves: run_name=\'"007"\'',
    )


def test_a_secret_is_not_shown(problems_of):
    problems = problems_of(
        ('{tensorboard: {}}', '{neptune: {api_token: hunter2}}'), overrides=('loggers.neptune.api_token.x=1',)
    )
    assert problems
    assert 'hunter2' not in str(problems)
