"""Spikes are found and the bumps of re-warming are not; what is decided depends on the recorded past alone."""

import json
import math

import numpy as np
import pytest

from rewarm.resume.spikes import MOST_ROLLBACKS, MOST_SKIPS, WINDOW, Baseline, SpikePolicy

DEFAULTS = {'sigma_factor': 6.0, 'min_rise': 0.5}
NUM_BATCHES = 1500


def rewarming(rise: float, over: int, start: int = 0) -> np.ndarray:
    """A loss that rises by `rise` within `over` batches from `start` on, and slowly comes back."""
    since = np.arange(NUM_BATCHES) - start
    return 2.5 + rise * np.clip(since / over, 0, 1) * np.exp(-np.clip(since - over, 0, None) / 2000)


def without_warmup(rise: float) -> np.ndarray:
    """The rate is high from the first batch on: the loss is up within about ten."""
    since = np.arange(NUM_BATCHES)
    return 2.5 + rise * (1 - np.exp(-since / 4)) * np.exp(-since / 500)


def from_scratch() -> np.ndarray:
    return 2.5 + 8.5 * np.exp(-np.arange(NUM_BATCHES) / 150)


CURVES = {
    'the paper, 1 % of 297B tokens': rewarming(0.45, 1313),
    'warm-up of 50 batches': rewarming(0.5, 50),
    'warm-up of 50 batches, small': rewarming(0.05, 50),
    'within 20 batches, in the middle': rewarming(0.5, 20, start=700),
    'no warm-up': without_warmup(0.5),
    'from scratch': from_scratch(),
}


def noise_of(sigma: float, seed: int) -> np.ndarray:
    """Each batch for itself, and a slow wander, since neighbouring samples are alike."""
    rng = np.random.default_rng(seed)
    wander = np.zeros(NUM_BATCHES)
    for batch in range(1, NUM_BATCHES):
        wander[batch] = 0.98 * wander[batch - 1] + rng.normal(0, 0.2 * sigma)
    return wander + rng.normal(0, sigma, NUM_BATCHES)


def spikes_in(losses) -> list[int]:
    baseline, found = Baseline(**DEFAULTS), []
    for batch, loss in enumerate(losses):
        if baseline.find_spike(float(loss)) is not None:
            found.append(batch)
        baseline.add(float(loss))
    return found


@pytest.mark.parametrize('sigma', [0.01, 0.05, 0.2])
@pytest.mark.parametrize('curve', CURVES)
def test_no_bump_of_rewarming_is_a_spike(curve, sigma):
    for seed in range(2):
        assert spikes_in(CURVES[curve] + noise_of(sigma, seed)) == []


@pytest.mark.parametrize('sigma', [0.01, 0.05, 0.15])
@pytest.mark.parametrize('curve', CURVES)
def test_a_jump_of_a_nat_and_a_half_on_any_of_them_is_found_where_it_is(curve, sigma):
    # Where a loss falls by nats from scratch, it is far below what it was: nothing stands out there.
    for seed, at in enumerate((320, 1200) if curve == 'from scratch' else (40, 320, 1200)):
        losses = CURVES[curve] + noise_of(sigma, seed)
        losses[at] += 1.5
        assert spikes_in(losses) == [at]


def test_a_spike_that_takes_five_batches_to_build_up_is_found_before_its_top():
    losses = rewarming(0.3, 50) + noise_of(0.03, seed=1)
    losses[600:605] += (0.15, 0.4, 0.9, 1.8, 3.0)
    losses[605:700] += 3.0 * np.exp(-np.arange(95) / 20)
    found = spikes_in(losses)
    assert found[0] == 602
    assert len(found) < 20, 'a long spike is not reported at each of its batches'


def test_a_new_level_is_accepted_after_a_while():
    losses = np.full(600, 2.5) + noise_of(0.02, seed=2)[:600]
    losses[300:] += 2
    assert spikes_in(losses) == list(range(300, 309))


def test_first_batches_of_a_stage_are_not_judged_but_for_numbers_that_are_none():
    policy = make_policy(on_nan='skip', on_spike='skip', history=[(2.5, False)] * 31)
    assert policy.judge(100, loss=9.0, grad_norm=1.0).action == 'train'
    assert policy.judge(100, loss=math.nan, grad_norm=1.0).action == 'skip'
    policy.note(2.5, skipped=False)
    assert policy.judge(101, loss=9.0, grad_norm=1.0).action == 'skip'


def make_policy(**changes) -> SpikePolicy:
    return SpikePolicy(**{'on_nan': 'rollback', 'on_spike': 'log', **DEFAULTS, **changes})


@pytest.mark.parametrize(('loss', 'norm'), [(math.nan, 1.0), (math.inf, 1.0), (2.5, math.nan), (2.5, math.inf)])
@pytest.mark.parametrize('on_nan', ['rollback', 'skip', 'stop'])
def test_a_loss_or_norm_that_is_no_number_is_treated_as_asked_for(on_nan, loss, norm):
    verdict = make_policy(on_nan=on_nan).judge(7, loss=loss, grad_norm=norm)
    assert verdict.action == on_nan
    assert verdict.spike is None
    assert str(loss if not math.isfinite(loss) else norm) in verdict.reason


@pytest.mark.parametrize('on_spike', ['log', 'skip', 'rollback'])
def test_a_spike_is_treated_as_asked_for_and_says_by_what_it_was_measured(on_spike):
    history = [(2.5 + 0.01 * (batch % 3), False) for batch in range(60)]
    verdict = make_policy(on_spike=on_spike, history=history).judge(61, loss=4.0, grad_norm=1.0)
    assert verdict.action == on_spike
    assert (verdict.spike.loss, verdict.spike.baseline, verdict.spike.threshold) == (4.0, 2.51, 3.01)
    assert 'the loss is 4.0000, after 2.5100 (a spike is above 3.0100)' in verdict.reason


@pytest.mark.parametrize('loss', [math.nan, 9.0])
def test_a_batch_that_offends_again_after_its_rollback_is_skipped(loss):
    settings = {'on_spike': 'rollback', 'history': [(2.5, False)] * 60}
    assert make_policy(**settings).judge(61, loss=loss, grad_norm=1.0).action == 'rollback'
    again = make_policy(**settings, rollbacks=[61])
    assert again.judge(61, loss=loss, grad_norm=1.0).action == 'skip'
    assert again.judge(62, loss=loss, grad_norm=1.0).action == 'rollback'
    assert again.judge(61, loss=2.5, grad_norm=1.0).action == 'train'


def test_more_than_three_rollbacks_near_each_other_stop_the_run_and_far_ones_do_not():
    near, far = [100, 150, 900], [100, 1200, 2300]
    assert len(near) == MOST_ROLLBACKS
    verdict = make_policy(rollbacks=near).judge(1000, loss=math.nan, grad_norm=1.0)
    assert verdict.action == 'stop'
    assert 'after rollbacks for the batches 100, 150, 900 near it' in verdict.reason
    assert make_policy(rollbacks=near).judge(900, loss=math.nan, grad_norm=1.0).action == 'skip'
    assert make_policy(rollbacks=far).judge(3000, loss=math.nan, grad_norm=1.0).action == 'rollback'


def test_a_run_that_only_skips_is_stopped():
    policy = make_policy(on_nan='skip')
    for batch in range(MOST_SKIPS):
        assert policy.judge(batch, loss=math.nan, grad_norm=math.nan).action == 'skip'
        policy.note(math.nan, skipped=True)
    verdict = policy.judge(MOST_SKIPS, loss=math.nan, grad_norm=math.nan)
    assert verdict.action == 'stop'
    assert f'the {MOST_SKIPS} batches before it were skipped' in verdict.reason


@pytest.mark.parametrize('killed_at', [5, 31, 32, 33, 130, 400, 401, 402, 640])
def test_a_run_killed_anywhere_decides_as_the_unbroken_one(killed_at):
    """The unbroken run's records, cut at the kill and read as JSON, are all that the resumed one knows."""
    rng = np.random.default_rng(5)
    losses = [float(x) for x in 2.5 + rng.standard_t(3, 700) * 0.15]
    for batch in (20, 300, 399, 400, 401, 402, 550):
        losses[batch] = math.nan if batch == 400 else 8.0

    def train(first: int, policy: SpikePolicy) -> list[dict]:
        lines = []
        for batch, loss in enumerate(losses[first:], start=first):
            action = policy.judge(batch + 1, loss=loss, grad_norm=1.0).action
            policy.note(loss, skipped=action == 'skip')
            lines.append({'loss': loss if math.isfinite(loss) else None, 'action': action})
        return lines

    settings = {'on_nan': 'skip', 'on_spike': 'skip'}
    unbroken = train(0, make_policy(**settings))
    assert {'train', 'skip'} == {line['action'] for line in unbroken}
    recorded = json.loads(json.dumps(unbroken[:killed_at], allow_nan=False))
    history = [(line['loss'], line['action'] == 'skip') for line in recorded[-WINDOW:]]
    assert train(killed_at, make_policy(**settings, history=history)) == unbroken[killed_at:]
