"""What the composer launcher answers with when ranks do not start, or end, at the same time."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewarm.resume.lock import run_lock
from tests.end_to_end.conftest import Run
from tests.end_to_end.waiting import wait_for

IMPORTED_AT_EACH_START = 'sitecustomize.py'
RANK_0_BEGINS_LAST = """
import os, time
if os.environ.get('RANK') == '0':
    time.sleep(3)
"""
RANK_0_ENDS_LAST_AND_BADLY = """
import atexit, os, time
class Aborts:
    abort = staticmethod(os.abort)
    def __del__(self):
        self.abort()  # when modules are cleared, as a thread of gloo's can
if os.environ.get('RANK') == '0':
    os.cleared = Aborts()
    atexit.register(time.sleep, 3)
"""


def launch(run: Run, *arguments: str, each_start: str, tmp_path: Path) -> subprocess.CompletedProcess:
    (tmp_path / IMPORTED_AT_EACH_START).write_text(each_start)
    env = {**os.environ, 'PYTHONPATH': str(tmp_path), 'PYTHONWARNINGS': 'ignore', 'OMP_NUM_THREADS': '1'}
    command = run.command(*arguments, ranks=2)
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=240, check=False)


def test_a_wrong_run_file_is_told_of_even_if_another_rank_finds_it_first(make_run, tmp_path):
    done = launch(make_run(), 'nonsense=1', each_start=RANK_0_BEGINS_LAST, tmp_path=tmp_path)
    assert 'nonsense' in done.stderr, done.stdout
    assert done.returncode == 2


@pytest.mark.slow
def test_a_refusal_keeps_its_code_even_if_another_rank_is_gone_first(make_run, tmp_path):
    run = make_run()
    run.folder.mkdir()
    with run_lock(run.folder):
        done = launch(run, each_start=RANK_0_ENDS_LAST_AND_BADLY, tmp_path=tmp_path)
    assert f'in use by process {os.getpid()} on' in done.stderr, done.stdout
    assert done.returncode == 2


SAVES_AND_LEAVES = """
import os, signal, sys, time
told = []
for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, lambda *_: told.append(1))
open('ready' + os.environ['RANK'], 'w').close()
end = time.monotonic() + 60
while not (told and os.path.exists('launcher-is-gone')) and time.monotonic() < end:
    time.sleep(0.05)
open('saved' + os.environ['RANK'], 'w').close()
sys.exit(75)
"""


def test_after_a_second_ctrl_c_the_launcher_leaves_with_130_and_the_ranks_still_save(tmp_path):
    (tmp_path / 'rank.py').write_text(SAVES_AND_LEAVES)
    composer = str(Path(sys.executable).with_name('composer'))
    launcher = subprocess.Popen([composer, '-n', '2', 'rank.py'], cwd=tmp_path, stdout=subprocess.DEVNULL)
    wait_for(lambda: len(list(tmp_path.glob('ready*'))) == 2)
    launcher.send_signal(signal.SIGINT)
    time.sleep(0.5)
    launcher.send_signal(signal.SIGINT)
    assert launcher.wait(timeout=30) == 130
    (tmp_path / 'launcher-is-gone').touch()
    wait_for(lambda: len(list(tmp_path.glob('saved*'))) == 2)
