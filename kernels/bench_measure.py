"""How the benchmarks time, and where their results go.

A time is the median over repetitions, by events on the device. A sleeping kernel goes ahead of each, so that the queue
is full when the first event is recorded and the time to launch from Python does not count. Inputs are larger than the
caches. A record is one line of JSON, written as soon as it is known: a crash costs what comes after it.
"""

import argparse
import contextlib
import gc
import json
import math
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

__all__ = ['Records', 'arguments', 'begin', 'copy_bandwidth', 'free', 'kernel_spans', 'relative_error', 'seconds']

SECONDS_A_TIMING = 0.4
SLEEP_CYCLES = 4_000_000
"""About 2 ms of a GPU's clock: longer than it takes to launch what is timed."""

OURS = ('rewarm', 'rewarm_kernels', 'scripts', 'tests')
"""Packages that are there, whatever the machine has."""

STICKY = ('illegal memory access', 'device-side assert', 'unspecified launch failure', 'misaligned address')
"""Words of CUDA errors after which nothing more can run in the process."""


class Records:
    """The results of one section.

    Args:
        section (str): Its name, in every record.
        path (Path | None): File to append lines of JSON to; ``None`` only prints.
        seconds (float): Time that the section may take; :meth:`left` counts it down.
    """

    def __init__(self, section: str, path: Path | None, seconds: float) -> None:
        self.section = section
        self.path = path
        self.deadline = time.monotonic() + seconds
        self.failed = False

    def add(self, item: str, implementation: str = '', **values: Any) -> None:
        """Writes and prints a record.

        Args:
            item (str): What was measured.
            implementation (str): Which of several ways to do it.
            values (Any): Figures with their units in their names, and words. ``ok=False`` or ``error=...`` fails the
                section.
        """
        self.failed |= values.get('ok') is False or 'error' in values
        record = {'section': self.section, 'item': item, 'implementation': implementation}
        record |= {key: _plain(value) for key, value in values.items()}
        if self.path is not None:
            with self.path.open('a') as file:
                file.write(json.dumps(record) + '\n')
        shown = ' '.join(
            f'{key}={value}' for key, value in record.items() if key not in ('section', 'kernels', 'losses')
        )
        print(f'{self.section}: {shown[:240]}', flush=True)

    def left(self) -> float:
        """Seconds that remain."""
        return self.deadline - time.monotonic()

    def need(self, seconds: float) -> None:
        """Leaves the :meth:`attempt` around it, as skipped, if less time remains."""
        if self.left() < seconds:
            raise _OutOfTime(f'{self.left():.0f} s left, {seconds:.0f} needed')

    @contextlib.contextmanager
    def attempt(self, item: str, implementation: str = '') -> Iterator[None]:
        """A part of the section whose failure is recorded and does not end the rest.

        What is not importable is skipped, and what :meth:`need` finds no time for; both are said.

        Args:
            item (str): As in :meth:`add`.
            implementation (str): As in :meth:`add`.

        Raises:
            SystemExit: If the device is of no use any more.
        """
        try:
            yield
        except _OutOfTime as error:
            self.add(item, implementation, skipped=str(error))
        except ImportError as error:
            known = str(error.name or '').partition('.')[0] in OURS
            self.add(
                item, implementation, **{'error' if known else 'skipped': f'{error.name or error} is not importable'}
            )
        except torch.OutOfMemoryError as error:
            self.add(item, implementation, error=f'out of memory: {error}'[:200])
        except Exception as error:
            self.add(item, implementation, error=f'{type(error).__name__}: {error}'[:600])
            if any(words in str(error) for words in STICKY):
                raise SystemExit(3) from error
        free()


class _OutOfTime(Exception):
    pass


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return float(f'{value:.6g}') if math.isfinite(value) else str(value)
    return value


def arguments(description: str | None) -> argparse.ArgumentParser:
    """The command line of everything that measures.

    Args:
        description (str | None): The docstring of the script.

    Returns:
        argparse.ArgumentParser: With ``--dry``, ``--records`` and ``--seconds``.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        '--dry', action='store_true', help='toy sizes on a CPU, Triton interpreted: no figure means anything'
    )
    parser.add_argument('--records', type=Path, help='append results to this file, as lines of JSON')
    parser.add_argument('--seconds', type=float, default=600.0, help='time for all of it (default: %(default)s)')
    return parser


def begin(section: str, options: argparse.Namespace) -> tuple[Records, torch.device]:
    """Gets ready to measure; to be called before the first import of a kernel.

    Args:
        section (str): Name of the section.
        options (argparse.Namespace): Of the parser of :func:`arguments`.

    Returns:
        tuple[Records, torch.device]: Where results go, and what is measured.

    Raises:
        SystemExit: If there is no GPU, and no dry run was asked for.
    """
    os.environ['TRITON_INTERPRET'] = '1' if options.dry else '0'
    if not options.dry and not torch.cuda.is_available():
        raise SystemExit('There is no CUDA device here; --dry runs toy sizes on a CPU.')
    torch.manual_seed(0)
    return Records(section, options.records, options.seconds), torch.device('cpu' if options.dry else 'cuda')


def seconds(call: Callable[[], Any], device: torch.device) -> float:
    """Median time of a call.

    Args:
        call (Callable): Launches what is timed.
        device (torch.device): Where that runs.

    Returns:
        float: Seconds; on a CPU those of a single call, to see that it runs.
    """
    call()  # compiles, and fills caches of settings and memory
    if device.type == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if device.type == 'cpu':
        return time.perf_counter() - start
    torch.cuda.synchronize()
    repetitions = min(max(int(SECONDS_A_TIMING / (time.perf_counter() - start)), 5), 30)
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repetitions)]
    for begins, ends in events:
        torch.cuda._sleep(SLEEP_CYCLES)
        begins.record()
        call()
        ends.record()
    torch.cuda.synchronize()
    return statistics.median(begins.elapsed_time(ends) for begins, ends in events) / 1e3


def copy_bandwidth(device: torch.device, num_bytes: int = 2**31) -> float:
    """Bandwidth of a copy on the device, which is what memory-bound kernels are measured against.

    Args:
        device (torch.device): The device.
        num_bytes (int): Size of what is copied.

    Returns:
        float: Bytes a second, read and written.
    """
    source = torch.randint(255, (num_bytes if device.type == 'cuda' else 2**16,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device)


def relative_error(value: Tensor, truth: Tensor) -> float:
    """Largest difference over largest value, in fp64; infinite if either holds NaN."""
    truth = truth.double()
    error = ((value.double() - truth).abs().max() / truth.abs().max().clamp(min=1e-30)).item()
    return error if error == error else math.inf


def kernel_spans(call: Callable[[], Any], device: torch.device) -> list[tuple[str, float, float]]:
    """Every kernel of a call, as the profiler sees it.

    Args:
        call (Callable): Launches them; has run before.
        device (torch.device): Where.

    Returns:
        list[tuple[str, float, float]]: Name, begin and end in microseconds, by begin; copies and fills included. On a
        CPU, torch's operators, one inside another.
    """
    is_cuda = device.type == 'cuda'
    with profile(activities=[ProfilerActivity.CUDA if is_cuda else ProfilerActivity.CPU]) as trace:
        call()
        if is_cuda:
            torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'trace.json'
        trace.export_chrome_trace(str(path))
        events = json.loads(path.read_text())['traceEvents']
    wanted = ('kernel', 'gpu_memcpy', 'gpu_memset') if is_cuda else ('cpu_op',)
    spans = [(e['name'], e['ts'], e['ts'] + e['dur']) for e in events if e.get('cat') in wanted and 'dur' in e]
    return sorted(spans, key=lambda span: span[1])


def free() -> None:
    """Gives memory back to the device."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
