"""Verdicts come from what runs are, and only where two of them can be compared."""

from __future__ import annotations

import json

import pytest

from rewarm.report.arms import last_stage_arm
from rewarm.report.findings import MOST_PAIRS, findings
from rewarm.report.run_folder import read_run
from tests.report.stages import write_stages

BELOW = 're-warmed ends below constant on new data'
FORGETS = 're-warmed forgets more than constant'
REPLAY = 'replay reduces forgetting'
SCRATCH = 're-warmed ends below scratch on new data'
SAME = 're-warming raises the loss on the same data'
PASSED = 'constant is better on new data at first, then passed'

HIGH = {'lr': 3e-4, 'before': 3e-5, 'warmup_tokens': 100}
LOW = {'name': 'constant', 'lr': 3e-5, 'before': 3e-5}


def arms(folders):
    return [last_stage_arm(read_run(folder)) for folder in folders]


def told(folders):
    return {each.claim: each for each in findings(arms(folders))}


@pytest.fixture
def write(tmp_path):
    """Writes a run over law whose losses on pile and law end at the two numbers; 2.0 and 5.0 before."""

    def make(name, old, new, rates=HIGH, streams=('law',), stage='law', middle=None, **keys):
        sets = keys.pop('names', ('pile', 'law'))
        ends = {'pile': (2.0, 2.0 + 2 * (old - 2.0), old), 'law': (5.0, middle or (5.0 + new) / 2, new)}
        losses = {each: {stage: ends[each if each in ends else 'law']} for each in sets}
        return write_stages(tmp_path / name, {stage: streams}, losses, rates={stage: rates}, **keys)

    return make


def test_the_demo_shows_its_findings(make_run):
    found = told([make_run(role) for role in ('rewarm', 'constant', 'scratch', 'replay', 'same-data')])
    assert {claim: (each.verdict, each.detail) for claim, each in found.items()} == {
        BELOW: ('seen', '-0.27'),
        SCRATCH: ('seen', '-0.18'),
        PASSED: ('seen', found[PASSED].detail),
        FORGETS: ('seen', '+0.34'),
        REPLAY: ('seen', '+0.95 to +0.10, at +0.05 on new data'),
        SAME: ('seen', found[SAME].detail),
    }
    assert found[BELOW].runs == ('demo-rewarm', 'demo-constant')
    assert found[SAME].runs == ('demo-same-data',)
    assert str(found[SCRATCH]) == f'✓ {SCRATCH}: seen (-0.18), demo-rewarm against demo-scratch'


def test_names_mean_nothing(make_run):
    # Swapped names: the run at a constant rate is called rewarm.
    found = told([make_run('constant', name='x-rewarm'), make_run('rewarm', name='x-constant')])
    assert (found[BELOW].verdict, found[BELOW].runs) == ('seen', ('x-constant', 'x-rewarm'))
    assert SCRATCH not in found


def test_unrelated_runs_get_no_verdict_whatever_they_are_called(write):
    # 31 thousand tokens of law, and an anneal of june from other weights.
    law = write('law-rewarm', 2.5, 3.0)
    june = write('june-constant', 2.1, 3.3, LOW, ['june'], init_from='hf:other', names=('pile', 'june'))
    assert told([law, june]) == {}


def test_a_pair_is_compared_on_what_it_shares(write):
    found = told([write('a', 2.5, 3.0), write('b', 2.2, 3.4, LOW)])
    assert {claim: (each.verdict, each.detail, each.runs) for claim, each in found.items()} == {
        BELOW: ('seen', '-0.40', ('a', 'b')),
        PASSED: ('not seen', 're-warmed leads from the start', ('a', 'b')),
        FORGETS: ('seen', '+0.30', ('a', 'b')),
    }
    assert found[BELOW].differences == ''


def test_constant_first_and_passed_later(write):
    # After a batch re-warmed is at 4.5 and constant at 4.2; at the end 3.0 and 3.4.
    found = told([write('a', 2.5, 3.0, middle=4.5), write('b', 2.2, 3.4, LOW, middle=4.2)])
    assert (found[PASSED].verdict, found[PASSED].detail) == ('seen', 'by up to 0.30, passed at 100% of the stage')


@pytest.mark.parametrize(
    'other',
    [
        {'init_from': 'hf:another'},
        {'streams': ('june',), 'stage': 'june', 'names': ('pile', 'june')},
        {'streams': {'law': '3/4', 'pile': '1/4'}},
        {'tokenizer': 'gpt2'},
        {'max_seq_len': 4096},
        {'model': {'name': 'pythia-70m', 'init_from': 'hf:pythia'}},
        {'names': ('books', 'news')},
    ],
    ids=['start', 'data', 'mix', 'tokenizer', 'length', 'model', 'sets'],
)
def test_what_differs_in_more_than_the_rate_is_not_compared(write, other):
    first = write('a', 2.5, 3.0, max_seq_len=2048)
    second = write('b', 2.2, 3.4, LOW, **{'max_seq_len': 2048, **other})
    assert told([first, second]) == {}


def test_another_budget_is_not_compared(write, tmp_path):
    longer = {'pile': {'law': (2.0, 2.1, 2.2, 2.3)}, 'law': {'law': (5.0, 4.0, 3.5, 3.2)}}
    other = write_stages(tmp_path / 'b', {'law': ['law']}, longer, rates={'law': LOW})
    assert told([write('a', 2.5, 3.0), other]) == {}


def test_sets_of_the_same_name_and_other_data_are_not_compared(write):
    def sets(folder):
        return [{'name': 'law', 'local': folder, 'role': 'downstream'}]

    names = {'names': ('law',)}
    first = write('a', 2.5, 3.0, sets=sets('data/law-val'), **names)
    assert told([first, write('b', 2.2, 3.4, LOW, sets=sets('elsewhere/law-val'), **names)]) == {}
    assert BELOW in told([first, write('c', 2.2, 3.4, LOW, sets=sets('data/law-val'), **names)])


def test_a_part_of_a_set_is_not_compared_with_the_whole(write):
    first, second = write('a', 2.5, 3.0), write('b', 2.2, 3.4, LOW)
    for folder, tokens in ((first, 1000), (second, 9000)):
        lines = [json.loads(line) for line in (folder / 'evals.jsonl').read_text().splitlines()]
        sized = [{**line, 'tokens_evaluated': tokens if line['set'] == 'law' else 500} for line in lines]
        (folder / 'evals.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in sized))
    assert [*told([first, second])] == [FORGETS]


def test_equal_ends_are_too_close_to_tell(write):
    found = told([write('a', 2.5, 3.0), write('b', 2.51, 3.01, LOW)])
    assert (found[BELOW].verdict, found[BELOW].symbol) == ('too close to tell', '≈')
    found = told([write('c', 2.5, 3.5), write('d', 2.6, 3.0, LOW)])
    assert (found[BELOW].verdict, found[BELOW].detail) == ('not seen', '+0.50')
    assert found[BELOW].symbol == '✗'


def test_other_settings_that_differ_are_said(write):
    found = told([write('a', 2.5, 3.0, seed=1), write('b', 2.2, 3.4, LOW, seed=2)])
    assert found[BELOW].differences == 'seed 1 and 2'
    assert found[BELOW].about == 'a against b; also different: seed 1 and 2'


def test_more_replay_is_compared_with_less(write):
    mixes = [{'law': '1/1'}, {'law': '19/20', 'pile': '1/20'}, {'law': '3/4', 'pile': '1/4'}]
    folders = [write(name, old, 3.0, streams=mix) for name, old, mix in zip('abc', (3.0, 2.5, 2.1), mixes, strict=True)]
    found = [(each.runs, each.detail) for each in findings(arms(folders)) if each.claim == REPLAY]
    assert sorted(found) == [
        (('b', 'a'), '+1.00 to +0.50, at +0.00 on new data'),
        (('c', 'a'), '+1.00 to +0.10, at +0.00 on new data'),
        (('c', 'b'), '+0.50 to +0.10, at +0.00 on new data'),
    ]


def test_the_curve_follows_from_the_rate_before_it(write):
    def curve(name, rates):
        return arms([write(name, 2.5, 3.0, rates)])[0].traits.curve

    assert curve('up', {'lr': 3e-4, 'before': 3e-5}) == 'rewarmed'
    assert curve('held', {'name': 'constant', 'lr': 3e-5, 'before': 3e-5}) == 'constant'
    assert curve('raised', {'name': 'constant', 'lr': 3e-4, 'before': 3e-5}) == 'rewarmed'
    assert curve('anneal', {'name': 'linear', 'lr': 3e-5, 'before': 3e-5}) == 'other'
    # Of weights from elsewhere nothing tells the last rate.
    assert curve('warmed', {'lr': 3e-4, 'warmup_tokens': 100}) == 'rewarmed'
    assert curve('flat', {'name': 'constant', 'lr': 3e-5}) == 'constant'
    assert curve('falls', {'lr': 3e-4}) == 'other'


def test_the_same_data_again_is_told_from_one_run(write):
    found = told([write('any', 2.5, 3.0, streams=['pile'], names=('pile',))])
    # 2.0 -> 3.0 -> 2.5
    assert (found[SAME].verdict, found[SAME].detail) == ('seen', '+1.00, not recovered, ends +0.50')
    assert told([write('flat', 2.5, 3.0, LOW, streams=['pile'], names=('pile',))]) == {}


def test_weights_are_the_same_by_hash_before_folder(write):
    def started(name, sha, rates=HIGH):
        folder = write(name, 2.5, 3.0, rates, init_from='checkpoint:runs/up/checkpoints/ba00000010')
        with (folder / 'events.jsonl').open('a') as file:
            file.write(json.dumps({'event': 'starting_weights', 'sha256': sha}) + '\n')
        return folder

    # The run in that folder was trained anew between the two.
    assert told([started('a', 'aa'), started('b', 'bb', LOW)]) == {}
    assert BELOW in told([started('c', 'aa'), started('d', 'aa', LOW)])
    moved = write('e', 2.5, 3.0, LOW, init_from='checkpoint:backup/ba00000010')
    assert told([started('f', 'aa'), moved]) == {}
    (moved / 'events.jsonl').open('a').write(json.dumps({'event': 'starting_weights', 'sha256': 'aa'}) + '\n')
    assert BELOW in told([started('g', 'aa'), moved])


def test_runs_with_the_same_first_stage_begin_their_second_alike(tmp_path):
    def run(name, rates, seed):
        losses = {'code': {'code': (8.0, 4.0, 3.0), 'law': (3.0, 3.5, 3.4)}, 'law': {'law': (6.0, 4.0, 3.6)}}
        stages = {'code': ['code'], 'law': ['law']}
        keys = {'upstream': ('code',), 'init_from': 'scratch', 'rates': {'law': rates}, 'seed': seed}
        return write_stages(tmp_path / name, stages, losses, **keys)

    first = run('a', HIGH, 1)
    assert BELOW in told([first, run('b', LOW, 1)])
    assert told([first, run('c', LOW, 2)]) == {}


def test_many_pairs_are_counted(write):
    rewarmed = [write(f'a{index}', 2.5, 3.0 + index / 100, seed=index) for index in range(MOST_PAIRS + 2)]
    found = [each for each in findings(arms([*rewarmed, write('b', 2.2, 3.4, LOW, seed=3)])) if each.claim == BELOW]
    assert len(found) == MOST_PAIRS
    assert found[0].runs == ('a3', 'b')  # differs least: the same seed
    assert found[-1].more == 2
    assert '2 more pairs' in str(found[-1])


def test_runs_of_the_same_name_are_told_apart_by_their_folders(write, tmp_path):
    folders = [write('x/run', 2.5, 3.0), write('y/run', 2.2, 3.4, LOW)]
    assert told(folders)[BELOW].runs == (f'run in {folders[0]}', f'run in {folders[1]}')
