import itertools
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewarm.schedule.curves import make_curve, phase_edges

BASE = {'lr': 1.0, 'warmup_tokens': 0, 'warmup_from_lr': 0.0, 'budget_tokens': 1000}


def curve(name: str, **keys: Any):
    return make_curve({**BASE, 'name': name, **keys})


def values(name: str, at: list[int], **keys: Any) -> list[float]:
    rate = curve(name, **keys)
    return [rate(tokens) for tokens in at]


# By hand ---------------------------------------------------------------------------------------------------------------------


def test_warm_up_from_zero_and_from_the_current_rate():
    assert values('constant', [0, 25, 50, 100, 999], warmup_tokens=100) == [0, 0.25, 0.5, 1, 1]
    assert values('constant', [0, 50, 100], warmup_tokens=100, warmup_from_lr=0.2) == [0.2, pytest.approx(0.6), 1]
    assert values('constant', [0, 50, 100], warmup_tokens=100, warmup_from_lr=2.0) == [
        2,
        1.5,
        1,
    ]  # falls to a lower rate


def test_no_warm_up_starts_at_the_peak():
    assert values('constant', [0, 1]) == [1, 1]


def test_linear():
    keys = {'min_lr': 0.1, 'warmup_tokens': 200, 'decay_until_tokens': 1000}
    assert values('linear', [100, 200, 400, 600, 1000, 2000], **keys) == pytest.approx([0.5, 1, 0.775, 0.55, 0.1, 0.1])


def test_linear_to_zero_that_ends_early_and_holds():
    assert values('linear', [0, 250, 500, 999], min_lr=0.0, decay_until_tokens=500) == [1, 0.5, 0, 0]


def test_cosine():
    keys = {'min_lr': 0.2, 'warmup_tokens': 100, 'decay_until_tokens': 700}
    expected = [
        1,
        0.2 + 0.8 * 0.75,
        0.6,
        0.2 + 0.8 * 0.25,
        0.2,
        0.2,
    ]  # cos of 0, 60, 90, 120 and 180 degrees, then flat
    assert values('cosine', [100, 300, 400, 500, 700, 999], **keys) == pytest.approx(expected)


def test_neox_clipped_cosine():
    keys = {'min_lr': 0.1, 'warmup_tokens': 100}
    # n = t - 100 of T = 1,000: 0, a third, a half, two thirds, then under the floor
    assert values('neox_clipped_cosine', [50, 100, 1000 // 3 + 100, 600, 767], **keys) == pytest.approx(
        [0.5, 1, 0.75, 0.5, 0.25], abs=2e-3
    )
    assert values('neox_clipped_cosine', [900, 999, 5000], **keys) == [0.1, 0.1, 0.1]


def test_neox_clipped_cosine_stops_at_the_budget_minus_the_warm_up():
    # n = min(t, T - w) - w: at most 800 of 1,000, where the cosine is (1 + cos 144 degrees) / 2
    assert values('neox_clipped_cosine', [900, 950, 1000], min_lr=0.0, warmup_tokens=100) == pytest.approx(
        [0.0954915] * 3
    )


def test_neox_clipped_cosine_reaches_the_floor_at_the_papers_240_billion():
    budget = 296_860_000_000
    warmup = budget // 100
    keys = {'lr': 3e-4, 'min_lr': 3e-5, 'warmup_tokens': warmup, 'budget_tokens': budget}
    rate = curve('neox_clipped_cosine', **keys)
    floor = phase_edges({**BASE, 'name': 'neox_clipped_cosine', **keys})['floor']
    assert (floor - warmup) / budget == pytest.approx(0.7952, abs=5e-5)
    assert floor == pytest.approx(239.0e9, rel=1e-3)
    assert rate(floor) == 3e-5
    assert rate(floor - 2_260_992) > 3e-5
    # Pythia itself: the floor from step 115,139 of 143,000 on (paper.md)
    steps = {'name': 'neox_clipped_cosine', 'lr': 3e-4, 'min_lr': 3e-5, 'warmup_tokens': 1430, 'budget_tokens': 143_000}
    assert phase_edges({**BASE, **steps})['floor'] == 115_139


@pytest.mark.parametrize(
    ('shape', 'quarter', 'half'),
    [
        ('one_minus_sqrt', 0.5, 1 - math.sqrt(0.5)),
        ('linear', 0.75, 0.5),
        ('cosine', (1 + math.sqrt(0.5)) / 2, 0.5),
    ],
)
def test_wsd(shape, quarter, half):
    rates = values('wsd', [0, 799, 800, 850, 900, 1000], min_lr=0.1, decay_tokens=200, shape=shape)
    assert rates == pytest.approx([1, 1, 1, 0.1 + 0.9 * quarter, 0.1 + 0.9 * half, 0.1])


def test_wsd_exponential():
    rates = values('wsd', [800, 850, 900, 1000], min_lr=0.01, decay_tokens=200, shape='exponential')
    assert rates == pytest.approx([1, 0.01**0.25, 0.1, 0.01])


def test_inverse_sqrt():
    keys = {'min_lr': 0.25, 'warmup_tokens': 100, 'timescale_tokens': 100}
    assert values('inverse_sqrt', [50, 100, 200, 400, 900, 1700], **keys) == pytest.approx(
        [0.5, 1, 0.5**0.5, 0.5, 1 / 3, 0.25]
    )


INFINITE = {'constant_lr': 0.4, 'min_lr': 0.1, 'warmup_tokens': 100, 'cooldown_tokens': 400, 'constant_tokens': 300}


def test_infinite_cosine():
    rates = values('infinite_cosine', [50, 100, 300, 500, 650, 800, 900, 1000, 1500], **INFINITE)
    assert rates == pytest.approx([0.5, 1, 0.7, 0.4, 0.4, 0.4, 0.2, 0.1, 0.1])  # anneal: 0.4 x (1/4)^(1/2) half way


def test_infinite_inverse_sqrt():
    rates = values('infinite_inverse_sqrt', [100, 220, 500, 800, 900, 1000], **INFINITE, alpha=10.0)
    bend = (1 / math.sqrt(1 + 10 * 0.3) - 1) / (1 / math.sqrt(11) - 1)  # tau = 0.3: 1 + alpha tau = 4
    assert rates == pytest.approx([1, 1 - 0.6 * bend, 0.4, 0.4, 0.2, 0.1])


def test_infinite_for_ever():
    keys = {**INFINITE, 'constant_tokens': None}
    assert values('infinite_cosine', [500, 999, 10**12], **keys) == [0.4, 0.4, 0.4]


def test_multistep():
    steps = [{'at_tokens': 800, 'factor': 0.5}, {'at_tokens': 900, 'factor': 0.1}]
    assert values(
        'multistep', [50, 100, 799, 800, 899, 900, 999], warmup_tokens=100, milestones=steps
    ) == pytest.approx([0.5, 1, 1, 0.5, 0.5, 0.05, 0.05])


def test_unknown_names():
    with pytest.raises(ValueError, match='unknown curve'):
        curve('warm')
    with pytest.raises(ValueError, match='unknown decay shape'):
        curve('wsd', min_lr=0.0, decay_tokens=10, shape='sharp')(999)


# Whatever the lengths and rates ----------------------------------------------------------------------------------------------

shares = st.floats(0, 1)
names = st.sampled_from(
    [
        'constant',
        'linear',
        'cosine',
        'neox_clipped_cosine',
        'wsd',
        'inverse_sqrt',
        'infinite_cosine',
        'infinite_inverse_sqrt',
    ]
)


@st.composite
def schedules(draw: st.DrawFn, name_strategy: st.SearchStrategy[str] = names) -> dict[str, Any]:
    """Any schedule that the plan would accept."""
    name = draw(name_strategy)
    budget = draw(st.integers(10_000, 10**13))
    lr = draw(st.floats(1e-7, 1.0))
    warmup = int(draw(shares) * budget * 0.5)
    room = budget - warmup
    s: dict[str, Any] = {
        'name': name,
        'lr': lr,
        'warmup_tokens': warmup,
        'warmup_from_lr': lr * draw(shares),
        'budget_tokens': budget,
    }
    low = lr * draw(st.one_of(st.just(0.0), st.floats(1e-3, 1)))
    if name != 'constant':
        s['min_lr'] = low
    match name:
        case 'linear' | 'cosine':
            s['decay_until_tokens'] = warmup + max(1, int(room * draw(shares)))
        case 'wsd':
            s['decay_tokens'] = max(1, int(room * draw(shares)))
            s['shape'] = draw(st.sampled_from(['one_minus_sqrt', 'linear', 'cosine', 'exponential']))
            s['min_lr'] = max(low, lr * 1e-3) if s['shape'] == 'exponential' else low
        case 'inverse_sqrt':
            s['timescale_tokens'] = max(1, int(budget * draw(shares)))
        case 'infinite_cosine' | 'infinite_inverse_sqrt':
            s['min_lr'] = max(low, lr * 1e-3)
            s['constant_lr'] = min(lr, max(s['min_lr'], lr * draw(shares)))
            s['cooldown_tokens'] = max(1, int(room * draw(shares) * 0.5))
            s['constant_tokens'] = draw(st.one_of(st.none(), st.integers(0, room - s['cooldown_tokens'] - 1)))
            s['alpha'] = draw(st.floats(0.1, 100))
        case _:
            pass
    return s


@given(schedules(), shares)
def test_rates_stay_between_zero_and_the_peak(schedule, share):
    rate = make_curve(schedule)
    for tokens in (
        0,
        int(share * schedule['budget_tokens']),
        *phase_edges(schedule).values(),
        schedule['budget_tokens'],
    ):
        assert 0 <= rate(tokens) <= schedule['lr']


@given(schedules())
def test_curves_are_continuous_at_phase_edges(schedule):
    rate = make_curve(schedule)
    for label, edge in phase_edges(schedule).items():
        before, at, after = rate(edge - 1), rate(edge), rate(edge + 1)
        # One token is at most this share of the shortest phase; a root is steep at its start, so allow the root of the share.
        lengths = [schedule.get(f'{key}_tokens') for key in ('warmup', 'decay', 'cooldown', 'timescale')]
        if schedule['name'] in ('linear', 'cosine'):
            lengths.append(schedule['decay_until_tokens'] - schedule['warmup_tokens'])
        if schedule.get('constant_tokens') is not None:
            lengths.append(
                schedule['budget_tokens'] - sum(schedule[f'{key}_tokens'] for key in ('warmup', 'cooldown', 'constant'))
            )
        step = 1 / min(length for length in (*lengths, schedule['budget_tokens']) if length)
        jump = 60 * step if schedule.get('shape') != 'one_minus_sqrt' else 2 * math.sqrt(step)
        assert abs(at - before) <= schedule['lr'] * jump + 1e-18, label
        assert abs(after - at) <= schedule['lr'] * jump + 1e-18, label


@given(schedules(), shares)
def test_after_the_warm_up_rates_never_rise(schedule, share):
    rate = make_curve(schedule)
    first = schedule['warmup_tokens'] + int(share * (schedule['budget_tokens'] - schedule['warmup_tokens']))
    marks = sorted({schedule['warmup_tokens'], first, *phase_edges(schedule).values(), schedule['budget_tokens']})
    rates = [rate(tokens) for tokens in marks]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(rates))


@given(schedules(), st.lists(st.integers(0, 10**13), max_size=5))
def test_a_rate_depends_on_the_position_alone(schedule, others):
    """After any resume: a new curve gives the same bits, whatever was asked of the old one before."""
    rate = make_curve(schedule)
    tokens = schedule['budget_tokens'] // 3
    first = rate(tokens)
    for other in others:
        rate(other)
    assert rate(tokens) == first == make_curve(dict(schedule))(tokens)


@given(schedules())
def test_a_curve_ends_at_its_floor(schedule):
    end = make_curve(schedule)(schedule['budget_tokens'])
    match schedule['name']:
        case 'constant':
            assert end == schedule['lr']
        case 'linear' | 'cosine' | 'wsd':
            assert end == schedule['min_lr']
        case 'infinite_cosine' | 'infinite_inverse_sqrt':
            assert end == (schedule['constant_lr'] if schedule['constant_tokens'] is None else schedule['min_lr'])
        case _:
            assert end >= schedule['min_lr']


@given(schedules())
def test_the_warm_up_ends_at_the_peak(schedule):
    rate = make_curve(schedule)
    assert rate(schedule['warmup_tokens']) == schedule['lr']
    if schedule['warmup_tokens']:
        assert rate(0) == schedule['warmup_from_lr']
