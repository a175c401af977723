"""Commands run in this process, as a shell would run them."""

import sys
from typing import NamedTuple

import pytest

from rewarm import cli


class Said(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def rewarm(monkeypatch, capsys):
    """``rewarm('status', folder)``: its exit code and what it printed."""

    def call(*arguments):
        monkeypatch.setattr(sys, 'argv', ['rewarm', *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            cli.main()
        return Said(int(left.value.code or 0), *capsys.readouterr())

    return call
