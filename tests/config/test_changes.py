import json

import pytest

from rewarm.config.changes import BUDGET_ADVICE, describe_data_change
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

    def differences(before: tuple[str, ...], after: tuple[str, ...], *, at: int = 20, ended: bool = False):
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
    ('override', 'row'),
    [
        ('stages.0.schedule.lr=1e-4', ('stages.0.schedule.lr', '0.0003', '0.0001')),
        ('stages.0.schedule.warmup=20ba', ('stages.0.schedule.warmup', '10ba', '20ba')),
        ('stages.0.optimizer_state=reset', ('stages.0.optimizer_state', 'keep', 'reset')),
        ('stages.0.train.streams.0.name=other', ('stages.0.train.streams.0.name', 'old', 'other')),
        ('stages.0.train.streams.0.shuffle=false', ('stages.0.train.streams.0.shuffle', 'true', 'false')),
        ('global_train_batch_size=8', ('stages.0.tokens_per_batch', '32', '64')),
        (
            'stages.0.train.streams=[{name: old, local: a, proportion: 0.5}, {name: b, local: b, proportion: 0.5}]',
            ('stages.0.train.streams', '[old 1]', '[old 1/2, b 1/2]'),
        ),
    ],
)
@pytest.mark.parametrize('ended', [False, True])
def test_edits_of_a_stage_that_began_are_named(check, override, row, ended):
    found = check((), (override,), ended=ended)
    assert row in [(each.key, each.was, each.now) for each in found]
    assert {each.forks for each in found} == {not ended}
    words = 'Stage `old` has ended and cannot be edited' if ended else 'Stage `old` is at batch 20'
    assert all(each.advice.startswith(words) for each in found)


def test_one_key_that_is_only_spelled_otherwise_is_not_in_the_way_of_another(check):
    (found,) = check((), ('stages.0.schedule.warmup=320tok', 'stages.0.schedule.lr=1e-4'))
    assert found.key == 'stages.0.schedule.lr'


@pytest.mark.parametrize('batches', [20, 99, 101])
@pytest.mark.parametrize('curve', [CONSTANT, SHARE, WSD, INFINITE])
def test_the_budget_of_a_stage_that_another_came_after_is_fixed(check, curve, batches):
    (found,) = check((curve,), (curve, longer(batches)), at=100, ended=True)
    assert (found.key, found.was, found.now) == ('stages.0.max_duration', '100ba', f'{batches}ba')
    assert found.advice == 'Stage `old` has ended and cannot be edited: put it back, or append a new stage.'


@pytest.mark.parametrize('stop', ['stages.0.stop_at=60ba', 'stages.0.stop_at=40ba'])
def test_where_a_stage_stopped_is_fixed_once_another_came_after(check, stop):
    before = ('stages.0.stop_at=50ba',)
    (found,) = check(before, (stop,), at=50, ended=True)
    assert (found.key, found.was) == ('stages.0.stop_at', '50ba')
    (found,) = check(before, (), at=50, ended=True)
    assert (found.was, found.now) == ('50ba', 'not set')
    assert check(before, before, at=50, ended=True) == []


COSINE = 'stages.0.schedule={name: cosine, lr: 1e-3, warmup: 10ba}'


@pytest.mark.parametrize('curve', [COSINE, CONSTANT, SHARE, WSD, INFINITE])
def test_any_stage_may_be_ended_where_it_is_or_later(check, curve):
    for stop in ('20ba', '640tok', '20%', '99ba', '100ba'):
        assert check((curve,), (curve, f'stages.0.stop_at={stop}')) == []


@pytest.mark.parametrize('curve', [COSINE, CONSTANT])
def test_a_stage_may_not_stop_before_where_it_is(check, curve):
    (found,) = check((curve,), (curve, 'stages.0.stop_at=19ba'))
    assert (found.key, found.was, found.now) == ('stages.0.stop_at', 'not set', '19ba')
    assert 'write `stop_at: 20ba` (`640tok`)' in found.advice


@pytest.mark.parametrize('curve', [COSINE, CONSTANT])
def test_a_stage_that_stopped_goes_on_if_nothing_came_after(check, curve):
    before = (curve, 'stages.0.stop_at=50ba')
    for after in ((curve,), (curve, 'stages.0.stop_at=60ba')):
        assert check(before, after, at=50) == []


def test_a_plateau_at_its_end_may_be_lengthened_if_nothing_came_after_and_a_cosine_not(check):
    assert check((CONSTANT,), (CONSTANT, longer(120)), at=100) == []
    (found,) = check((COSINE,), (COSINE, longer(120)), at=100)
    assert found.advice.endswith(BUDGET_ADVICE)


@pytest.mark.parametrize('batches', [20, 50, 101, 1000])
@pytest.mark.parametrize('curve', [CONSTANT, INFINITE])
def test_a_plateau_may_be_cut_where_it_is_or_extended(check, curve, batches):
    assert check((curve,), (curve, longer(batches))) == []


def test_not_below_where_it_is(check):
    (found,) = check((CONSTANT,), (CONSTANT, longer(19)))
    assert (found.key, found.was, found.now) == ('stages.0.max_duration', '100ba', '19ba')
    assert 'write `stop_at: 20ba` (`640tok`) and leave `max_duration` at `100ba`' in found.advice


def test_a_curve_that_depends_on_the_budget_may_not_be_resized(check):
    (found,) = check((), (longer(120),))
    assert 'batch 11 was trained at rate' in found.advice
    assert found.advice.endswith(BUDGET_ADVICE)
    (found,) = check((SHARE,), (SHARE, longer(200)))
    assert 'batch 1 was trained at rate 0.0001 and would be at 5e-05' in found.advice


def test_what_a_refused_cut_is_told_to_write_is_taken(check):
    (found,) = check((COSINE,), (COSINE, longer(50)))
    assert found.advice.endswith('leave `max_duration` at `100ba` and write `stop_at: 50ba`.')
    assert check((COSINE,), (COSINE, 'stages.0.stop_at=50ba')) == []


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
    assert [(each.key, each.was, each.now) for each in found] == [('stages.0.schedule.decay', '20%', '15%')]
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
