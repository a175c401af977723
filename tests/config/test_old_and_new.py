"""What is old in a stage follows from the stages; each case is small enough to check by reading it."""

from __future__ import annotations

import pytest

from rewarm.config.old_and_new import SetData, StreamData, tell


def stage(*streams):
    return [each if isinstance(each, StreamData) else StreamData(each, (f'data/{each}',)) for each in streams]


def told(stages, *sets, untrained=False):
    """By set: a word for each stage."""
    stories = tell([stage(*streams) for streams in stages], sets, untrained=untrained).sets
    return {name: [each.words for each in story.stages] for name, story in stories.items()}


PILE, LAW, JUNE = SetData('pile', True), SetData('law', False), SetData('june', False)


def test_a_set_is_old_once_an_earlier_stage_learned_it():
    assert told([['law'], ['june'], ['july']], PILE, LAW, JUNE) == {
        'pile': ['old', 'old', 'old'],
        'law': ['new', 'old', 'old'],
        'june': ['not trained', 'new', 'old'],
    }


def test_from_scratch_nothing_is_old_at_first():
    assert told([['pile'], ['law'], ['june']], PILE, LAW, untrained=True) == {
        'pile': ['new', 'old', 'old'],
        'law': ['not trained', 'new', 'old'],
    }


def test_old_data_beside_new_data_is_replayed_and_still_old():
    assert told([['law', 'pile'], ['june', 'law', 'pile']], PILE, LAW, JUNE) == {
        'pile': ['old, replayed', 'old, replayed'],
        'law': ['new', 'old, replayed'],
        'june': ['not trained', 'new'],
    }


def test_a_stage_with_nothing_new_goes_on_with_its_mix():
    # The anneal of a mix: what was replayed still is.
    assert told([['law', 'pile'], ['law', 'pile']], PILE, LAW) == {
        'pile': ['old, replayed', 'old, replayed'],
        'law': ['new', 'old, trained again'],
    }
    # What was last trained for its own sake is gone on with, and older data beside it is replayed.
    assert told([['law'], ['june'], ['june', 'law']], LAW, JUNE) == {
        'law': ['new', 'old', 'old, replayed'],
        'june': ['not trained', 'new', 'old, trained again'],
    }
    assert told([['law', 'tax'], ['tax', 'law']], LAW) == {'law': ['new', 'old, trained again']}
    # Back to law alone, which the stage before replayed: it is what the stage is for.
    assert told([['law'], ['june', 'law'], ['law']], LAW) == {'law': ['new', 'old, replayed', 'old, trained again']}


def test_the_same_data_again_is_old_and_trained_for_its_own_sake():
    assert told([['pile', 'code']], PILE, SetData('code', True))['pile'] == ['old, trained again']
    assert told([['pile']], PILE) == {'pile': ['old, trained again']}
    assert told([['pile'], ['pile']], PILE, untrained=True) == {'pile': ['new', 'old, trained again']}


@pytest.mark.parametrize(
    ('stream', 'its', 'mine', 'belongs'),
    [
        ('law', ('data/a',), ('data/b',), True),  # the same name
        ('x', ('data/law/train',), ('data/law/val/',), True),  # the two halves of a conversion
        ('x', ('data/law/train',), ('./data/law/val',), True),
        ('x', ('s3://b/law/train',), ('/cache/law', 's3://b/law/val'), True),
        ('x', ('data/law',), ('data/law',), True),  # the same folder
        ('x', ('data/law/val',), ('data/law/train',), False),
        ('x', ('data/law',), ('data/law-val',), False),
        ('x', ('data/train',), ('data/pile-val',), False),
        ('x', ('s3://b/train',), ('s3://c/val',), False),
    ],
)
def test_a_set_belongs_to_the_streams_that_read_the_same_dataset(stream, its, mine, belongs):
    story = tell([[StreamData(stream, its)]], [SetData('law', True, None, mine)], untrained=False).sets['law']
    assert story.belongs_to == ((stream,) if belongs else ())


def test_of_says_where_a_set_belongs():
    assert told([['june'], ['july']], SetData('fresh', False, ('july',))) == {'fresh': ['not trained', 'new']}
    # ... and nothing else does then: it has the name of a stream, and no stage trains it.
    assert told([['law'], ['june']], SetData('law', False, ())) == {'law': ['not trained', 'not trained']}
    assert told([['law'], ['june']], SetData('law', True, ())) == {'law': ['old', 'old']}


def test_where_nothing_says_where_a_set_belongs_its_role_decides_as_in_old_runs():
    assert told([['a'], ['b']], SetData('x', True), SetData('y', False)) == {'x': ['old', 'old'], 'y': ['new', 'new']}
    assert told([['a'], ['b']], SetData('x', True), untrained=True) == {'x': ['not trained', 'old']}


def test_a_stream_without_a_set_is_known_by_its_name_or_folder():
    moved = StreamData('law-2', ('data/law',))
    assert told([['law'], ['june', moved]], SetData('all', False, ('law', 'law-2'))) == {
        'all': ['new', 'old, replayed']
    }
    # june is new to the second stage though no set is of june: so law is replay there.
    assert told([['law'], ['june', 'law']], LAW) == {'law': ['new', 'old, replayed']}


def test_a_stage_whose_streams_are_not_known_trains_nothing():
    assert told([[], ['law']], PILE, LAW) == {'pile': ['old', 'old'], 'law': ['not trained', 'new']}


def test_many_stages_and_sets_are_told_at_once():
    names = [f's{index}' for index in range(300)]
    stories = tell([stage(name) for name in names], [SetData(name, False) for name in names], untrained=True).sets
    assert [each.kind for each in stories['s7'].stages] == ['unseen'] * 7 + ['new'] + ['old'] * 292
