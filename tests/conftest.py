"""Without a GPU, Triton interprets kernels; it reads the variable when a kernel is defined, so it is set before any import."""

import os
from pathlib import Path

import pytest

from tests.proofs import RECORD, is_proven

if not any(Path('/dev').glob('nvidia[0-9]*')):
    os.environ.setdefault('TRITON_INTERPRET', '1')


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out a long proof whose files are as they were when it passed."""
    for item in items:
        if (mark := item.get_closest_marker('proof')) is not None and is_proven(mark.args[0]):
            reason = f'proven of these files already ({RECORD.name}); make prove runs it'
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _no_width_of_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are as wide as in a pipe, wherever the tests are started."""
    monkeypatch.delenv('COLUMNS', raising=False)
