"""A path in a bucket is taken, or refused as it was written: ``s3:/bkt`` is never read or printed."""

import inspect
import typing
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from rewarm.cli.arguments import local_path
from rewarm.cli.commands import app
from rewarm.config.errors import UserError

URL = 's3://bkt/some/place'

COMMANDS = [
    (['plan', URL], 2),
    (['ranks', URL, '--available', '8'], 2),
    (['train', URL], 2),
    (['report', 'runs/x', '--out', URL], 2),
    (['export', 'runs/x', URL], 2),
    (['export', 'runs/x', 'out', '--config', URL], 2),
    (['import', URL, 'out'], 2),
    (['import', 'hf', URL], 2),
    (['examples', URL], 2),
    (['demo', URL], 2),
    (['demo', '--figure', URL], 2),
    (['convert', 'nothing.txt', 'out', '--seq-len', '8', '--tokenizer', URL], 2),
    (['export', 'runs/x', 'out', '--tokenizer', URL], 2),
    (['convert', 'a.txt', 'out', '--seq-len', '8', '--tokenizer', 't.json', '--staging', URL], 2),
]


def callbacks():
    return {command.name or command.callback.__name__: command.callback for command in app.registered_commands}


@pytest.mark.parametrize('name', callbacks())
def test_every_path_of_this_machine_is_read_by_the_one_reader(name):
    for argument, kind in typing.get_type_hints(callbacks()[name], include_extras=True).items():
        options = [each for each in typing.get_args(kind) if isinstance(each, typer.models.ParameterInfo)]
        plain = typing.get_args(kind)[0] if options else kind
        if Path in (plain, *typing.get_args(plain)):
            assert [each.parser for each in options] == [local_path], argument
    assert inspect.isfunction(callbacks()[name])


@pytest.mark.parametrize(('command', 'code'), COMMANDS)
def test_a_url_is_refused_as_it_was_written(command, code, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, command)
    said = result.output + (str(result.exception) if isinstance(result.exception, UserError) else '')
    assert result.exit_code == code or isinstance(result.exception, UserError), said
    assert 's3:/b' not in said.replace(URL, ''), said
    assert not list(tmp_path.iterdir())


def test_a_home_is_put_in_and_a_secret_is_not_said(monkeypatch):
    monkeypatch.setenv('HOME', '/home/me')
    assert local_path('~/x') == Path('/home/me/x')
    with pytest.raises(typer.BadParameter, match='is not on this machine') as error:
        local_path('https://me:hunter2@host/x')
    assert 'hunter2' not in str(error.value)
