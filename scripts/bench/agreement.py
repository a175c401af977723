"""What it costs that all ranks agree at the end of each batch on whether to stop, to save, and whether a save failed.

Processes on this machine call what a run calls, one after another, with the flags a run sends. The median and the 99th
percentile are in microseconds; `share` is the median over a step of `--step-seconds`, and the bar for it is 0.005.

    python scripts/bench/agreement.py      half a minute

Prints one line of JSON for each number of ranks.
"""

import argparse
import json
import os
import socket
import time

import numpy as np
from _common import circumstances

FLAGS = [False] * 5


def main() -> None:
    """Measures one and more ranks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--ranks', type=int, nargs='+', default=[1, 2, 4], help='default: 1 2 4')
    parser.add_argument('--calls', type=int, default=2000, help='calls that are timed (default: 2000)')
    parser.add_argument(
        '--step-seconds', type=float, default=0.3, help='length of a step to compare with (default: 0.3)'
    )
    options = parser.parse_args()
    from torch.multiprocessing import get_context
    from torch.multiprocessing.spawn import spawn

    around = circumstances('torch')
    for ranks in options.ranks:
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            port = free.getsockname()[1]
        context = get_context('spawn')
        results = context.SimpleQueue()
        spawn(_rank, (ranks, port, options.calls, results), nprocs=ranks)
        microseconds = np.array(results.get()) * 1e6
        found = {
            'bench': 'agreement',
            'ranks': ranks,
            'median_us': round(float(np.median(microseconds)), 1),
            'p99_us': round(float(np.percentile(microseconds, 99)), 1),
            'share': float(np.median(microseconds) / 1e6 / options.step_seconds),
            'step_seconds': options.step_seconds,
        }
        print(json.dumps({**found, **around}), flush=True)


def _rank(rank: int, ranks: int, port: int, calls: int, results: object) -> None:
    os.environ |= {
        'RANK': str(rank),
        'WORLD_SIZE': str(ranks),
        'LOCAL_RANK': str(rank),
        'LOCAL_WORLD_SIZE': str(ranks),
        'NODE_RANK': '0',
        'MASTER_ADDR': '127.0.0.1',
        'MASTER_PORT': str(port),
    }
    from composer.utils import dist, get_device

    from rewarm.resume.agreement import any_rank

    dist.initialize_dist(get_device('cpu'))
    seconds = []
    for call in range(calls + 20):
        started = time.perf_counter()
        any_rank(FLAGS)
        if call >= 20:
            seconds.append(time.perf_counter() - started)
    if rank == 0:
        results.put(seconds)  # type: ignore[attr-defined]


if __name__ == '__main__':
    main()
