"""Measures how fast the order of samples starts anywhere and goes on: `python scripts/bench/order.py`.

The case is the largest the project plans: 145 million samples (297 billion tokens of 2,048) in shards of 16 MB,
with 5 % replay, read from the start, the middle and the end.
"""

import argparse
import resource
import time
from fractions import Fraction

import numpy as np

from rewarm.data.order import Mix, MixStream


def build(samples: int, samples_per_shard: int, block_size: int) -> Mix:
    """A mix of 95 % new and 5 % old samples in equal shards."""
    streams = []
    for name, share in (('new', Fraction(19, 20)), ('old', Fraction(1, 20))):
        shards = int(samples * share) // samples_per_shard + 1
        streams.append(MixStream(name, np.full(shards, samples_per_shard), share))
    return Mix(streams, seed=17, stage='bench', block_size=block_size)


def main() -> None:
    """Prints one line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--samples', type=float, default=145e6, help='samples of the stage (default: 145e6)')
    parser.add_argument('--samples-per-shard', type=int, default=4096, help='16 MB of 2,049 uint16 (default: 4096)')
    parser.add_argument('--block-size', type=int, default=65536)
    parser.add_argument('--batch', type=int, default=1104, help='samples in a batch (default: 1104)')
    args = parser.parse_args()
    total = int(args.samples)
    print(f'{total:,} samples, blocks of {args.block_size:,}, batches of {args.batch:,}')
    for where, start in (('start', 0), ('middle', total // 2), ('end', total - 201 * args.batch)):
        marks = [time.perf_counter()]
        mix = build(total, args.samples_per_shard, args.block_size)
        marks.append(time.perf_counter())
        for batch in range(201):
            begin = start + batch * args.batch
            mix.ids(begin, begin + args.batch)
            marks.append(time.perf_counter())
        built, first = marks[1] - marks[0], marks[2] - marks[1]
        following = (marks[-1] - marks[2]) / 200
        print(
            f'{where:>7}: built {built * 1e3:.1f} ms, first batch {first * 1e3:.1f} ms, then {following * 1e3:.3f} ms'
        )
    for period in (20, 1_000, 100_000, 1_000_000):
        small = Fraction(period // 20 + (period > 20), period)
        streams = [MixStream('new', [8], 1 - small), MixStream('old', [8], small)]
        began = time.perf_counter()
        Mix(streams, 17, 'bench', 8)
        print(f'shares that repeat after {period:>9,} samples: {(time.perf_counter() - began) * 1e3:.1f} ms')
    print(f'peak memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB')


if __name__ == '__main__':
    main()
