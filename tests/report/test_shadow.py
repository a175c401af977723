"""A stranger's run folder in a bucket, as it is shown: nothing but a run's own files is written, and nowhere else."""

import json
import os

import pytest

from rewarm.config.errors import UserError
from rewarm.report import shadow as shadow_module
from rewarm.report.shadow import shadow
from tests.buckets.unkind import AnyKey


@pytest.fixture
def anything(monkeypatch):
    server = AnyKey()
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield server
    server.stop()


def written(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file())


@pytest.mark.filterwarnings('ignore:.* objects are left out')
def test_keys_that_climb_touch_nothing_and_other_files_are_left_out(anything, tmp_path):
    victim = tmp_path / 'precious'
    victim.write_text('ten years of work')
    climb = '../' * 12 + str(tmp_path).lstrip('/')
    checkpoint = 'checkpoints/ba00000010'
    good = ['config.yaml', 'metrics.jsonl', f'{checkpoint}/manifest.json', f'{checkpoint}/model.safetensors']
    odd = [
        f'{climb}/manifest.json', f'{climb}/precious', f'{checkpoint}/{climb}/precious', f'{checkpoint}/sub/manifest.json',
        f'{checkpoint}.broken/manifest.json', 'sub/manifest.json', 'manifest.json', 'sub/config.yaml', f'{checkpoint}/',
        'checkpoints/ba00000020/model.safetensors', 'tensorboard/log', 'owner.json/x',
    ]  # fmt: skip
    anything.objects = {f'data/run/{key}': b'' if key.endswith('precious') else b'{}' for key in [*good, *odd]}
    with shadow('s3://data/run') as folder:
        assert written(folder) == sorted(good)
    assert victim.read_text() == 'ten years of work'
    assert os.listdir(tmp_path) == ['precious']


def test_a_checkpoints_tensors_take_no_room_and_its_manifest_is_whole(anything):
    text = json.dumps({'files': {}}).encode()
    anything.objects = {
        'data/run/checkpoints/ba00000010/manifest.json': text,
        'data/run/checkpoints/ba00000010/model.safetensors': b'x' * 100_000,
    }
    with shadow('s3://data/run') as folder:
        model = folder / 'checkpoints/ba00000010/model.safetensors'
        assert (model.stat().st_size, model.stat().st_blocks) == (100_000, 0)
        assert (model.parent / 'manifest.json').read_bytes() == text


@pytest.mark.parametrize('name', ['owner.json', 'events.jsonl', 'checkpoints/ba00000010/manifest.json'])
def test_a_record_of_a_size_that_none_has_is_refused_before_it_fills_memory(anything, name, monkeypatch):
    monkeypatch.setattr(shadow_module, 'LARGEST_BYTES', 1000)
    monkeypatch.setattr(shadow_module, 'LARGEST_LINES_BYTES', 1000)
    anything.objects = {f'data/run/{name}': b'x' * 1001}
    with pytest.raises(UserError, match=f's3://data/run/{name}: has more than 1,000 bytes'), shadow('s3://data/run'):
        pass
