"""Files of weights as strangers and broken downloads leave them: tensors, or words of our own; nothing is run."""

import argparse
import json
import os
import pickle
import warnings
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from rewarm.config.errors import UserError
from rewarm.model.weight_files import bin_refusal, find_weight_files, read_tensors

STATE = {'a.weight': torch.arange(6.0).reshape(2, 3), 'a.bias': torch.ones(2)}

reads_bin = pytest.mark.skipif(
    bin_refusal(torch.__version__) is not None, reason='this torch is too old to read .bin files'
)


def words_about(folder):
    """What is said of a folder of weights that cannot be read."""
    with pytest.raises(UserError) as caught:
        [dict(read_tensors(file)) for file in find_weight_files(folder)]
    message = str(caught.value)
    assert 'weights_only' not in message
    assert len(message) < 2000
    return message


@pytest.mark.parametrize(
    ('version', 'refused'),
    [
        *(('2.13.0', False), ('2.10.0', False), ('2.10.0+cu128', False), ('2.11.0.dev20260101', False), ('3.0', False)),
        *(('2.9.1', True), ('2.7.0+cpu', True), ('2.10.0a0+git1', True), ('1.13.1', True), ('unknown', True)),
    ],
)
def test_bin_files_are_read_by_a_torch_that_does_so_safely(version, refused):
    words = bin_refusal(version)
    assert (words is not None) == refused
    if words:
        assert version in words
        assert 'CVE-2026-24747' in words
        assert '.safetensors' in words


def test_an_old_torch_refuses_before_it_opens_the_file(tmp_path, monkeypatch):
    torch.save(STATE, tmp_path / 'pytorch_model.bin')
    monkeypatch.setattr(torch, '__version__', '2.7.0')
    monkeypatch.setattr(torch, 'load', None)
    assert 'pytorch_model.bin: with torch 2.7.0 a .bin file can overwrite memory' in words_about(tmp_path)


@reads_bin
@pytest.mark.parametrize('zipped', [True, False])
def test_the_tensors_of_a_bin_file(tmp_path, zipped):
    path = tmp_path / 'pytorch_model.bin'
    torch.save({**STATE, 'b': torch.nn.Parameter(torch.ones(1))}, path, _use_new_zipfile_serialization=zipped)
    assert find_weight_files(tmp_path) == [path]
    read = dict(read_tensors(path))
    assert list(read) == ['a.weight', 'a.bias', 'b']
    assert torch.equal(read['a.weight'], STATE['a.weight'])


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@reads_bin
@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ({'state_dict': STATE}, "a training checkpoint with `state_dict`: 2 tensors lie under ['state_dict']"),
        ({'model': STATE, 'step': 3}, "with `model`, `step`: 2 tensors lie under ['model']"),
        ({'state': {'model': STATE, 'optimizers': {0: {'m': torch.ones(1)}}}}, "lie under ['state']['model']"),
        ({**STATE, 'extra_state': None}, '`extra_state` is None, not a tensor'),
        ({**STATE, '_metadata': {'version': 1}}, '`_metadata` is a dict, not a tensor'),
        ({1: torch.ones(1)}, 'the key 1 is no text'),
        ({'a': 'x'}, '`a` is a str, not a tensor'),
        (dict.fromkeys(map(str, range(5000))), 'and 4992 more'),
        ({'a': torch.ones(2).to_sparse()}, '`a` is a sparse or nested tensor'),
        ({'a': torch.ones(2, device='meta')}, '`a` is a tensor without values (on the device meta)'),
        ({}, None),
        ([1, 2], 'no weights under their names but a list'),
        (torch.ones(2), 'no weights under their names but a Tensor'),
        (None, 'no weights under their names but None'),
        ({**STATE, 'args': argparse.Namespace(lr=1)}, 'it holds Python objects (argparse.Namespace) besides tensors'),
        ({'a': np.arange(3)}, 'it holds Python objects (numpy._core.multiarray._reconstruct)'),
    ],
    ids=lambda value: value if isinstance(value, str) else '',
)  # fmt: skip
@pytest.mark.filterwarnings('ignore')
def test_what_is_more_than_weights_is_told(tmp_path, content, words):
    torch.save(content, tmp_path / 'pytorch_model.bin')
    if words is None:
        assert dict(read_tensors(tmp_path / 'pytorch_model.bin')) == {}
    else:
        assert words in words_about(tmp_path)


@reads_bin
@pytest.mark.filterwarnings('ignore')
def test_quantized_tensors_are_no_weights(tmp_path):
    quantized = torch.quantize_per_tensor(torch.ones(2), 1.0, 0, torch.qint8)
    torch.save({'a': quantized}, tmp_path / 'pytorch_model.bin')
    assert '`a` is quantized' in words_about(tmp_path)


@reads_bin
@pytest.mark.parametrize('save_it', [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_nothing_in_a_bin_file_is_run(tmp_path, save_it):
    save_it({'a': Bomb(tmp_path / 'exploded')}, tmp_path / 'pytorch_model.bin')
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        assert 'pytorch_model.bin: damaged' in words_about(tmp_path)
    assert not (tmp_path / 'exploded').exists()


@reads_bin
def test_a_packed_archive_is_not_unpacked(tmp_path):
    torch.save(STATE, tmp_path / 'plain.bin')
    with (
        zipfile.ZipFile(tmp_path / 'plain.bin') as plain,
        zipfile.ZipFile(tmp_path / 'pytorch_model.bin', 'w', zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    assert 'compressed, which torch.save never does' in words_about(tmp_path)


@reads_bin
def test_a_changed_weight_in_a_bin_file_is_found(tmp_path):
    path = tmp_path / 'pytorch_model.bin'
    torch.save(STATE, path)
    data = bytearray(path.read_bytes())
    at = data.index(STATE['a.weight'].numpy().tobytes())
    data[at + 6] ^= 0x40
    path.write_bytes(data)
    assert 'another checksum than when it was written' in words_about(tmp_path)


@pytest.mark.parametrize('name', ['model.safetensors', 'pytorch_model.bin'])
class TestInPlaceOfAFile:
    @pytest.mark.parametrize(
        ('data', 'words'),
        [
            (b'', 'it is empty'),
            (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n', 'git lfs pull'),
            (b'<html>404</html>', 'web page'),
            (b'PK\x03\x04' + bytes(90), 'no '),
            (os.urandom(2000), 'no '),
        ],
        ids=['empty', 'lfs', 'html', 'zip', 'noise'],
    )
    def test_other_content(self, tmp_path, name, data, words):
        (tmp_path / name).write_bytes(data)
        assert words in words_about(tmp_path).removeprefix(str(tmp_path))

    def test_a_folder_a_pipe_a_device_and_a_link_to_nothing(self, tmp_path, name):
        (tmp_path / name).mkdir()
        assert 'it is no regular file' in words_about(tmp_path)
        (tmp_path / name).rmdir()
        os.mkfifo(tmp_path / name)
        assert 'it is no regular file' in words_about(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to('/dev/zero')
        assert 'it is no regular file' in words_about(tmp_path)
        (tmp_path / name).unlink()
        (tmp_path / name).symlink_to(tmp_path / 'blobs' / 'gone')
        assert 'links to a file that is not there' in words_about(tmp_path)

    def test_as_a_shard(self, tmp_path, name):
        index = f'{name}.index.json'
        (tmp_path / index).write_text(json.dumps({'weight_map': {'a': f'x/{name}'}}))
        assert f'names files that are not there: x/{name}' in words_about(tmp_path)
        (tmp_path / 'x' / name).mkdir(parents=True)
        assert 'it is no regular file' in words_about(tmp_path)


def header(text, data=b''):
    encoded = text.encode()
    return len(encoded).to_bytes(8, 'little') + encoded + data


@pytest.mark.parametrize(
    'data',
    [
        (1 << 62).to_bytes(8, 'little') + b'{}',
        header('{'),
        header('[]'),
        header('[' * 20_000),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}'),
        header('{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}', bytes(4)),
        header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}', bytes(4)),
        header('{"a": {"dtype": "X9", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)),
        header('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}', bytes(4)),
        header('{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 0]}}'),
        header(
            '{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},'
            ' "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}', bytes(4)
        ),
    ],
    ids=range(11),
)  # fmt: skip
def test_headers_of_safetensors_that_are_none(tmp_path, data):
    (tmp_path / 'model.safetensors').write_bytes(data)
    assert 'model.safetensors: damaged: no safetensors file' in words_about(tmp_path)


def saved_bytes(state, tmp_path_factory):
    path = tmp_path_factory.mktemp('whole') / 'x.bin'
    torch.save(state, path)
    return path.read_bytes()


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    files = {'model.safetensors': save(STATE)}
    if bin_refusal(torch.__version__) is None:
        files['pytorch_model.bin'] = saved_bytes(STATE, tmp_path_factory)
    return files, tmp_path_factory.mktemp('damaged')


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(st.data())
def test_damaged_bytes_give_tensors_or_words(whole, data):
    files, folder = whole
    name = data.draw(st.sampled_from(sorted(files)))
    content = bytearray(files[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(['flip', 'cut', 'remove', 'repeat']))
        if kind == 'flip':
            content[at] ^= 1 << data.draw(st.integers(0, 7))
        elif kind == 'cut':
            del content[max(1, at) :]
        elif kind == 'remove':
            del content[at : at + data.draw(st.integers(1, max(1, len(content) - at - 1)))]
        else:
            content[at:at] = content[at : at + 40]
        content = content or bytearray(b'\1')
    path = folder / name
    path.write_bytes(content)
    try:
        read = dict(read_tensors(path))
    except UserError as error:
        words, read = str(error), {}
    else:
        words = ''
    assert 'weights_only' not in words
    assert all(isinstance(tensor, torch.Tensor) for tensor in read.values())
