import subprocess
import sys
import time

PROGRAM = """
import ctypes, os, time
from rewarm.resume.backstop import Backstop
backstop = Backstop(75)
{}
"""


def run(body: str) -> tuple[subprocess.CompletedProcess, float]:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, '-c', PROGRAM.format(body)], capture_output=True, text=True, timeout=20, check=False
    )
    return done, time.monotonic() - began


def test_a_process_that_holds_the_interpreters_lock_leaves_with_the_code_and_shows_where_it_was():
    done, seconds = run('backstop.arm(0.5)\ndef hang(): ctypes.PyDLL(None).sleep(30)\nhang()')
    assert done.returncode == 75
    assert 'in hang' in done.stderr
    assert 1.5 <= seconds < 6  # a second for the stacks


def test_a_process_that_arms_it_again_and_again_lives():
    done, _ = run('for _ in range(10):\n  backstop.arm(0.4)\n  time.sleep(0.2)\nbackstop.close()\ntime.sleep(1.6)')
    assert (done.returncode, done.stderr) == (0, '')


def test_disarmed_it_does_nothing():
    done, _ = run('backstop.arm(0.2)\nbackstop.disarm()\ntime.sleep(1.5)')
    assert (done.returncode, done.stderr) == (0, '')


def test_a_forked_child_does_not_inherit_it():
    done, _ = run(
        'backstop.arm(0.2)\nchild = os.fork()\n'
        'if child == 0:\n  time.sleep(1.6)\n  os._exit(3)\n'
        'backstop.close()\nassert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3'
    )
    assert (done.returncode, done.stderr) == (0, '')
