"""On a real terminal no command writes an escape sequence under NO_COLOR, or where the terminal is a dumb one."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import pytest
from typer.main import get_command

from rewarm.cli.commands import app

ESCAPE = '\x1b'


ONE_AFTER_THE_OTHER = """
import json, sys
from rewarm import cli
for arguments in json.loads(sys.argv[1]):
    sys.argv = ['rewarm', *arguments]
    try:
        cli.main()
    except SystemExit as left:
        if left.code:
            sys.exit(f'{arguments}: {left.code}')
"""
"""Several commands in one process, which imports torch once."""


class OnTerminal:
    """``rewarm ARGUMENTS`` as the leader of a terminal of 80 columns."""

    def __init__(self, arguments, *, python=('-m', 'rewarm'), **variables):
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            for name in ('NO_COLOR', 'FORCE_COLOR', 'COLUMNS', 'BROWSER', 'DISPLAY'):
                os.environ.pop(name, None)
            os.environ |= {'OMP_NUM_THREADS': '1', 'TERM': 'xterm-256color', **variables}
            os.execv(sys.executable, [sys.executable, '-W', 'ignore', *python, *map(str, arguments)])
        self.text = ''

    def read(self, until=lambda text: False, seconds=60):
        """Reads what is written, until something is there or nobody writes any more."""
        deadline = time.monotonic() + seconds
        while not until(self.text):
            assert time.monotonic() < deadline, self.text
            if select.select([self.end], [], [], 0.1)[0]:
                try:
                    self.text += os.read(self.end, 65536).decode()
                except OSError:  # the other end is closed
                    break
        return self.text

    def leave(self):
        """Its exit code."""
        code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        os.close(self.end)
        return code


def run(*arguments, **variables):
    command = OnTerminal(arguments, **variables)
    return command.read(), command.leave()


@pytest.fixture(scope='module')
def folder(tmp_path_factory, unbroken, data):
    """A finished run, its run file, its data and text, below one folder."""
    top = tmp_path_factory.mktemp('plain')
    shutil.copytree(unbroken.folder, top / 'runs/tiny')
    shutil.copy(unbroken.file, top / 'run.yaml')
    (top / 'data').symlink_to(data)
    return top


def light(top):
    """Commands that are done within a second."""
    tiny, data = top / 'runs/tiny', top / 'data'
    return {
        'plan': [['plan', top / 'run.yaml']],
        'ranks': [
            ['ranks', top / 'run.yaml', '--available', 3],
            ['ranks', top / 'run.yaml', '--available', 3, '--json'],
        ],
        'schema': [['schema']],
        'status': [['status', tiny], ['status', tiny, '--json'], ['status', top / 'runs'], ['status']],
        'runs': [['runs', top / 'runs'], ['runs', top / 'runs', '--json']],
        'pin': [['pin', tiny, 'latest'], ['pin', tiny]],
        'report': [['report', tiny, '--out', top / 'page.html', '--open']],
        'examples': [['examples', top / 'examples']],
        'new': [['new', 'mine', '--data', data / 'old', '--help']],
    }


def heavy(top, made):
    """Commands that import torch, or work for seconds; the one that ends its process last."""
    tiny, data = top / 'runs/tiny', top / 'data'
    tokenizer = ['--tokenizer', data / 'tokenizer.json']
    return {
        'convert': ['convert', data / 'old.jsonl', made / 'shards', *tokenizer, '--seq-len', 32, '--workers', 1],
        'export': ['export', tiny, made / 'hf'],
        'import': ['import', made / 'hf', made / 'checkpoint', '--json'],
        'verify': ['verify', tiny],
        'doctor': ['doctor'],
        'train': ['train', top / 'run.yaml', f'run_folder={made / "run"}'],
    }


PARTS = {'demo': 'of convert, plan, train and report'}


def test_every_command_is_tried_here(tmp_path):
    commands = set(get_command(app).commands)  # pyright: ignore
    assert commands == {*light(tmp_path), *heavy(tmp_path, tmp_path), *PARTS}


def test_a_terminal_gets_colours_so_the_next_tests_see_something(folder):
    text, code = run('status', folder / 'runs/tiny')
    assert ESCAPE in text
    assert code == 0


@pytest.mark.parametrize('command', [
    'examples', 'new', 'pin', 'plan', 'ranks', 'report', 'runs', 'schema', 'status',
])  # fmt: skip
def test_no_escape_sequence_under_no_color(folder, command):
    for arguments in light(folder)[command]:
        text, code = run(*arguments, NO_COLOR='1')
        assert ESCAPE not in text, arguments
        assert code in (0, 2)
        assert text.strip()
        if command in ('plan', 'status', 'runs') and '--json' not in arguments and code == 0:
            assert max(map(len, text.splitlines())) <= 80


@pytest.mark.slow
def test_nor_from_those_that_work_for_longer(folder, tmp_path):
    calls = json.dumps([[str(word) for word in call] for call in heavy(folder, tmp_path).values()])
    command = OnTerminal([calls], python=('-c', ONE_AFTER_THE_OTHER), NO_COLOR='1')
    text = command.read(seconds=300)
    assert command.leave() == 0, text
    assert ESCAPE not in text
    for words in ('encoder', 'is complete', 'fused operations', 'is finished'):
        assert words in text


@pytest.mark.parametrize('variables', [{'TERM': 'dumb'}, {'NO_COLOR': '1', 'FORCE_COLOR': '1'}])
def test_nor_on_a_dumb_terminal_nor_if_both_are_asked_for(folder, variables):
    text, _ = run('status', folder / 'runs/tiny', **variables)
    assert ESCAPE not in text


@pytest.mark.parametrize('no_colour', [True, False])
@pytest.mark.parametrize('command', ['status', 'runs'])
def test_watching_follows_a_folder_that_appears_and_ctrl_c_leaves_with_0(folder, tmp_path, command, no_colour):
    late = tmp_path / 'late'
    variables = {'NO_COLOR': '1'} if no_colour else {}
    place = late / 'tiny' if command == 'status' else late
    watched = OnTerminal([command, place, '--every', 0.2], **variables)
    watched.read(lambda text: 'Waiting.' in text)
    late.mkdir()
    shutil.copytree(folder / 'runs/tiny', tmp_path / 'tiny')
    (tmp_path / 'tiny').rename(late / 'tiny')
    watched.read(lambda text: 'finished' in text)
    os.write(watched.end, b'\x03')
    text = watched.read()
    assert watched.leave() == 0
    assert 'Traceback' not in text
    assert 'bort' not in text
    assert (ESCAPE in text) != no_colour
    if not no_colour:
        assert set(re.findall(r'\x1b\[[0-9;?]*([A-Za-z])', text)) <= {'A', 'K', 'm'}  # drawn in place, cursor untouched
        assert r'\x1b' not in text


def test_watching_ends_with_its_terminal_and_with_its_reader(folder):
    arguments = ['status', folder / 'runs/tiny', '--every', 0.2]
    watched = OnTerminal(['status', folder / 'runs/tiny', '--every', 0.2])
    watched.read(lambda text: 'finished' in text)
    os.close(watched.end)
    assert os.waitstatus_to_exitcode(os.waitpid(watched.pid, 0)[1]) in (0, -signal.SIGHUP)

    command = ['bash', '-c', 'trap "" HUP; exec "$@"', 'bash', sys.executable, '-m', 'rewarm', *map(str, arguments)]
    ignoring = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert ignoring.stdout is not None
    assert 'finished' in ignoring.stdout.readline() + ignoring.stdout.readline()
    ignoring.stdout.close()  # nothing changes any more, so nothing is written that would fail
    assert ignoring.wait(60) == 0
