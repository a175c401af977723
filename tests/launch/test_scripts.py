"""Each file of scripts/launch teaches at its top, and the shell's own checkers find nothing in it."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.conftest import ROOT

FILES = sorted((ROOT / 'scripts/launch').iterdir())
SHELL = [path for path in FILES if path.suffix in ('.sh', '.sbatch')]


def test_the_files_are_there():
    assert [path.name for path in FILES] == [
        'kubernetes.yaml',
        'loop.sh',
        'multinode.sh',
        'skypilot.yaml',
        'slurm.sbatch',
    ]


@pytest.mark.parametrize('path', SHELL, ids=lambda path: path.name)
def test_bash_and_shellcheck_find_nothing(path: Path):
    shellcheck = str(Path(sys.executable).parent / 'shellcheck')
    linters = [['bash', '-n'], [shellcheck]] if platform.machine() != 'aarch64' else [['bash', '-n']]  # no wheel there
    for command in ([*linter, str(path)] for linter in linters):
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize('path', [path for path in SHELL if path.suffix == '.sh'], ids=lambda path: path.name)
def test_scripts_can_be_started(path: Path):
    assert path.stat().st_mode & 0o111


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.name)
def test_the_head_says_how_to_start_what_to_change_and_what_codes_mean(path: Path):
    lines = path.read_text().splitlines()
    first = 1 if lines[0].startswith('#!') else 0
    head = []
    for line in lines[first:]:
        if not line.startswith('#'):
            break
        head.append(line)
    text = '\n'.join(head)
    assert f'scripts/launch/{path.name}' in text
    assert 'Change' in text
    assert '75' in text
    assert all(len(line) <= 140 for line in head)
