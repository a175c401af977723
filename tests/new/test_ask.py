"""The questions on a real terminal: what is typed, what is said back, and what a Ctrl-C leaves."""

import os
import pty
import select
import sys
import time

import pytest

from rewarm.config.load import load


class Terminal:
    """`rewarm new` on a terminal of its own."""

    def __init__(self, *arguments):
        self.said = ''
        self.pid, self.end = pty.fork()
        if self.pid == 0:
            os.execv(sys.executable, [sys.executable, '-m', 'rewarm', 'new', *arguments])

    def until(self, words):
        """Waits for words of the program's; what was said before them is then out of the way."""
        deadline = time.monotonic() + 60
        while words not in self.said:
            assert time.monotonic() < deadline, self.said
            self.read()
        self.said = self.said.partition(words)[2]

    def read(self):
        if select.select([self.end], [], [], 0.1)[0]:
            try:
                self.said += os.read(self.end, 4096).decode()
            except OSError:  # it has left
                return False
        return True

    def answer(self, text, question):
        self.until(question)
        os.write(self.end, text.encode() + b'\n')

    def leave(self):
        """Reads to the end; returns the exit code."""
        deadline = time.monotonic() + 60
        while self.read():
            assert time.monotonic() < deadline, self.said
        os.close(self.end)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_what_is_missing_is_asked_for_and_a_wrong_answer_is_asked_again(here, run_folder):
    terminal = Terminal('law', '--gpus', '2')
    terminal.answer('data/lw', 'rewarm convert` wrote')
    terminal.until('there is no such folder')
    terminal.answer('data/law', 'rewarm convert` wrote')
    terminal.until('a validation set beside them (data/law/val)')
    terminal.answer('data/old', 'against forgetting')
    terminal.answer('2', '[0.05]')
    terminal.until('above 0 and below 1')
    terminal.answer('0.1', '[0.05]')
    terminal.answer(f'checkpoint:{run_folder}', '[pythia-410m]')
    terminal.answer('', '[1ep]')
    terminal.answer('', '[0.01]')
    assert terminal.leave() == 0
    assert 'GPUs it will run on' not in terminal.said, 'it was said on the command line'
    assert 'composer -n 2 -m rewarm train law.yaml' in terminal.said
    config = load(here / 'law.yaml', world_size=2)
    assert [(s.name, float(s.share)) for s in config.stages[0].train.streams] == [('law', 0.9), ('old', 0.1)]
    assert config.stages[0].schedule.lr == 0.01


def test_a_tokenizer_that_is_not_the_data_s_is_told_and_asked_for(here, run_folder):
    (here / 'other.json').write_text('{"model": {"vocab": {"a": 0}}}')
    settings = here / run_folder / 'config.yaml'
    settings.write_text(settings.read_text().replace('data/tokenizer.json', 'other.json'))
    arguments = ('--data', 'data/law', '--replay', 'data/old', '--lr', '1e-3', '--gpus', '1', '--budget', '1ep')
    terminal = Terminal('law', *arguments)
    terminal.answer(f'checkpoint:{run_folder}', '[pythia-410m]')
    terminal.until('was made with another tokenizer')
    terminal.answer('data/tokenizer.json', 'its folder, or an id')
    assert terminal.leave() == 0
    assert load(here / 'law.yaml').tokenizer == 'data/tokenizer.json'


@pytest.mark.parametrize('key', [b'\x03', b'\x04'], ids=['ctrl-c', 'ctrl-d'])
def test_stopped_half_way_nothing_is_written(here, key):
    before = sorted(here.iterdir())
    terminal = Terminal('law', '--data', 'data/law')
    terminal.answer('', 'against forgetting')
    terminal.until('[pythia-410m]')
    os.write(terminal.end, key)
    terminal.until('Stopped. Nothing is written.')
    assert terminal.leave() == 130
    assert sorted(here.iterdir()) == before
