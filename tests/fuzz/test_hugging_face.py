"""Hugging Face folders of any kind: the weights that were written, or an error in words."""

import json
import shutil

import torch
from safetensors.torch import save_file

from rewarm.config.errors import UserError
from rewarm.model.pythia import Pythia, init_weights
from rewarm.model.weights import load_hf, read_hf_config
from tests.fuzz.inputs import run_inputs
from tests.fuzz.mutations import change_bytes, change_json, replace_file
from tests.fuzz.test_checkpoints import SHAPE, change_floats, change_header

CONFIG = {
    'model_type': 'gpt_neox',
    'hidden_size': 8,
    'num_hidden_layers': 1,
    'num_attention_heads': 2,
    'intermediate_size': 16,
    'vocab_size': 16,
    'rotary_pct': 0.5,
    'rotary_emb_base': 10000.0,
    'max_position_embeddings': 8,
    'layer_norm_eps': 1e-5,
    'use_parallel_residual': True,
    'tie_word_embeddings': False,
    'hidden_act': 'gelu',
}


def write_folders(top, model):
    """The same weights in one file and in two."""
    tensors = dict(model.state_dict())
    for name in ('one', 'two'):
        (top / name).mkdir()
        (top / name / 'config.json').write_text(json.dumps(CONFIG))
    save_file(tensors, top / 'one/model.safetensors', metadata={'format': 'pt'})
    names = sorted(tensors)
    files = {name: f'model-0000{1 + number % 2}-of-00002.safetensors' for number, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: tensors[name] for name in names if files[name] == file}, top / 'two' / file)
    (top / 'two/model.safetensors.index.json').write_text(json.dumps({'metadata': {}, 'weight_map': files}))


def test_a_changed_folder_gives_its_weights_or_is_refused(tmp_path):
    torch.set_num_threads(1)
    model = Pythia(SHAPE, gelu='erf')
    init_weights(model, 5)
    write_folders(tmp_path, model)
    right = model.state_dict()
    folder = tmp_path / 'now'

    refusals = []

    def attempt(rng):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(tmp_path / rng.choice(('one', 'two')), folder)
        path = rng.choice(sorted(folder.iterdir()))
        what, other_weights = rng.random(), False
        if what < 0.1:
            replace_file(rng, path)
        elif path.suffix == '.json':
            path.write_bytes(rng.choice((change_json, change_json, change_bytes))(rng, path.read_bytes()))
        else:
            other_weights = True
            path.write_bytes(
                rng.choice((change_header, change_header, change_floats, change_bytes))(rng, path.read_bytes())
            )
        try:
            config = read_hf_config(folder)
            loaded = Pythia(config.shape, gelu=config.gelu)
            load_hf(loaded, str(folder))
        except UserError as error:
            refusals.append(str(error))
            return
        found = loaded.state_dict()
        assert all(tensor.isfinite().all() for tensor in found.values())
        if config.shape == SHAPE and not other_weights:
            assert all(torch.equal(found[name], tensor) for name, tensor in right.items())

    run_inputs(attempt, 400)
    assert not any('weights_only' in refusal for refusal in refusals)
