"""The order of samples, against brute force, hand-written cases and a golden hash."""

import hashlib
import itertools
import json
import pickle
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewarm.config.errors import UserError
from rewarm.data.order import MAX_PERIOD, ORDER_VERSION, Mix, MixStream, fingerprint


def shares_of(*weights):
    return [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]


def mix_of(weights, sizes=None, seed=17, stage='stage', block_size=50, shuffle=True):
    sizes = sizes or [[7, 20, 3, 11]] * len(weights)
    streams = [
        MixStream(f's{index}', size, share, shuffle)
        for index, (size, share) in enumerate(zip(sizes, shares_of(*weights)))
    ]
    return Mix(streams, seed, stage, block_size)


def stream_indices(mix, ids):
    ends = np.cumsum(list(mix.samples_per_stream.values()))
    return np.searchsorted(ends, ids, side='right')


# ---------------------------------------------------------------- whose turn it is


def brute_force_turns(shares, length):
    """Tijdeman's rule as the paper states it, in exact fractions and without a table."""
    bound = Fraction(1, 2 * len(shares) - 2) if len(shares) > 1 else Fraction(0)
    taken, turns = [0] * len(shares), []
    for place in range(length):
        best = None
        for index, share in enumerate(shares):
            if (place + 1) * share - taken[index] >= bound:
                due = (taken[index] + 1 - bound) / share  # it must go by this place
                due = due.numerator // due.denominator
                if best is None or due < best[0]:
                    best = (due, index)
        taken[best[1]] += 1
        turns.append(best[1])
    return turns


@pytest.mark.parametrize(
    'weights', [[1], [19, 1], [3, 1], [2, 1], [1, 99], [3, 5, 7], [12, 5, 2, 1], [1, 2, 3, 4, 5, 6, 7, 8], [1, 1, 1]]
)
def test_turns_equal_brute_force(weights):
    mix = mix_of(weights)
    length = 2 * sum(weights) + 5
    assert stream_indices(mix, mix.ids(0, length)).tolist() == brute_force_turns(shares_of(*weights), length)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_shares_hold_within_one_sample_after_every_sample(weights):
    mix = mix_of(weights)
    length = 2 * sum(weights) + 3
    turns = stream_indices(mix, mix.ids(0, length))
    seen = np.arange(1, length + 1)
    for index, share in enumerate(shares_of(*weights)):
        error = np.abs(np.cumsum(turns == index) * share.denominator - seen * share.numerator).max()
        assert error < share.denominator


def test_five_percent_of_1104_is_never_rounded_for_good():
    mix = mix_of([19, 1])
    per_batch = [mix.counts((b + 1) * 1104)['s1'] - mix.counts(b * 1104)['s1'] for b in range(50)]
    assert set(per_batch) == {55, 56}
    assert sum(per_batch) == 50 * 1104 // 20


def test_counts_count_the_ids():
    mix = mix_of([12, 5, 2, 1])
    turns = stream_indices(mix, mix.ids(0, 500))
    for samples in (0, 1, 7, 20, 21, 333, 500):
        expected = np.bincount(turns[:samples], minlength=4).tolist()
        assert list(mix.counts(samples).values()) == expected
    assert mix.counts(10**12) == {'s0': 6 * 10**11, 's1': 25 * 10**10, 's2': 10**11, 's3': 5 * 10**10}


# ---------------------------------------------------------------- which sample of the stream


def brute_force_stream(name, sizes, length, *, seed, stage, block_size, shuffle=True):
    """The order within one stream, one sample at a time, in plain Python but for the random bits."""
    entropy = int.from_bytes(
        hashlib.blake2b(json.dumps([1, seed, stage, name]).encode(), digest_size=16).digest(), 'little'
    )

    def mixed(things, *key):
        bits = np.random.PCG64(np.random.SeedSequence(entropy, spawn_key=key)).random_raw(len(things)).tolist()
        return [thing for _, thing in sorted(zip(bits, things))] if shuffle else list(things)

    shards, first = [], 0
    for size in sizes:
        shards.append(range(first, first + size))
        first += size
    out = []
    for turn in itertools.count():
        blocks, samples = [], 0
        for shard in mixed(range(len(shards)), turn):
            blocks.append((samples, samples + len(shards[shard]), shard))
            samples += len(shards[shard])
        # The shard that holds sample k * block_size of the pass is the first of a new block.
        starts = {next(i for i, (a, b, _) in enumerate(blocks) if a <= k < b) for k in range(0, samples, block_size)}
        groups = list(split_before(range(len(blocks)), starts))
        for number, group in enumerate(groups):
            members = [sample for i in group for sample in shards[blocks[i][2]]]
            out += mixed(members, turn, number)
            if len(out) >= length:
                return out[:length]


def split_before(items, starts):
    group = []
    for item in items:
        if item in starts and group:
            yield group
            group = []
        group.append(item)
    yield group


@pytest.mark.parametrize('block_size', [1, 5, 16, 50, 1000])
@pytest.mark.parametrize('shuffle', [True, False])
def test_order_within_a_stream_equals_brute_force(block_size, shuffle):
    sizes = [7, 20, 3, 11, 1, 16]
    mix = mix_of([1], [sizes], block_size=block_size, shuffle=shuffle)
    expected = brute_force_stream('s0', sizes, 150, seed=17, stage='stage', block_size=block_size, shuffle=shuffle)
    assert mix.ids(0, 150).tolist() == expected


def test_every_pass_visits_each_sample_once():
    mix = mix_of([3, 1], [[16] * 20, [60, 60, 13]], block_size=100)
    ids = mix.ids(0, 4000)
    for index, (first, size) in enumerate([(0, 320), (320, 133)]):
        of_stream = ids[stream_indices(mix, ids) == index] - first
        passes = len(of_stream) // size
        assert passes >= 7
        orders = of_stream[: passes * size].reshape(passes, size)
        assert (np.sort(orders, axis=1) == np.arange(size)).all()
        assert len({tuple(order) for order in orders.tolist()}) == passes  # and each in another order


def test_neighbours_in_order_come_from_few_shards():
    mix = mix_of([1], [[16] * 200], block_size=64)
    shards = mix.ids(0, 3200) // 16
    assert max(len(set(shards[i : i + 64].tolist())) for i in range(0, 3200, 64)) <= 5


def test_unshuffled_stream_is_read_in_order_beside_a_shuffled_one():
    streams = [
        MixStream('a', [10, 10], Fraction(1, 2), shuffle=False),
        MixStream('b', [10, 10], Fraction(1, 2), shuffle=True),
    ]
    ids = Mix(streams, 1, 'stage', 8).ids(0, 80)
    assert ids[ids < 20].tolist() == list(range(20)) * 2
    assert ids[ids >= 20].tolist() != sorted(ids[ids >= 20].tolist())


# ---------------------------------------------------------------- purity


@given(st.lists(st.integers(1, 200), min_size=1, max_size=30), st.integers(0, 3000))
@settings(max_examples=40, deadline=None)
def test_any_cut_gives_the_same_order(steps, start):
    weights, sizes = [19, 1], [[16] * 30, [40, 3]]
    whole = mix_of(weights, sizes).ids(0, start + sum(steps))
    mix, at, parts = mix_of(weights, sizes), start, []
    for step in steps:
        parts.append(mix.ids(at, at + step))
        at += step
    assert np.concatenate(parts).tolist() == whole[start:].tolist()


def test_reading_backwards_and_at_random_gives_the_same_order():
    mix = mix_of([2, 1], block_size=10)
    whole = mix_of([2, 1], block_size=10).ids(0, 600)
    for place in np.random.default_rng(0).integers(0, 600, 300):
        assert mix.ids(place, place + 1)[0] == whole[place]


def test_seed_and_names_decide_the_shuffle_and_nothing_else_does():
    def order_of_a(*others, seed=17, stage='one', name='a', share=Fraction(1, 2)):
        rest = [MixStream(f'{other}', [30], (1 - share) / max(1, len(others))) for other in others]
        streams = [*rest, MixStream(name, [10, 10, 10], share if others else Fraction(1))]
        mix = Mix(streams, seed, stage, 16)
        ids = mix.ids(0, 400)
        return (ids[ids >= 30 * len(rest)] - 30 * len(rest)).tolist()[:60]

    alone = order_of_a()
    assert order_of_a('b') == alone  # a stream beside it
    assert order_of_a('c', 'b') == alone  # more of them, in front
    assert order_of_a('b', share=Fraction(1, 4)) == alone
    assert order_of_a(seed=18) != alone
    assert order_of_a(stage='two') != alone
    assert order_of_a(name='b') != alone


def test_pickled_copy_gives_the_same_order():
    mix = mix_of([19, 1], block_size=10)
    before = mix.ids(300, 500)
    copy = pickle.loads(pickle.dumps(mix))
    assert copy.ids(300, 500).tolist() == before.tolist()
    assert copy.ids(5000, 5100).tolist() == mix.ids(5000, 5100).tolist()


# ---------------------------------------------------------------- the order of version 1, for ever


def test_tiny_case_by_hand():
    # a has 3 of 4 turns. Its share after n samples is 3n/4; a count may be off by a half, so b goes third:
    # after two samples a is half a sample ahead, and a third would make it 3 - 9/4 = 3/4.
    streams = [
        MixStream('a', [2, 1], Fraction(3, 4), shuffle=False),
        MixStream('b', [2], Fraction(1, 4), shuffle=False),
    ]
    mix = Mix(streams, 0, 'stage', 2)
    assert mix.ids(0, 12).tolist() == [0, 1, 3, 2, 0, 1, 4, 2, 0, 1, 3, 2]
    assert mix.samples_per_stream == {'a': 3, 'b': 2}


def test_order_of_version_1_has_not_changed():
    assert ORDER_VERSION == 1
    mix = mix_of([19, 1], [[16] * 40, [60, 60, 13]], block_size=100)
    ids = mix.ids(0, 10_000)
    assert ids[:16].tolist() == GOLDEN_FIRST, 'the order changed: raise ORDER_VERSION, or undo it'
    assert hashlib.sha256(ids.astype('<i8').tobytes()).hexdigest() == GOLDEN_HASH


GOLDEN_FIRST = [396, 87, 361, 355, 360, 384, 395, 357, 228, 91, 757, 456, 455, 92, 226, 394]
GOLDEN_HASH = '9af95d48e4f84bfff8d9117b8069050455b426a137c6f28afc100fe60b6c789f'


# ---------------------------------------------------------------- refusals


def test_long_periods_are_refused_with_a_way_out():
    with pytest.raises(UserError, match=r'repeat only after 10,000,000 samples.*rounder numbers'):
        mix_of([3333333, 6666667])
    assert MAX_PERIOD == 1_000_000


@pytest.mark.parametrize(
    ('streams', 'message'),
    [
        ([], 'at least one stream'),
        ([('a', [4], '1/2'), ('a', [4], '1/2')], "called 'a'"),
        ([('a', [4], '1/2'), ('b', [4], '1/4')], 'sum to 3/4'),
        ([('a', [4], '1'), ('b', [4], '0')], 'above 0'),
        ([('a', [], '1')], 'no samples'),
        ([('a', [0, 0], '1')], 'no samples'),
    ],
)
def test_mixes_that_make_no_sense_are_refused(streams, message):
    with pytest.raises(UserError, match=message):
        Mix([MixStream(name, sizes, Fraction(share)) for name, sizes, share in streams], 0, 'stage', 8)


def test_empty_shards_are_passed_over():
    mix = mix_of([1], [[0, 3, 0, 0, 2, 0]], block_size=2)
    assert sorted(mix.ids(0, 5).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(mix.ids(5, 10).tolist()) == [0, 1, 2, 3, 4]


def test_samples_before_the_start_do_not_exist():
    with pytest.raises(ValueError, match='do not exist'):
        mix_of([1]).ids(-1, 3)


# ---------------------------------------------------------------- fingerprint


def test_fingerprint_is_json_and_changes_with_what_matters():
    def printed(sizes=(4, 4), share='1/2', hashes=('x', 'y'), seed=1, block=8, shuffle=True, name='b'):
        streams = [MixStream('a', [9], 1 - Fraction(share)), MixStream(name, np.array(sizes), Fraction(share), shuffle)]
        return fingerprint(streams, {'a': ['z'], name: list(hashes)}, seed, block)

    base = printed()
    assert json.loads(json.dumps(base)) == base == printed()
    assert base['streams'][0]['share'] == '1/2'
    assert base['order_version'] == 1
    others = [
        printed(sizes=(3, 5)),
        printed(share='1/4'),
        printed(hashes=('x', 'q')),
        printed(seed=2),
        printed(block=9),
        printed(shuffle=False),
        printed(name='c'),
    ]
    assert base not in others
    assert len({json.dumps(other) for other in others}) == len(others)


def test_order_needs_no_torch():
    code = "import sys, rewarm.data.order; assert not {'torch', 'streaming', 'composer'} & set(sys.modules)"
    subprocess.run([sys.executable, '-c', code], check=True)
