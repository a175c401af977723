"""The tests of the kernels on the device, compiled: those for a GPU alone, and those that run interpreted elsewhere."""

import sys
import time
from collections import Counter
from importlib.util import find_spec
from typing import Any

from bench_measure import arguments, begin

__all__ = ['main']

WORKERS = 8
NO_DEVICE = ('test_aot', 'test_mutations')
"""Files that are about compiled code and about tests, and take minutes."""


class Tally:
    """Counts outcomes, as a plugin of pytest."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Counts a test once: its call, or the set-up that kept it from being called."""
        if report.when == 'call' or report.outcome != 'passed':
            self.counts[report.outcome] += 1
            if report.outcome == 'failed':
                self.failures.append(report.nodeid.rpartition('/')[2])

    def pytest_collectreport(self, report: Any) -> None:
        """A file that cannot be collected is a failure."""
        if report.outcome == 'failed':
            self.counts['failed'] += 1
            self.failures.append(report.nodeid)


def main() -> int:
    """Runs them; returns whether one failed."""
    options = arguments(__doc__).parse_args()
    records, _ = begin('tests', options)
    with records.attempt('kernels'):
        import pytest

        # Warnings are no errors here: which there are depends on the versions at hand.
        common = ['-q', '-W', 'default', '-p', 'no:cacheprovider', '-rf', 'tests/kernels']
        common += [f'--ignore=tests/kernels/{name}.py' for name in NO_DEVICE]
        small = ['-m', 'not gpu and not slow and not demo']
        if find_spec('xdist') and not options.dry:
            small += ['-n', str(WORKERS), '--dist', 'load']  # they mostly wait for compilers
        if options.dry:
            small += ['-k', 'interpreter']  # that all can be collected, and that one file runs
        for item, words in {'small': small, 'large': ['-m', 'gpu and not slow']}.items():
            if item == 'large' and options.dry:
                words = [*words, '--collect-only']
            tally, began = Tally(), time.monotonic()
            code = pytest.main([*words, *common], plugins=[tally])
            records.add(
                item,
                passed=tally.counts['passed'],
                failed=tally.counts['failed'],
                skipped_tests=tally.counts['skipped'],
                seconds=time.monotonic() - began,
                failures=tally.failures[:20],
                ok=code == 0 and (tally.counts['passed'] > 0 or (item == 'large' and options.dry)),
            )
    return records.failed


if __name__ == '__main__':
    sys.exit(main())
