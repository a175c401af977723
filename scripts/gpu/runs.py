"""Whole runs of `rewarm train` for the sections that need them: a run file on real text, started, watched and killed."""

import json
import os
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scripts.bench._common import ROOT, Size, write_run, write_shards

__all__ = ['Training', 'need', 'prepare']

LOOK_EVERY = 0.004  # seconds between two looks at metrics.jsonl
PACKAGES = ('composer', 'streaming', 'pydantic', 'ruamel', 'tokenizers')


def need() -> None:
    """Raises ImportError, with its name, for a package that `rewarm train` cannot do without."""
    for name in PACKAGES:
        if find_spec(name) is None:
            raise ImportError(f'{name} is absent', name=name)


def prepare(folder: Path, size: Size, *, batches: int, save_every: int) -> Path:
    """Writes shards, tokenizer and run file.

    Args:
        folder (Path): Where to; exists.
        size (Size): Model and batch; ``vocabulary`` is the tokenizer's too.
        batches (int): Length of the run; it reads its text more than once if that is short.
        save_every (int): Batches between checkpoints.

    Returns:
        Path: The run file.
    """
    write_shards(folder, size, batches=min(batches, 8))
    return write_run(folder, size, batches=batches, workers=1, save_every=save_every)


class Training:
    """A `rewarm train` process.

    Args:
        run (Path): The run file.
        folder (Path): The run's folder.
        overrides (str): ``key=value``.
    """

    def __init__(self, run: Path, folder: Path, *overrides: str) -> None:
        self.folder = folder
        command = [
            sys.executable,
            '-W',
            'ignore',
            str(ROOT / 'scripts/train.py'),
            str(run),
            f'run_folder={folder}',
            *overrides,
        ]
        self.log = folder.with_suffix('.log')
        self.output = self.log.open('ab')
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            start_new_session=True,
            env=os.environ,
        )
        self.appeared: list[float] = []

    def wait(self, batches: int, until: float) -> bool:
        """Waits for the record of a batch, and notes when each appears.

        Args:
            batches (int): How many records to wait for.
            until (float): Give up at this time of the monotonic clock.

        Returns:
            bool: Whether they are there.

        Raises:
            RuntimeError: If the process has ended before.
        """
        while len(self.appeared) < batches:
            now = time.monotonic()
            self.appeared += [now] * (len(self.lines()) - len(self.appeared))
            if now > until:
                return False
            if self.process.poll() is not None and len(self.lines()) < batches:
                raise RuntimeError(f'rewarm train ended with {self.process.returncode}: {self.tail()}')
            time.sleep(LOOK_EVERY)
        return True

    def finish(self, until: float) -> None:
        """Waits for the end.

        Raises:
            RuntimeError: If it is not a good one.
        """
        if self.process.wait(max(until - time.monotonic(), 1)):
            raise RuntimeError(f'rewarm train ended with {self.process.returncode}: {self.tail()}')
        self.output.close()

    def kill(self) -> None:
        """Kills it and all it has started, as a machine that vanishes does."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        self.output.close()

    def lines(self) -> list[dict[str, Any]]:
        """The records of all batches so far."""
        path = self.folder / 'metrics.jsonl'
        text = path.read_text() if path.exists() else ''
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith('\n')]

    def said(self, word: str) -> str:
        """The first line it printed with a word in it."""
        lines = self.log.read_text(errors='replace').splitlines()
        return next((line.strip() for line in lines if word in line), 'nothing')

    def tail(self) -> str:
        """The end of what it printed."""
        return ' '.join(self.log.read_text(errors='replace')[-800:].split())
