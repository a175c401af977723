import json

import pytest

from rewarm.config.changes import describe_data_change
from rewarm.config.load import load
from rewarm.config.plan import check_stage_change, identity, make_plan


@pytest.fixture
def stage_of(write_run):
    path = write_run()

    def stage(*overrides: str, index: int = 0):
        return make_plan(load(path, overrides)).stages[index]

    return stage


@pytest.fixture
def check(stage_of):
    """Differences between stage 0 with one set of overrides and with another, through JSON as a checkpoint keeps it."""

    def differences(before: tuple[str, ...], after: tuple[str, ...], *, at: int = 20, ended: bool = False) -> list[str]:
        old = json.loads(json.dumps(identity(stage_of(*before))))
        return check_stage_change(old, stage_of(*after), batch_in_stage=at, ended=ended)

    return differences


CONSTANT = 'stages.0.schedule={name: constant, lr: 1e-3, warmup: 10ba}'
SHARE = 'stages.0.schedule={name: constant, lr: 1e-3, warmup: 10%}'
WSD = 'stages.0.schedule={name: wsd, lr: 1e-3, warmup: 10ba, decay: 20%}'
INFINITE = 'stages.0.schedule={name: infinite_cosine, lr: 1e-3, constant_lr: 5e-4, cooldown: 10ba, warmup: 5ba}'


def longer(batches: int) -> str:
    return f'stages.0.max_duration={batches}ba'


def test_identity_is_json_and_holds_what_may_not_change(stage_of):
    content = json.loads(json.dumps(identity(stage_of(index=1))))
    assert content == identity(stage_of(index=1))
    assert set(content) == {
        'name', 'batches', 'tokens', 'tokens_per_batch', 'schedule', 'schedule_as_written', 'streams', 'optimizer_state',
    }  # fmt: skip
    assert content['streams'][1] == {'name': 'old', 'share': '1/20', 'shuffle': True}


@pytest.mark.parametrize('ended', [False, True])
def test_an_unchanged_stage_goes_on(check, ended):
    assert check((), (), ended=ended) == []


def test_other_spellings_of_the_same_are_no_change(check):
    assert check((), ('stages.0.schedule.warmup=320tok', 'stages.0.max_duration=3200tok'), ended=True) == []
    assert check((), ('stages.0.schedule.warmup=320tok',)) == []


@pytest.mark.parametrize(
    ('override', 'difference'),
    [
        ('stages.0.schedule.lr=1e-4', '`schedule.lr` was 0.0003, now 0.0001'),
        ('stages.0.schedule.warmup=20ba', '`schedule.warmup_tokens` was 320, now 640'),
        ('stages.0.optimizer_state=reset', '`optimizer_state` was keep, now reset'),
        ('stages.0.train.streams.0.name=other', '`streams.0.name` was old, now other'),
        ('stages.0.train.streams.0.shuffle=false', '`streams.0.shuffle` was true, now false'),
        ('global_train_batch_size=8', '`tokens_per_batch` was 32, now 64'),
        (
            'stages.0.train.streams=[{name: old, local: a, proportion: 0.5}, {name: b, local: b, proportion: 0.5}]',
            '`streams` was [old 1], now [old 1/2, b 1/2]',
        ),
    ],
)
@pytest.mark.parametrize('ended', [False, True])
def test_edits_of_a_stage_that_began_are_named(check, override, difference, ended):
    found = check((), (override,), ended=ended)
    assert difference in '\n'.join(found)
    assert all(
        line.startswith('stage `old` has ended and cannot be edited: ' if ended else 'stage `old` is at batch 20: ')
        for line in found
    )


@pytest.mark.parametrize('batches', [20, 99, 101])
@pytest.mark.parametrize('curve', [CONSTANT, SHARE, WSD, INFINITE])
def test_the_budget_of_an_ended_stage_is_fixed(check, curve, batches):
    (found,) = check((curve,), (curve, longer(batches)), at=100, ended=True)
    assert found == (
        f'stage `old` has ended and cannot be edited: `max_duration` was 100 batches, now {batches}. Put it back, or append a new stage'
    )


@pytest.mark.parametrize('batches', [20, 50, 101, 1000])
@pytest.mark.parametrize('curve', [CONSTANT, INFINITE])
def test_a_plateau_may_be_cut_where_it_is_or_extended(check, curve, batches):
    assert check((curve,), (curve, longer(batches))) == []


def test_not_below_where_it_is(check):
    (found,) = check((CONSTANT,), (CONSTANT, longer(19)))
    assert '`max_duration` is now 19 batches, fewer than trained. Write at least `20ba` (`640tok`)' in found


def test_a_curve_that_depends_on_the_budget_may_not_be_resized(check):
    (found,) = check((), (longer(120),))
    assert (
        '`max_duration` cannot go from 100 to 120 batches, because the curve depends on it: batch 11 was trained at rate'
        in found
    )
    (found,) = check((SHARE,), (SHARE, longer(200)))
    assert 'batch 1 was trained at rate 0.0001 and would be at 5e-05' in found


def test_a_cosine_may_be_resized_while_it_warms_up(check):
    assert check((), (longer(120),), at=11) == []  # rates of batches 0 to 10: the peak is the last of them
    assert check((), (longer(120),), at=12) != []


def test_wsd_may_be_resized_as_long_as_no_trained_batch_decays(check):
    assert check((WSD,), (WSD, longer(200)), at=81) == []  # batch 80 is the first of the decay, and still at the peak
    assert check((WSD,), (WSD, longer(200)), at=82) != []
    assert check((WSD,), (WSD, longer(26)), at=20) == []  # decays from batch 20.8 on
    assert check((WSD,), (WSD, longer(22)), at=20) != []


def test_a_resize_hides_no_other_edit(check):
    assert check((WSD,), (WSD.replace('20%', '10%'), longer(200))) == []  # the same 640 tokens
    found = check((WSD,), (WSD.replace('20%', '15%'), longer(200)))
    assert any('`schedule.decay_tokens`' in line for line in found)
    assert check((CONSTANT,), (CONSTANT.replace('1e-3', '2e-3'), longer(200))) != []


def mix(**changes):
    stream = {'name': 'old', 'share': '1', 'shuffle': True, 'samples': 6293, 'shards': f'sha256:{"a" * 64}'}
    return {'order_version': 2, 'seed': 17, 'block_size': 64, 'streams': [{**stream, **changes}]}


def test_changed_data_is_described_in_words():
    assert describe_data_change(mix(), mix()) == []
    assert describe_data_change(mix(), mix(samples=6000)) == ['stream `old`: `samples` was 6,293, now 6,000']
    assert describe_data_change(mix(), mix(shards=f'sha256:{"b" * 64}')) == [
        'stream `old`: its shards hold other samples (aaaaaaaa was, bbbbbbbb is)'
    ]
    assert describe_data_change(mix(), mix(name='new')) == ['stream `old` is gone', 'stream `new` is new']
    assert describe_data_change(mix(), {**mix(), 'block_size': 4096}) == ['`block_size` was 64, now 4,096']
    two = [mix()['streams'][0], mix(name='new')['streams'][0]]
    assert describe_data_change({**mix(), 'streams': two}, {**mix(), 'streams': two[::-1]}) == [
        'the streams are in another order'
    ]


def test_a_stage_that_cannot_be_cut_says_how_else_to_end_it(check):
    cosine = 'stages.0.schedule={name: cosine, lr: 1e-3, warmup: 10ba}'
    (problem,) = check((cosine,), (cosine, longer(20)))
    assert 'begin another run with `model.init_from: checkpoint:' in problem
