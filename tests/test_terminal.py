"""Text from files is shown and not obeyed; whoever reads what a process writes can neither end nor delay it."""

import contextlib
import os
import subprocess
import sys
import time

import pytest

from rewarm.spare_reader import SpareReader
from rewarm.terminal import printable

START = """
import os, sys
from rewarm import terminal
terminal.take_over()
"""
AT_WORK = f'{START}\nterminal.never_wait()\n'


def start(script, **streams):
    """A process whose reader is this one."""
    return subprocess.Popen([sys.executable, '-c', script], **{'stdout': subprocess.DEVNULL, **streams})


def test_what_steers_a_terminal_is_spelled_out_and_the_rest_stays():
    assert (
        printable('\x1b]52;c;aGk=\x07 \x9b2J \u202egpj \ud800 \r') == r'\x1b]52;c;aGk=\x07 \x9b2J \u202egpj \ud800 \r'
    )
    assert printable('Größe 5\n\t💥 é') == 'Größe 5\n\t💥 é'


def test_a_traceback_and_a_warning_do_not_steer_a_terminal_while_bars_and_colours_do():
    script = f"""{START}
import warnings
print('\\r\\x1b[1;31mred\\x1b[0m \\x1b[A', file=sys.stderr)
warnings.warn('a\\x1b[2Jb')
raise ValueError('\\x1b]52;c;aGk=\\x07')
"""
    process = start(script, stderr=subprocess.PIPE, text=True, encoding='utf-8')
    said = process.communicate()[1]
    assert '\x1b[1;31mred\x1b[0m \x1b[A' in said
    assert r'a\x1b[2Jb' in said
    assert r'ValueError: \x1b]52;c;aGk=\x07' in said
    assert process.returncode == 1


@pytest.mark.parametrize('fault', ['gone', 'full', 'closed'])
def test_a_stream_that_takes_nothing_is_told_of_once_and_changes_nothing(fault, tmp_path):
    script = f"""{AT_WORK}
input()
record = open({str(tmp_path / 'record')!r}, 'w')
terminal.on_loss(lambda reason: print(reason, file=record, flush=True))
for _ in range(3):
    print('words', file=sys.stderr)
    terminal.say('words')
    terminal.drain()
{'' if fault == 'full' else 'os.write(2, bytes(9))  # as C does'}
print('and at the end', end='')
sys.exit(7)
"""
    command, read, write = [sys.executable, '-c', script], *os.pipe()
    if fault == 'closed':
        command = ['bash', '-c', '"$@" 2>&-', 'bash', *command]
    full = os.open('/dev/full', os.O_WRONLY)
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=full, stderr=full if fault == 'full' else write)
    os.close(write)
    os.close(read)
    process.communicate(b'\n')
    os.close(full)
    assert process.returncode == 7
    told = {'gone': 'Broken pipe\n', 'full': 'No space left on device\n', 'closed': 'No space left on device\n'}
    assert (tmp_path / 'record').read_text() == told[fault]


def test_a_reader_that_stands_still_delays_nothing_and_sees_what_is_left_out():
    script = f"""{AT_WORK}
for number in range(20_000):
    print(number, 'x' * 100, file=sys.stderr)
print('work is done', flush=True)
input()
terminal.drain(10)
print('more', file=sys.stderr)
"""
    process = start(script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == 'work is done\n'  # nobody has read standard error
    process.stdin.write('\n')
    process.stdin.flush()
    said = process.communicate(timeout=30)[1]
    assert said.endswith(' writes are left out here: nobody read them]\nmore\n')
    assert process.returncode == 0


def test_the_end_of_a_process_waits_for_a_reader_that_stands_still_but_not_for_ever():
    process = start(f'{AT_WORK}\nsys.stderr.write("x" * 1_000_000)\nsys.exit(5)', stderr=subprocess.PIPE)
    assert process.wait(30) == 5
    process.stderr.close()


def test_a_forked_child_writes_too():
    script = f"""{AT_WORK}
print('parent', file=sys.stderr)
terminal.drain()
if os.fork() == 0:
    print('child', file=sys.stderr)
    terminal.drain()
    os._exit(0)
os.wait()
"""
    process = start(script, stderr=subprocess.PIPE, text=True)
    assert process.communicate()[1] == 'parent\nchild\n'


def test_a_descriptor_that_someone_made_non_blocking_loses_nothing():
    read, write = os.pipe()
    os.set_blocking(write, False)
    process = start(f'{START}\nprint("x" * 200_000)', stdout=write)
    os.close(write)
    time.sleep(0.3)
    with open(read) as end:
        assert len(end.read()) == 200_001
    assert process.wait() == 0


def test_a_command_whose_reader_is_gone_ends_quietly_and_one_whose_disk_is_full_says_so():
    def rewarm(stdout, stderr):
        return subprocess.Popen([sys.executable, '-m', 'rewarm', 'schema'], stdout=stdout, stderr=stderr, text=True)

    read, write = os.pipe()
    os.close(read)
    gone = rewarm(write, subprocess.PIPE)
    os.close(write)
    with open('/dev/full', 'w') as full:
        filled = rewarm(full, subprocess.PIPE)
    assert (gone.communicate()[1], gone.returncode) == ('', 0)
    said = filled.communicate()[1]
    assert said == 'standard output: No space left on device: what was printed is not complete\n'
    assert filled.returncode == 2


def test_others_that_write_to_a_pipe_outlive_its_reader():
    read, write = os.pipe()
    spare = SpareReader(write)
    assert not spare.is_alone()
    os.close(read)
    assert spare.is_alone()
    spare.read_on()
    spare.close()
    with contextlib.closing(open(write, 'wb')) as pipe:
        pipe.write(b'x' * 1_000_000)  # more than a pipe holds


def test_only_an_unnamed_pipe_has_a_spare_reader(tmp_path):
    with (tmp_path / 'file').open('w') as file, pytest.raises(OSError, match='no unnamed pipe'):
        SpareReader(file.fileno())
