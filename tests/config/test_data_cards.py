"""Data that does not fit the run is found by its cards, before torch is imported."""

import json
from pathlib import Path

import pytest

from rewarm.config.data_cards import find_run_tokenizer
from rewarm.config.errors import ConfigError, UserError
from rewarm.config.load import load, read_settings
from rewarm.formats.tokenizer import tokenizer_hash
from tests.config.cards import write_card

TOKENIZER = {'model': {'type': 'BPE', 'vocab': {'a': 0, 'b': 1}, 'merges': []}, 'added_tokens': []}
OTHER = 'sha256:' + 'f' * 64


@pytest.fixture
def ours(write_run):
    """run.yaml and the hash of its tokenizer, which is there."""
    write_run()
    Path('tokenizer.json').write_text(json.dumps(TOKENIZER))
    return tokenizer_hash('tokenizer.json')


def problems():
    try:
        load('run.yaml')
    except ConfigError as error:
        return error.problems
    return ()


def test_a_dataset_of_this_tokenizer_fits(ours):
    for name in ('old', 'new', 'old-val'):
        write_card(Path('data', name), tokenizer_hash=ours)
    assert problems() == ()


def test_the_copy_of_a_run_stands_in_for_a_tokenizer_that_is_gone(ours):
    write_card(Path('data/old'), tokenizer_hash=ours)
    write_card(Path('data/new'), tokenizer_hash=OTHER)
    own = Path('runs/small/tokenizer')
    own.mkdir(parents=True)
    Path('tokenizer.json').rename(own / 'tokenizer.json')
    config = read_settings('run.yaml')
    assert Path(config.run_folder) == own.parent
    assert find_run_tokenizer(config) == own / 'tokenizer.json'
    (found,) = problems()
    assert 'stages.1.train.streams.0' in found
    (own / 'tokenizer.json').unlink()
    assert problems() == ()  # nothing to compare with; a start refuses it
    with pytest.raises(UserError, match='no such file'):
        find_run_tokenizer(config)


@pytest.mark.parametrize(('name', 'at'), [('new', 'stages.1.train.streams.0'), ('old-val', 'eval.sets.0')])
def test_a_dataset_of_another_tokenizer_is_named(ours, name, at):
    write_card(Path('data/old'), tokenizer_hash=ours)
    write_card(Path('data', name), tokenizer_hash=OTHER)
    (found,) = problems()
    assert found == (
        f'run.yaml:6: `tokenizer`: tokenizer.json ({ours[:19]}...) is another tokenizer than the one that the data of `{at}` was '
        f'converted with ({OTHER[:19]}...). Name that one, or convert the data again'
    )


def write_merged(folder, *hashes):
    """Datasets in folders of their own whose indexes were merged into one, as Streaming does it."""
    shards = []
    for number, each in enumerate(hashes):
        write_card(folder / f'part{number}', tokenizer_hash=each)
        shards.append(
            {
                'column_encodings': ['ndarray:uint16:9'], 'column_names': ['tokens'], 'column_sizes': [18],
                'compression': None, 'format': 'mds', 'hashes': [], 'samples': 7, 'size_limit': None, 'version': 2,
                'zip_data': None, 'raw_data': {'basename': f'part{number}/shard.00000.mds', 'bytes': 1000, 'hashes': {}},
            }
        )  # fmt: skip
    (folder / 'index.json').write_text(json.dumps({'version': 2, 'shards': shards}))


def test_parts_of_a_merged_index_are_checked_too(ours):
    write_merged(Path('data/old'), ours, ours)
    assert problems() == ()
    write_merged(Path('data/old'), ours, OTHER)
    (found,) = problems()
    assert 'than the one that the data of `stages.0.train.streams.0` was' in found


def test_a_dataset_beside_a_merged_index_is_none_of_its_parts(ours):
    write_merged(Path('data/old'), ours)
    write_card(Path('data/old/elsewhere'), tokenizer_hash=OTHER)
    assert problems() == ()


def test_a_tokenizer_that_is_damaged_is_told_where_data_needs_it(ours):
    write_card(Path('data/old'), tokenizer_hash=ours)
    Path('tokenizer.json').write_text('{')
    (found,) = problems()
    assert found.startswith('run.yaml:6: `tokenizer`: tokenizer.json: damaged')


def test_without_the_tokenizer_nothing_is_compared(ours):
    write_card(Path('data/old'), tokenizer_hash=OTHER)
    Path('tokenizer.json').unlink()
    assert problems() == ()
