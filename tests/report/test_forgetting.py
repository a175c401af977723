from __future__ import annotations

import json

import pytest

from rewarm.report.forgetting import set_changes, set_outcomes
from rewarm.report.run_folder import read_run
from tests.report.stages import write_stages


def test_outcomes_of_a_run_with_two_stages(make_run):
    results = set_outcomes(read_run(make_run('rewarm')))
    assert [(r.stage.name, r.set) for r in results] == [
        ('code', 'code'),
        ('code', 'prose'),
        ('prose', 'code'),
        ('prose', 'prose'),
    ]
    upstream, unseen, old, new = results
    assert [each.told.words for each in results] == ['new', 'not trained', 'old', 'new']
    assert unseen.outcome.forgetting is None  # it began untrained
    assert old.outcome.before == pytest.approx(upstream.outcome.end, abs=0.02)
    assert old.outcome.forgetting == pytest.approx(0.95, abs=0.01)
    assert new.outcome.adaptation == pytest.approx(5.83 - 4.126, abs=0.01)


def changes(folder):
    return {each.set: each for each in set_changes(read_run(folder))}


def differences(each):
    """What became worse (+) or better (-): in the last stage, since it was trained, since the run began."""
    return [
        None if change is None else (change.word, round(change.difference, 3))
        for change in (each.last_stage, each.since_trained, each.since_began)
    ]


def test_the_middle_stage_is_forgotten_in_the_third(tmp_path):
    # law: 5.000 -> 3.162 in its own stage, then 3.524: +0.362 forgotten. pile: 2.200 -> 2.500 -> 2.450.
    found = changes(
        write_stages(
            tmp_path / 'run',
            {'law': ['law'], 'june': ['june']},
            {
                'pile': {'law': (2.2, 2.6, 2.5), 'june': (2.5, 2.7, 2.45)},
                'law': {'law': (5.0, 4.0, 3.162), 'june': (3.162, 3.6, 3.524)},
                'june': {'law': (4.1, 4.1, 4.0), 'june': (4.0, 3.5, 3.3)},
            },
        ),
    )
    assert [*found] == ['pile', 'law', 'june']
    assert differences(found['law']) == [('forgetting', 0.362), ('forgetting', 0.362), ('adaptation', -1.476)]
    assert differences(found['pile']) == [('forgetting', -0.05), ('forgetting', 0.25), ('forgetting', 0.25)]
    assert differences(found['june']) == [('adaptation', -0.7), None, ('adaptation', -0.8)]
    assert found['june'].reasons == {'since_trained': 'june trains it'}
    assert [found['law'].old_in(stage) for stage in ('law', 'june')] == [False, True]
    assert found['law'].belongs_to == ('law',)
    assert str(found['law'].last_stage) == 'forgetting +0.362'
    assert str(found['june'].last_stage) == 'adaptation +0.700'


def test_an_anneal_does_not_hide_what_was_lost_before_it(tmp_path):
    # 5.20 -> 7.36 while law was learned, then an anneal on law: 7.32. -0.04 of the last stage, +2.12 of the run.
    found = changes(
        write_stages(
            tmp_path / 'run',
            {'law': ['law'], 'anneal': ['law']},
            {
                'pile': {'law': (5.2, 7.0, 7.36), 'anneal': (7.36, 7.34, 7.32)},
                'law': {'law': (5.0, 3.5, 3.2), 'anneal': (3.2, 3.15, 3.1)},
            },
        ),
    )
    assert differences(found['pile']) == [('forgetting', -0.04), ('forgetting', 2.12), ('forgetting', 2.12)]
    assert differences(found['law']) == [('forgetting', -0.1), None, ('adaptation', -1.9)]
    assert found['law'].told['anneal'].words == 'old, trained again'


def test_four_stages_from_scratch_with_replay_and_a_stage_of_old_data_alone(tmp_path):
    # code 8.0 -> 3.0; prose: code 3.0 -> 4.0; law with replayed prose: code 4.0 -> 4.5, prose 3.5 -> 3.6;
    # code again: code 4.5 -> 3.2, prose 3.6 -> 3.9, law 3.3 -> 3.8.
    found = changes(
        write_stages(
            tmp_path / 'run',
            {'code': ['code'], 'prose': ['prose'], 'law': {'law': '3/4', 'prose': '1/4'}, 'again': ['code']},
            {
                'code': {
                    'code': (8.0, 5.0, 3.0),
                    'prose': (3.0, 4.1, 4.0),
                    'law': (4.0, 4.6, 4.5),
                    'again': (4.5, 4, 3.2),
                },
                'prose': {
                    'code': (8.0, 7, 6.0),
                    'prose': (6.0, 4, 3.5),
                    'law': (3.5, 3.7, 3.6),
                    'again': (3.6, 3.8, 3.9),
                },
                'law': {'code': (8.0, 7, 6.5), 'prose': (6.5, 6, 5.5), 'law': (5.5, 4, 3.3), 'again': (3.3, 3.7, 3.8)},
            },
            upstream=('code',),
            init_from='scratch',
        ),
    )
    assert {name: [each.told[stage].words for stage in each.told] for name, each in found.items()} == {
        'code': ['new', 'old', 'old', 'old, trained again'],
        'prose': ['not trained', 'new', 'old, replayed', 'old'],
        'law': ['not trained', 'not trained', 'new', 'old'],
    }
    assert differences(found['code']) == [('forgetting', -1.3), None, ('adaptation', -4.8)]
    # Replay is no training of prose for its own sake: it counts from the end of the second stage, 3.5.
    assert differences(found['prose']) == [('forgetting', 0.3), ('forgetting', 0.4), ('adaptation', -4.1)]
    assert differences(found['law']) == [('forgetting', 0.5), ('forgetting', 0.5), ('adaptation', -4.2)]


def test_what_was_not_evaluated_is_not_guessed(tmp_path):
    # news was added in the third stage; law was not evaluated at the end of the first, pile not at the third's start.
    found = changes(
        write_stages(
            tmp_path / 'run',
            {'law': ['law'], 'june': ['june'], 'july': ['july']},
            {
                'pile': {'law': (2.2, 2.6, 2.5), 'june': (2.5, 2.7, 2.6), 'july': (None, 2.8, 2.9)},
                'law': {'law': (5.0, 4.0, None), 'june': (None, 3.6, None), 'july': (None, 3.7, 3.8)},
                'news': {'july': (None, 4.4, 4.3)},
            },
        ),
    )
    # The end of june has the weights of july's start: 2.6 -> 2.9.
    assert differences(found['pile']) == [('forgetting', 0.3), ('forgetting', 0.7), ('forgetting', 0.7)]
    assert differences(found['law']) == [None, None, ('adaptation', -1.2)]
    assert found['law'].reasons == {
        'last_stage': 'not evaluated when july began',
        'since_trained': 'not evaluated when law ended',
    }
    assert differences(found['news']) == [None, None, None]


def test_losses_on_a_part_and_on_the_whole_of_a_set_are_not_compared(tmp_path):
    folder = write_stages(
        tmp_path / 'run',
        {'law': ['law'], 'june': ['june']},
        {'pile': {'law': (2.2, 2.6, 2.5), 'june': (2.5, 2.7, 2.6)}},
    )
    path = folder / 'evals.jsonl'
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for number, line in enumerate(lines):
        line['tokens_evaluated'] = 500 if number < 3 else 100
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (found,) = changes(folder).values()
    assert differences(found) == [('forgetting', 0.1), None, None]
    assert found.reasons['since_began'] == 'evaluated on 500 tokens when the run began, and on 100 now'
    lines[3]['tokens_evaluated'] = 500
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    (law, june) = (each for each in set_outcomes(read_run(folder)))
    assert (law.outcome.before, law.outcome.end) == (2.2, 2.5)
    assert (june.outcome.before, june.outcome.peak, june.outcome.end) == (None, 2.7, 2.6)


def test_a_set_that_is_evaluated_no_more_keeps_its_last_loss(tmp_path):
    found = changes(
        write_stages(
            tmp_path / 'run',
            {'law': ['law'], 'june': ['june']},
            {'pile': {'law': (2.2, 2.6, 2.5)}, 'law': {'law': (5.0, 4.0, 3.0), 'june': (3.0, 3.1, 3.2)}},
        ),
    )
    assert (found['pile'].loss, found['pile'].stage) == (2.5, 'law')
    assert found['pile'].reasons == {'last_stage': 'not evaluated in june'}
    assert differences(found['pile'])[2] == ('forgetting', 0.3)


def test_a_run_without_its_run_file_and_plan_still_tells_old_from_new(tmp_path):
    folder = write_stages(
        tmp_path / 'run',
        {'law': ['law'], 'june': ['june']},
        {'pile': {'law': (2.2, 2.6, 2.5), 'june': (2.5, 2.7, 2.6)}, 'june': {'june': (4.0, 3.5, 3.3)}},
    )
    (folder / 'config.yaml').unlink()
    (folder / 'plan.json').unlink()
    found = changes(folder)
    assert differences(found['pile']) == [('forgetting', 0.1), ('forgetting', 0.4), ('forgetting', 0.4)]
    assert differences(found['june'])[0] == ('adaptation', -0.7)
