"""Which releases of loggers' clients work, and what is said of one that does not."""

import importlib.metadata

import pytest

from rewarm.config.errors import UserError
from rewarm.config.load import load
from rewarm.config.loggers import CLIENTS, LOGGERS, check_client, missing_client, odd_client, untried_client, wrong_type
from rewarm.config.show import plan_command


@pytest.fixture
def installed(monkeypatch):
    """Pretends that only these releases are installed."""

    def install(**versions: str) -> None:
        def version(name: str) -> str:
            if (found := versions.get(name.replace('-', '_'))) is None:
                raise importlib.metadata.PackageNotFoundError(name)
            return found

        monkeypatch.setattr(importlib.metadata, 'version', version)

    return install


@pytest.mark.parametrize('version', ['0.18.7', '0.19.11', '0.25.1', '0.9'])
def test_a_release_that_does_not_work_is_refused_with_the_command_that_installs_one_that_does(installed, version):
    installed(wandb=version)
    expected = (
        f'wandb {version} does not work here; wandb 0.26 up to, not including, 0.32, does. '
        "Run: pip install 'rewarm[wandb]'"
    )
    assert odd_client('wandb') == expected
    with pytest.raises(UserError, match='does not work here'):
        check_client('wandb')


@pytest.mark.parametrize('version', ['0.26.0', '0.31.0', '0.31.5rc1'])
def test_releases_that_work(installed, version):
    installed(wandb=version)
    check_client('wandb')
    assert untried_client('wandb') is None


def test_a_newer_release_is_tried_with_a_warning(installed):
    installed(wandb='0.32.0')
    check_client('wandb')
    assert (untried_client('wandb') or '').startswith('wandb 0.32.0 is newer than what was tried')


def test_either_package_of_mlflow_will_do(installed):
    installed(mlflow='2.22.5')
    check_client('mlflow')
    installed()
    assert missing_client('mlflow') == "mlflow-skinny is not installed here. Run: pip install 'rewarm[mlflow]'"
    with pytest.raises(UserError, match='not installed here'):
        check_client('mlflow')


def test_local_loggers_need_nothing(installed):
    installed()
    for name in LOGGERS:
        assert (missing_client(name) is None) == (name not in CLIENTS)


def test_the_plan_refuses_what_cannot_log_and_says_what_is_missing(write_run, installed, capsys):
    path = write_run(('{tensorboard: {}}', '{wandb: {project: p}}'))
    installed(wandb='0.24.0')
    with pytest.raises(UserError, match=r'loggers.wandb: wandb 0.24.0 does not work here'):
        plan_command(path)
    assert load(path).loggers == {'wandb': {'project': 'p'}}  # a run that trains is told by its loggers, and goes on
    installed()
    plan_command(path)
    assert "pip install 'rewarm[wandb]'" in ' '.join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ('kind', 'good', 'bad'),
    [
        ('count', [1, 100], [0, -1, 1.5, '3', True, None, 1 << 31]),
        ('flag', [True, False], [0, 'true', None]),
        ('text', ['a', None], [1, True, ['a'], {}]),
        ('texts', [['a'], [], None], ['a', [1], {}]),
        ('keys', [{}, {'a': 1}, None], ['a', [], 1]),
        ('number', [0.5, 3], [0, -1.0, '3', True, None]),
    ],
)
def test_kinds_of_arguments(kind, good, bad):
    assert not any(wrong_type(kind, value) for value in good)
    assert all(wrong_type(kind, value) for value in bad)


def test_arguments_are_checked_with_their_line(problems_of):
    for given, expected in {
        '{wandb: {project: 3}}': '`loggers.wandb.project` must be text, got 3',
        '{wandb: {tags: law}}': "`loggers.wandb.tags` must be a list of texts, got 'law'",
        '{wandb: {rank_zero_only: 1}}': '`loggers.wandb.rank_zero_only` must be true or false, got 1',
        '{mlflow: {experimentname: x}}': 'unknown key `loggers.mlflow.experimentname`. Did you mean `experiment_name`?',
        '{mlflow: {flush_interval: -1}}': '`loggers.mlflow.flush_interval` must be a whole number above 0, got -1',
        '{neptune: {api_token: 3}}': '`loggers.neptune.api_token` must be text, got ...',
        '{comet_ml: {exp_kwargs: x}}': "`loggers.comet_ml.exp_kwargs` must be a group of keys, got 'x'",
    }.items():
        (problem,) = problems_of(('{tensorboard: {}}', given))
        assert expected in problem
