import math
import random

import pytest

from rewarm.config.goodput import (
    TIDY,
    Conditions,
    Losses,
    daly_seconds,
    expected_goodput,
    find_losses,
    recommend_interval,
    young_seconds,
)

MINUTE = 60


def simulate(interval: float, losses: Losses, *, kills: int, seed: int) -> float:
    """Plays a run second by second, knowing nothing of the formula: train, save, be killed, restart."""
    chance = random.Random(seed)
    between = 86400 / losses.preemptions_per_day
    clock = trained = kept = 0.0
    next_kill = chance.expovariate(1 / between)
    for _ in range(kills):
        # Until the next kill: train for an interval, stand still, and meanwhile the save becomes whole.
        saves = [(clock, kept)]  # when each becomes whole, and the work in it
        while True:
            if clock + interval >= next_kill:
                trained += next_kill - clock
                break
            clock += interval
            trained += interval
            saves.append((clock + losses.save_seconds, trained))
            clock += losses.save_stall_seconds
            if clock >= next_kill:
                break
        whole = max(work for when, work in saves if when <= next_kill)
        clock = next_kill
        if chance.random() < losses.notice_share:
            clock += losses.save_seconds
            whole = trained
        kept = trained = whole
        # A restart; a kill during it starts it again.
        next_kill = clock + chance.expovariate(1 / between)
        while clock + losses.restart_seconds > next_kill:
            clock = next_kill
            next_kill = clock + chance.expovariate(1 / between)
        clock += losses.restart_seconds
    return kept / clock


@pytest.mark.parametrize(
    ('interval', 'losses'),
    [
        (10 * MINUTE, Losses(0.5, 20, 180, preemptions_per_day=6)),
        (2 * MINUTE, Losses(0.5, 20, 180, preemptions_per_day=6, notice_share=0.7)),
        (
            20 * MINUTE,
            Losses(14, 14, 300, preemptions_per_day=48),
        ),  # a save that blocks, machines that last half an hour
        (5 * MINUTE, Losses(2, 90, 120, preemptions_per_day=200, notice_share=0.25)),
        (15 * MINUTE, Losses(5, 60, 600, preemptions_per_day=100)),  # a restart takes most of a machine's life
    ],
)
def test_goodput_is_that_of_a_simulation(interval, losses):
    simulated = simulate(interval, losses, kills=100_000, seed=1)
    # With 100,000 kills the simulation itself scatters by 0.1 to 0.5 %.
    assert expected_goodput(interval, losses) == pytest.approx(simulated, rel=0.01)


def test_the_simulation_would_tell_a_wrong_model():
    losses = Losses(14, 14, 300, preemptions_per_day=48)
    first_order = 1 - 48 / 86400 * (20 * MINUTE / 2 + 300)
    assert first_order != pytest.approx(simulate(20 * MINUTE, losses, kills=50_000, seed=1), rel=0.02)


@pytest.mark.parametrize(
    ('hours_between', 'minutes'),
    [(24, 117), (6, 57), (0.25, 9.1)],
)
def test_daly_gives_the_intervals_printed_in_the_paper(hours_between, minutes):
    # Figures 3 to 5 of Daly 2006: a dump of 5 minutes.
    assert daly_seconds(5 * MINUTE, hours_between * 3600) / MINUTE == pytest.approx(minutes, rel=0.01)


def test_young_by_hand_and_dalys_range():
    assert young_seconds(2, 100) == 20
    assert daly_seconds(200, 100) == 100
    assert daly_seconds(1, math.inf) == math.inf
    assert daly_seconds(0.5, 14400) == pytest.approx(young_seconds(0.5, 14400), rel=0.01)


@pytest.mark.parametrize('stall', [0.1, 0.5, 5, 60])
@pytest.mark.parametrize('per_day', [1, 6, 24, 96])
@pytest.mark.parametrize('notice', [0, 0.5])
def test_no_interval_is_much_better_than_the_recommended_one(stall, per_day, notice):
    losses = Losses(stall, max(stall, 20), 180, preemptions_per_day=per_day, notice_share=notice)
    best = max(expected_goodput(20 * 1.05**n, losses) for n in range(150))
    assert expected_goodput(recommend_interval(losses).seconds, losses) > best - 0.002


def test_never_below_the_time_of_a_save_or_a_batch():
    losses = Losses(0.1, 70, 180, preemptions_per_day=24)
    assert daly_seconds(0.1, losses.seconds_between_kills) < 30
    assert str(recommend_interval(losses)) == '90sec'
    assert str(recommend_interval(losses, seconds_per_batch=130)) == '3min'
    # A shorter interval than a save cannot be kept, so it is worth no more than the time of one.
    assert expected_goodput(1, losses) == expected_goodput(69.9, losses)


def test_recommendations_are_spelled_as_a_run_file_spells_them():
    losses = [Losses(0.3, 1, 60, preemptions_per_day=rate) for rate in (0.01, 1, 10, 1000, 100_000)]
    assert [str(recommend_interval(each)) for each in losses] == ['45min', '4min', '1min', '7sec', '1sec']
    assert all(str(recommend_interval(each)) in TIDY for each in losses)


def test_without_kills_only_the_stalls_are_lost():
    assert expected_goodput(99, Losses(1, 5, 180)) == 0.99
    assert expected_goodput(99, Losses(1, 5, 180, preemptions_per_day=0)) == 0.99
    assert expected_goodput(99, Losses(1, 5, 180, preemptions_per_day=1e9)) == 0  # and nothing overflows


def test_a_notice_loses_no_batch():
    told = Losses(0.5, 20, 180, preemptions_per_day=24, notice_share=1)
    assert expected_goodput(3600, told) > expected_goodput(3600, Losses(0.5, 20, 180, preemptions_per_day=24)) + 0.2
    assert told.seconds_between_kills == math.inf


def test_what_is_not_known_is_assumed():
    losses = find_losses(Conditions(save_seconds=7), 5_000_000_000)
    assert (losses.save_stall_seconds, losses.save_seconds, losses.restart_seconds) == (0.5, 7, 180)
    assert find_losses(Conditions(), 5_000_000_000).save_seconds == 20
    assert find_losses(Conditions(save_stall_seconds=9, save_seconds=7), 1).save_seconds == 9
    given, measured = Conditions(restart_seconds=0.0), Conditions(restart_seconds=90, notice_share=0.5)
    assert given.or_else(measured) == Conditions(restart_seconds=0.0, notice_share=0.5)
