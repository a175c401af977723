from __future__ import annotations

import math

import pytest

from rewarm.report.outcome import outcome


def test_every_measure_of_a_hand_made_curve():
    # Rises from 3.0 to 3.8 at a quarter, falls to 2.9 at the end; back under 3.0 from 90 tokens on.
    result = outcome([(0, 3.0), (10, 3.4), (25, 3.8), (60, 3.2), (90, 3.0), (100, 2.9)], stage_tokens=100)
    assert result.before == 3.0
    assert (result.peak, result.peak_tokens, result.peak_share) == (3.8, 25, 0.25)
    assert (result.end, result.end_tokens) == (2.9, 100)
    assert result.rise == pytest.approx(0.8)
    assert result.forgetting == pytest.approx(-0.1)
    assert result.adaptation == pytest.approx(0.1)
    assert result.recovery_tokens == 90
    assert result.recovered_share == pytest.approx(0.9 / 0.8)


def test_partly_recovered():
    result = outcome([(0, 3.0), (50, 4.0), (100, 3.75)], stage_tokens=200)
    assert result.recovery_tokens is None
    assert result.recovered_share == pytest.approx(0.25)
    assert result.forgetting == pytest.approx(0.75)
    assert result.peak_share == 0.25  # of the budget, not of what was done so far


def test_recovery_counts_only_if_it_lasts():
    curve = [(0, 3.0), (10, 3.5), (20, 2.9), (30, 3.1), (40, 2.8)]
    assert outcome(curve, stage_tokens=40).recovery_tokens == 40
    assert outcome(curve[:4], stage_tokens=40).recovery_tokens is None


def test_a_loss_that_never_rose_has_no_rise_and_recovers_at_once():
    result = outcome([(0, 6.0), (10, 5.0), (20, 4.5)], stage_tokens=20)
    assert result.rise == 0
    assert result.recovery_tokens == 0
    assert result.recovered_share is None
    assert result.adaptation == 1.5


def test_without_an_evaluation_before_the_stage_nothing_is_guessed():
    result = outcome([(10, 3.5), (20, 3.4)], stage_tokens=20)
    assert (result.before, result.rise, result.forgetting, result.recovery_tokens) == (None, None, None, None)
    assert result.end == 3.4


def test_untrained_weights_forget_nothing():
    assert outcome([(0, 7.8), (10, 5.0)], stage_tokens=10, untrained=True).forgetting is None


def test_a_diverged_loss_is_shown_and_is_no_peak():
    result = outcome([(0, 3.0), (10, 3.2), (20, math.nan)], stage_tokens=20)
    assert result.peak == 3.2
    assert math.isnan(result.end)
    assert result.recovery_tokens is None


def test_an_empty_curve_is_refused():
    with pytest.raises(ValueError, match='at least one evaluation'):
        outcome([], stage_tokens=1)
