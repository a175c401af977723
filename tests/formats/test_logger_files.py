"""A run's identity and what loggers note beside it."""

import pytest

from rewarm.config.errors import DamagedFile
from rewarm.formats.logger_files import Identity, parse_identity, read_held, read_identity, write_identity
from rewarm.loggers.held import HeldFile


def test_an_identity_is_read_as_it_was_written(tmp_path):
    assert read_identity(tmp_path) is None
    write_identity(tmp_path, Identity(id='0123456789abcdef' * 2))
    assert read_identity(tmp_path) == Identity(id='0123456789abcdef' * 2)


@pytest.mark.parametrize('text', ['', '{}', '{"id": 1}', '{"id": "../../x"}', '{"id": "ABCDEF"}', '[' * 5000])
def test_anything_else_is_none(text):
    with pytest.raises(DamagedFile):
        parse_identity(text.encode(), 'identity.json')


def test_the_newest_batch_held_is_written_over_in_place(tmp_path):
    path = tmp_path / 'loggers' / 'wandb.json'
    held = HeldFile(path)
    assert held.read() is None
    for batch in (123456, 7):
        held.write(batch)
        assert read_held(path) == batch
    held.close()
    path.write_text('torn')
    assert read_held(path) is None
