import json
import shutil
from pathlib import Path

import pytest

from rewarm.buckets.bucket import open_bucket
from rewarm.config.errors import UserError
from rewarm.new.answers import Answers
from rewarm.new.dataset import find_dataset
from rewarm.new.write import draft
from tests.buckets.servers import S3Server


def test_train_and_val_of_a_conversion_are_found(here):
    for place in ('data/law', 'data/law/train'):
        found = find_dataset(place)
        assert found.train.place == 'data/law/train'
        assert found.val is not None
        assert found.val.place == 'data/law/val'
        assert found.train.seq_len == 32
        assert found.train.card is not None
        assert found.train.samples == found.train.card.samples > 10 * found.val.samples / 2


def test_a_validation_set_beside_it_is_found_and_none_is_fine(here):
    found = find_dataset('data/old')
    assert found.val is not None
    assert (found.train.place, found.val.place) == ('data/old', 'data/old-val')
    assert find_dataset('data/new-val').val is None


def test_data_of_another_program_says_its_length_if_its_index_does(here):
    shutil.copytree('data/old', 'foreign')
    (here / 'foreign/dataset_card.json').unlink()
    found = find_dataset('foreign').train
    assert (found.seq_len, found.card) == (32, None)
    index = json.loads((here / 'foreign/index.json').read_text())
    for shard in index['shards']:
        shard.update(column_encodings=['bytes'], column_sizes=[None])
    (here / 'foreign/index.json').write_text(json.dumps(index))
    assert find_dataset('foreign').train.seq_len is None


def test_a_home_or_a_variable_in_a_path_is_used_and_stays_as_typed(here, monkeypatch):
    monkeypatch.setenv('HOME', str(here))
    monkeypatch.setenv('CORPORA', str(here / 'data'))
    assert find_dataset('~/data/old').train.place == '~/data/old'
    assert find_dataset('$CORPORA/old').train.place == '$CORPORA/old'


@pytest.mark.parametrize(
    ('place', 'words'),
    [
        ('data/nowhere', 'there is no such folder'),
        ('data', r'no dataset, since it has no index.json'),
        ('data/tokenizer.json', 'there is no such folder'),
        ('$NOT_SET_AT_ALL/x', 'not set in the environment'),
        ('a\nb', 'control characters'),
    ],
)
def test_what_is_no_dataset_is_said_with_what_to_do(here, place, words):
    with pytest.raises(UserError, match=words):
        find_dataset(place)


def test_a_damaged_index_is_named(here):
    shutil.copytree('data/old', 'broken')
    (here / 'broken/index.json').write_text('{')
    with pytest.raises(UserError, match=r'broken/index.json: damaged'):
        find_dataset('broken')


def test_data_in_a_bucket_is_read_from_its_index_and_card_alone(here, run_folder, tmp_path, monkeypatch):
    server = S3Server(tmp_path / 's3', 'nanio')
    try:
        for name, value in server.variables.items():
            monkeypatch.setenv(name, value)
        url = 's3://data/law'
        for part in ('train', 'val'):
            for file in ('index.json', 'dataset_card.json'):
                open_bucket(url).upload(Path(f'data/law/{part}/{file}'), f'{url}/{part}/{file}')
        request = Answers('law', data=[url], model=f'checkpoint:{run_folder}').request()
        text = draft(request).text
        with pytest.raises(UserError, match=rf'{url}x: no dataset'):
            find_dataset(f'{url}x')
    finally:
        server.stop()
    assert f'{{name: law, remote: {url}/train, local: data/law, proportion: 1.0}}' in text
    assert f'{{name: law, remote: {url}/val, local: data/law-val, role: downstream}}' in text
    assert 'max_seq_len: 32 ' in text
