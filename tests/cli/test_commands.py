"""What every command shares: ``-h``, ``--version``, completion in a real shell."""

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from typer.main import get_command
from typer.testing import CliRunner

import rewarm
from rewarm.cli.commands import app

COMMANDS = sorted(get_command(app).commands)  # pyright: ignore


def invoke(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize('command', COMMANDS)
def test_every_command_answers_to_h(command):
    assert invoke(command, '-h') == invoke(command, '--help')


def test_the_version_is_that_of_the_package_and_needs_no_torch():
    assert invoke('--version') == f'rewarm {rewarm.__version__}\n'
    assert rewarm.__version__ == version('rewarm')
    code = "import sys; from rewarm.cli import main; sys.argv = ['rewarm', '--version']\n"
    code += 'try: main()\nexcept SystemExit: print(sorted({"torch", "numpy", "pydantic"} & {*sys.modules}))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == '[]'


def complete(*words: str, folder: Path) -> list[str]:
    """What bash offers once it has loaded what ``--show-completion`` prints."""
    script = 'eval "$(rewarm --show-completion)"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()\n'
    script += '_rewarm_completion rewarm; printf "%s\\n" "${COMPREPLY[@]}"'
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    done = subprocess.run(
        ['bash', '--norc', '-c', script, 'bash', *words],
        cwd=folder,
        env={**os.environ, 'PATH': path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not done.stderr
    return done.stdout.split()


def test_bash_completes_commands_options_run_files_and_run_folders(tmp_path):
    for name in ('runs/law', 'runs/.hidden'):
        (tmp_path / name).mkdir(parents=True)
    for name in ('law.yaml', 'notes.txt', 'runs/log.txt'):
        (tmp_path / name).touch()
    assert complete('rewarm', 'pl', folder=tmp_path) == ['plan']
    assert '--measured' in complete('rewarm', 'plan', '--m', folder=tmp_path)
    assert complete('rewarm', 'train', '', folder=tmp_path) == ['law.yaml', 'runs/']
    assert complete('rewarm', 'status', 'runs/l', folder=tmp_path) == ['runs/law/']
    assert complete('rewarm', 'status', 'nowhere/', folder=tmp_path) == []
