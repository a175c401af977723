"""What README tells a reader to type exists and works; what it links to is there."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()
COMMANDS = [
    line.split('#')[0].strip()
    for block in re.findall(r'```bash\n(.*?)```', README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


def rewarm(*arguments: str) -> str:
    command = [sys.executable, '-m', 'rewarm', *arguments]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_readme_has_commands():
    assert len(COMMANDS) >= 7


@pytest.mark.parametrize('command', [c for c in COMMANDS if c.startswith('make ')])
def test_make_targets_exist(command):
    target = command.split()[1]
    assert re.search(rf'^{target}:', (ROOT / 'Makefile').read_text(), re.MULTILINE)


@pytest.mark.parametrize('command', [c for c in COMMANDS if c.startswith('rewarm ') and ' plan ' not in c])
def test_options_of_commands_exist(command):
    words = shlex.split(command)
    known = rewarm(words[1], '--help')
    for option in (word for word in words if word.startswith('--')):
        assert option in known


@pytest.mark.parametrize('command', [c for c in COMMANDS if ' plan ' in c])
def test_plans_are_printed(command):
    assert 'tokens' in rewarm(*shlex.split(command)[1:])


def test_links_lead_somewhere():
    targets = [t for t in re.findall(r'\]\(([^)]+)\)', README) if not t.startswith('http')]
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []


def test_run_files_in_commands_exist():
    for command in COMMANDS:
        for word in shlex.split(command):
            if word.endswith('.yaml'):
                assert (ROOT / word).exists()


def test_test_command_is_what_ci_runs():
    assert 'make test' in (ROOT / '.ci/run').read_text()
    assert any(command.startswith('make test') for command in COMMANDS)
