"""Hugging Face folders say what they hold, within bounds, or are refused with file, place and what."""

import json
import re

import pytest

from rewarm.config.errors import UserError
from rewarm.formats.hugging_face import read_neox_config, read_weight_index, what_it_is

CONFIG = {
    'model_type': 'gpt_neox',
    'hidden_size': 8,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'intermediate_size': 16,
    'vocab_size': 16,
    'hidden_act': 'gelu',
}


def write(folder, content, name='config.json'):
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return folder / name


def test_what_is_left_out_or_null_is_none(tmp_path):
    config = read_neox_config(write(tmp_path, {**CONFIG, 'layer_norm_eps': None, 'rope_scaling': None, 'new': [1]}))
    assert (config.hidden_size, config.layer_norm_eps, config.rotary_pct, config.rope_scaling) == (8, None, None, None)
    config = read_neox_config(
        write(tmp_path, {**CONFIG, 'rope_parameters': {'rope_theta': 10000, 'partial_rotary_factor': 0.25}})
    )
    assert config.rope_parameters.rope_theta == 10000.0


@pytest.mark.parametrize('value', ['32', 'x', -8, 0, 8.0, True, 1e400, 10**9, 10**15, 10**30, [8], {}, None])
@pytest.mark.parametrize(
    'key', ['hidden_size', 'num_hidden_layers', 'num_attention_heads', 'intermediate_size', 'vocab_size']
)
def test_sizes_are_numbers_that_a_model_can_have(tmp_path, key, value):
    with pytest.raises(UserError, match=rf'config\.json: damaged: ({key}|the number|a number)'):
        read_neox_config(write(tmp_path, {**CONFIG, key: value}))


@pytest.mark.parametrize(
    ('key', 'value'),
    [
        ('max_position_embeddings', 0),
        ('rotary_pct', 'x'),
        ('rotary_pct', 0),
        ('rotary_pct', 1.5),
        ('rotary_emb_base', -1),
        ('layer_norm_eps', '1e-5'),
        ('layer_norm_eps', 0),
        ('layer_norm_eps', 1e9),
        ('use_parallel_residual', 1),
        ('use_parallel_residual', 'false'),
        ('tie_word_embeddings', 'no'),
        ('attention_bias', 0),
        ('hidden_act', [1]),
        ('rope_parameters', 'x'),
        ('rope_parameters', {'rope_theta': '1'}),
        ('rope_scaling', [1]),
        ('rope_scaling', {'type': 3}),
    ],
)
def test_other_keys_have_their_types(tmp_path, key, value):
    with pytest.raises(UserError, match=rf'config\.json: damaged: {key}'):
        read_neox_config(write(tmp_path, {**CONFIG, key: value}))


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        ('', 'no JSON'),
        ('[' * 100_000, 'nested'),
        ('[]', 'no JSON object'),
        (json.dumps({**CONFIG, 'a': 0})[:-1] + ', "hidden_size": 9}', "'hidden_size' is there twice"),
        (json.dumps(CONFIG).replace('"gelu"', 'NaN'), 'NaN'),
        ('version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n', 'git lfs pull'),
        ({**CONFIG, 'model_type': 'llama'}, "`model_type` is 'llama', and only gpt_neox"),
        ({'model_type': ['gpt_neox']}, '`model_type` is'),
    ],
)
def test_a_config_that_is_none_is_told(tmp_path, content, words):
    with pytest.raises(UserError, match=words):
        read_neox_config(write(tmp_path, content))


def test_a_text_for_a_number_is_called_one(tmp_path):
    with pytest.raises(UserError, match=r"hidden_size: should be a valid integer, not '32' \(a text\)"):
        read_neox_config(write(tmp_path, {**CONFIG, 'hidden_size': '32'}))


def test_an_index_gives_each_file_once(tmp_path):
    weight_map = {'a': 'x/2.safetensors', 'b': '1.safetensors', 'c': '1.safetensors'}
    path = write(tmp_path, {'metadata': {'total_size': 1}, 'weight_map': weight_map}, 'model.safetensors.index.json')
    assert read_weight_index(path) == ['1.safetensors', 'x/2.safetensors']


@pytest.mark.parametrize(
    ('weight_map', 'words'),
    [
        ({'a': '../../etc/passwd'}, r'has a part that is empty, `\.` or `\.\.`'),
        ({'a': '/etc/passwd'}, 'is absolute'),
        ({'a': 'b\0.safetensors'}, 'cannot be printed'),
        ({'a': 5}, r'weight_map\.a'),
        ({'a': None}, r'weight_map\.a'),
        ([1], 'weight_map: should be'),
        ({}, 'weight_map: it is empty'),
        (None, 'weight_map: should be'),
        ({'a': 'config.json'}, r"'config\.json' is no \.safetensors file"),
        ({'a': 'pytorch_model.bin'}, r'is no \.safetensors file'),
    ],
)
def test_an_index_names_weights_below_its_folder(tmp_path, weight_map, words):
    path = write(tmp_path, {'weight_map': weight_map}, 'model.safetensors.index.json')
    with pytest.raises(UserError, match=rf'index\.json: damaged: .*{words}'):
        read_weight_index(path)


@pytest.mark.parametrize(
    ('data', 'words'),
    [
        (b'', 'empty'),
        (b'version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n', 'git-lfs pointer.*git lfs pull.*hf download'),
        (b'\n<!DOCTYPE html><html>', 'web page'),
        (b'{"error": "Repository not found"}', 'answer of a server'),
        (b'Entry not found', 'answer of a server'),
        (bytes(1000), 'cut off'),
    ],
)  # fmt: skip
def test_what_lies_in_place_of_weights_is_named(tmp_path, data, words):
    (tmp_path / 'model.safetensors').write_bytes(data)
    assert re.search(words, what_it_is(tmp_path / 'model.safetensors') or '')


def test_of_weights_nothing_is_known_to_be_wrong(tmp_path):
    (tmp_path / 'model.safetensors').write_bytes(b'\x08\0\0\0\0\0\0\0{}      ')
    assert what_it_is(tmp_path / 'model.safetensors') is None
