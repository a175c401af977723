"""Dataset cards without shards: all that a plan reads of a dataset."""

from pathlib import Path

from rewarm.formats.card import CARD_NAME, DatasetCard

HASH = 'sha256:' + '0' * 64


def write_card(folder: Path, **changes) -> DatasetCard:
    """Writes a card of a dataset with samples of 8 tokens into a folder that is made."""
    values = {
        'version': 1,
        'tokenizer_hash': HASH,
        'vocab_size': 100,
        'eod_id': 0,
        'seq_len': 8,
        'dtype': 'uint16',
        'documents': 1,
        'tokens': 801,
        'bytes': 4000,
        'samples': 100,
        'converter': 'test',
        **changes,
    }
    card = DatasetCard(**values)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CARD_NAME).write_text(card.model_dump_json())
    return card
