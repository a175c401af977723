"""A process that has imported what a run needs, and forks a start for each line it is given: a start then takes a second or two.

Forked from the tests' own process, which has threads of other libraries, a start may never begin.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

__all__ = ['Starter']

LONGEST_START_SECONDS = 180


class Starter:
    """Starts runs on one rank, one after the other; a context manager, which ends the process."""

    def __enter__(self) -> 'Starter':
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [sys.executable, '-W', 'ignore', '-m', 'tests.end_to_end.starting'],
            cwd=root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, 'OMP_NUM_THREADS': '1'},
        )
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(LONGEST_START_SECONDS)

    def start(self, file: Path, *overrides: str) -> tuple[int, str]:
        """Starts a run file, and waits for the end.

        Args:
            file (Path): The run file.
            overrides (str): ``key=value`` each.

        Returns:
            tuple[int, str]: Its exit code and what it said.
        """
        log = file.with_name('log')
        log.unlink(missing_ok=True)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([str(file), overrides, str(log)]) + '\n')
        self._process.stdin.flush()
        return int(self._process.stdout.readline()), log.read_text()


def main() -> None:
    """Answers each line of a run file, its overrides and a log with the exit code."""
    from tests.end_to_end.forked import Ranks

    for line in sys.stdin:
        file, overrides, log = json.loads(line)
        ranks = Ranks(Path(file), overrides, count=1, log=Path(log))
        ranks.wait(LONGEST_START_SECONDS)
        print(ranks.codes[0], flush=True)


if __name__ == '__main__':
    main()
