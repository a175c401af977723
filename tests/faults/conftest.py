"""The tiny run of the end-to-end tests, and the same run in forked processes whose calls a test decides on."""

import gc
from pathlib import Path

import pytest

from tests.end_to_end.conftest import data, make_run, unbroken
from tests.faults.syscalls import SUPPORTED

__all__ = ['data', 'make_run', 'unbroken']


@pytest.fixture(scope='session')
def forks():
    """What a forked start needs, imported once; skips where the filter of calls is not at hand."""
    if not SUPPORTED:
        pytest.skip('the numbers of system calls are those of Linux on x86-64')
    from composer.utils.collect_env import get_cpu_model

    from tests.faults import break_saves

    get_cpu_model()
    gc.collect()
    gc.freeze()
    yield break_saves
    gc.unfreeze()


@pytest.fixture(scope='session')
def whole(forks, data: Path, tmp_path_factory: pytest.TempPathFactory):
    """The tiny run that nothing ever happened to."""
    run = forks.TinyRun(tmp_path_factory.mktemp('whole'), data)
    done = forks.start(run)
    assert done.code == 0, run.log.read_text()
    return run


@pytest.fixture
def tiny(forks, data: Path, tmp_path: Path):
    """A tiny run of the test's own."""
    return forks.TinyRun(tmp_path / 'a', data)
