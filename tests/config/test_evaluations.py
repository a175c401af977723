"""What validation takes, against counts by hand."""

import json
from pathlib import Path

import pytest

from rewarm.config.evaluations import Evaluations
from rewarm.config.goodput import Conditions
from rewarm.config.load import load
from rewarm.config.plan import make_plan
from tests.config.cards import write_card


@pytest.fixture
def plan(write_run):
    """100 and 200 batches of 32 tokens, evaluated every 50, on 25 samples of 8 tokens."""

    def make(*overrides, samples=25, **kwargs):
        write_card(Path('data/old-val'), samples=samples)
        return make_plan(load(write_run(), overrides), **kwargs)

    return make


def test_rounds_are_counted_as_they_are_run(plan):
    # 0, 50, 100 (the end of the first stage and the start of the second), 150, 200, 250, 300
    assert plan().evaluations.rounds == 7
    assert plan('eval.interval=1000ba').evaluations.rounds == 3
    assert plan('eval.interval=30ba').evaluations.rounds == 1 + 4 + 7  # 30 60 90 100; 130 ... 280 300
    assert plan('eval.sets=[]').evaluations.rounds == 0


def test_tokens_and_shares(plan):
    found = plan().evaluations
    assert (found.tokens_per_round, found.tokens, found.trained_tokens) == (200, 1_400, 9_600)
    assert found.share_of_tokens == pytest.approx(1_400 / 11_000)
    assert found.share_of_work == pytest.approx(1_400 / (1_400 + 3 * 9_600))


def test_hours_and_cost_have_the_evaluations_in_them(plan):
    known = Conditions(tokens_per_second=2)
    alone = plan('eval.sets=[]', conditions=known, gpus=2, price=3)
    both = plan(conditions=known, gpus=2, price=3)
    assert alone.cost.hours == pytest.approx(9_600 / 4 / 3600)
    assert both.cost.hours == pytest.approx((9_600 + 1_400 / 3) / 4 / 3600)
    assert both.cost.cost == pytest.approx(both.cost.hours * 2 * 3)


def test_only_a_large_share_is_warned_of(plan):
    assert plan().evaluations.warning() is None
    found = plan(samples=200).evaluations
    assert found.share_of_work == pytest.approx(11_200 / (11_200 + 28_800))
    assert found.warning().startswith(
        'evaluations are 54% of all tokens that are computed and about 28% of the work: 7 rounds'
    )
    assert '`eval.max_samples`' in found.warning()


def test_a_part_of_each_set_is_counted_and_told(plan):
    found = plan('eval.max_samples=10')
    assert found.evaluations.tokens_per_round == 80
    assert next(note for note in found.notes if 'eval.max_samples' in note).startswith(
        '`eval.max_samples`: of each set the first samples are read (10 of 25 in `old`); such losses have no bits per byte'
    )
    assert plan('eval.max_samples=25').evaluations.note() is None


def test_what_is_not_here_is_not_known(write_run):
    found = make_plan(load(write_run())).evaluations
    assert (found.unknown, found.tokens_per_round) == (['old'], 0)
    part = make_plan(load(write_run(), ['eval.max_samples=10'])).evaluations
    assert (part.unknown, part.tokens_per_round) == ([], 80)


def test_more_rounds_than_memory_holds_are_counted(plan):
    assert plan('stages.0.max_duration=9e15tok', 'eval.interval=1ba').evaluations.rounds > 10**14


def test_no_evaluation_takes_nothing():
    nothing = Evaluations({}, 8, 0, 100)
    assert (nothing.share_of_tokens, nothing.share_of_work, nothing.warning(), nothing.seconds(1.0)) == (0, 0, None, 0)


def test_sizes_of_sets_without_a_card_come_from_their_index(write_run):
    folder = Path('data/old-val')
    make = write_run()
    folder.mkdir(parents=True)
    shard = {
        'column_encodings': ['ndarray:uint16:9'], 'column_names': ['tokens'], 'column_sizes': [18], 'compression': None,
        'format': 'mds', 'hashes': [], 'samples': 7, 'size_limit': None, 'version': 2, 'zip_data': None,
        'raw_data': {'basename': 'shard.00000.mds', 'bytes': 1000, 'hashes': {}},
    }  # fmt: skip
    (folder / 'index.json').write_text(json.dumps({'version': 2, 'shards': [shard]}))
    assert make_plan(load(make)).evaluations.tokens_per_round == 56
