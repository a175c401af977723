import json
from pathlib import Path

import pytest

from rewarm.config.errors import UserError
from rewarm.formats.card import DatasetCard, read_card

CARD = {
    'version': 1,
    'tokenizer_hash': 'sha256:0',
    'vocab_size': 300,
    'eod_id': 0,
    'seq_len': 8,
    'dtype': 'uint16',
    'documents': 1,
    'tokens': 801,
    'bytes': 3000,
    'samples': 100,
    'sources': [{'name': 'a.txt', 'bytes': 3000, 'sha256': '0'}],
    'split': None,
    'converter': 'rewarm 0.1.0',
}


def test_a_card_reads_back(tmp_path: Path):
    card = DatasetCard.model_validate_json(json.dumps(CARD))
    (tmp_path / 'dataset_card.json').write_text(card.model_dump_json())
    assert read_card(tmp_path) == card
    assert card.sources[0].name == 'a.txt'


def test_a_folder_without_a_card(tmp_path: Path):
    assert read_card(tmp_path) is None
    assert read_card(tmp_path / 'none') is None


def test_a_newer_card_may_say_more(tmp_path: Path):
    (tmp_path / 'dataset_card.json').write_text(json.dumps({**CARD, 'licence': 'mine'}))
    assert read_card(tmp_path) is not None


@pytest.mark.parametrize(
    'text', ['', '{}', '[1]', json.dumps({**CARD, 'seq_len': '8'}), json.dumps({**CARD, 'dtype': 'int8'})]
)
def test_a_broken_card_is_an_error_of_the_user(tmp_path: Path, text: str):
    (tmp_path / 'dataset_card.json').write_text(text)
    with pytest.raises(UserError, match=r'dataset_card\.json: damaged'):
        read_card(tmp_path)
