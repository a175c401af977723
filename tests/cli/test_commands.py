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
    code += 'try: main()\nexcept SystemExit: print(sorted({"torch", "numpy", "composer"} & {*sys.modules}))'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[1] == '[]'


def complete(folder: Path, *lines: str) -> list[list[str]]:
    """What bash offers at the end of each line, once it has loaded what ``--show-completion`` prints."""
    script = 'eval "$(rewarm --show-completion)"\nfor line in "$@"; do COMPREPLY=(); IFS=" " read -ra COMP_WORDS <<< "${line}|"\n'
    script += 'COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); COMP_WORDS[COMP_CWORD]=${COMP_WORDS[COMP_CWORD]%|}\n'
    script += '_rewarm_completion rewarm; echo "${COMPREPLY[*]}"; done'
    path = f'{Path(sys.executable).parent}:{os.environ["PATH"]}'
    done = subprocess.run(
        ['bash', '--norc', '-c', script, 'bash', *lines],
        cwd=folder,
        env={**os.environ, 'PATH': path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not done.stderr
    return [line.split() for line in done.stdout.splitlines()]


def test_bash_completes_commands_options_run_files_and_run_folders(tmp_path):
    for name in ('runs/law', 'runs/.hidden'):
        (tmp_path / name).mkdir(parents=True)
    for name in ('law.yaml', 'notes.txt', 'runs/log.txt'):
        (tmp_path / name).touch()
    command, run_file, run_folder, nothing = complete(
        tmp_path, 'rewarm pl', 'rewarm train ', 'rewarm status runs/l', 'rewarm status nowhere/'
    )
    assert command == ['plan']
    assert run_file == ['law.yaml', 'runs/']
    assert run_folder == ['runs/law/']
    assert nothing == []
