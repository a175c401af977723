"""Each checkpoint of a run is looked at, wherever it lies; what another program made is no damage."""

import os
import shutil

import numpy as np
import pytest

from rewarm.config.errors import UserError
from rewarm.exchange import verify_command
from tests.exchange.conftest import make_run, make_tokenizer


def found(place):
    """What is wrong with each thing that was looked at, by the end of its name."""
    return {each.place.rstrip('/').rpartition('/')[2]: each.problems for each in verify_command(place)}


@pytest.mark.parametrize('place', ['', 'checkpoints', 'checkpoints/latest', 'checkpoints/ba00000005'])
def test_a_run_all_of_it_or_the_one_that_is_named(run, place):
    looked = found(run / place)
    assert not any(looked.values())
    both, one = ['ba00000005', 'ba00000010'], place.rpartition('/')[2].replace('latest', 'ba00000010')
    assert sorted(looked) == {'': [*both, 'tokenizer'], 'checkpoints': both}.get(place, [one])


def test_what_is_damaged_is_named_and_the_rest_is_complete(run, tmp_path):
    with (run / 'checkpoints/ba00000005/model.safetensors').open('r+b') as file:
        file.seek(-1, os.SEEK_END)
        file.write(b'x')
    make_tokenizer(run / 'tokenizer/tokenizer.json', 'xyz')
    looked = found(run)
    assert looked['ba00000010'] == []
    assert looked['ba00000005'] == ['model.safetensors does not hash to what manifest.json says']
    assert 'not the tokenizer that the run was trained with' in looked['tokenizer'][0]


@pytest.mark.parametrize('place', ['', '/checkpoints/latest', '/checkpoints/ba00000005'])
def test_in_a_bucket(bucket, server, place):
    looked = found(bucket + place)
    assert not any(looked.values())
    assert len(looked) == (1 if place else 2)
    client = server.client()
    client.put_object(Bucket='data', Key='runs/small/checkpoints/ba00000005/notes.txt', Body=b'mine')
    client.put_object(Bucket='data', Key='runs/small/checkpoints/ba00000010/model.safetensors', Body=b'x')
    looked = found(bucket)
    assert looked['ba00000005'] == ['notes.txt is not listed in manifest.json']
    assert 'model.safetensors' in looked['ba00000010'][0]


def test_an_old_run_and_an_imported_checkpoint_are_complete(tmp_path, hf_folder):
    from rewarm.exchange import import_command

    import_command(str(hf_folder), tmp_path / 'start')
    assert found(make_run(tmp_path, old=True)) == {'ba00000005': [], 'ba00000010': []}
    assert found(tmp_path / 'start') == {'start': []}


@pytest.mark.parametrize(
    ('column', 'hashes'), [('bytes', []), ('ndarray:int32', ['sha1']), ('ndarray:int32:8', []), ('ndarray:uint16', [])]
)
def test_a_dataset_of_another_program_is_checked_as_far_as_it_goes(tmp_path, column, hashes):
    from streaming import MDSWriter

    tokens = np.arange(8, dtype=np.int64 if column == 'bytes' else column.split(':')[1])
    with MDSWriter(out=str(tmp_path / 'data'), columns={'tokens': column}, hashes=hashes) as out:
        for _ in range(5):
            out.write({'tokens': tokens.tobytes() if column == 'bytes' else tokens})
    (looked,) = verify_command(tmp_path / 'data')
    assert looked.problems == []
    assert 'another program made it' in looked.text
    shard = next((tmp_path / 'data').glob('shard*'))
    os.truncate(shard, shard.stat().st_size - 1)
    (looked,) = verify_command(tmp_path / 'data')
    assert len(looked.problems) == 1
    assert 'damaged' not in looked.text.partition(':')[0]


def test_what_is_none_of_these_is_said(tmp_path):
    with pytest.raises(UserError, match=r'no checkpoint .* no run folder .* no dataset'):
        list(verify_command(tmp_path))
    with pytest.raises(UserError, match='no such folder'):
        list(verify_command(tmp_path / 'nothing'))
    shutil.copy(make_tokenizer(tmp_path / 'tokenizer.json'), tmp_path / 'file')
    with pytest.raises(UserError, match=r'file'):
        list(verify_command(tmp_path / 'file'))
