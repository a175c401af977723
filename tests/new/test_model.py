import json
import shutil

import pytest

from rewarm.config.errors import UserError
from rewarm.config.shapes import MODEL_SHAPES
from rewarm.new.model import find_model


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setattr('huggingface_hub.constants.HF_HUB_CACHE', str(tmp_path / 'cache'))


def test_a_size_says_how_to_get_it_and_what_rate_it_was_trained_at():
    model = find_model('pythia-160m')
    assert (model.name, model.init_from, model.tokenizer) == (
        'pythia-160m',
        'hf:EleutherAI/pythia-160m',
        'EleutherAI/pythia-160m',
    )
    assert model.missing == 'hf download EleutherAI/pythia-160m'
    assert model.peak_rate == 6e-4
    assert model.sizes == {}


def test_an_id_of_pythia_s_is_known_before_it_is_here_and_may_name_a_step():
    model = find_model('hf:EleutherAI/pythia-410m@step10000')
    assert (model.name, model.init_from, model.tokenizer) == (
        'pythia-410m',
        'hf:EleutherAI/pythia-410m@step10000',
        'EleutherAI/pythia-410m',
    )
    assert model.missing == 'hf download EleutherAI/pythia-410m --revision step10000'


def write_config(folder, **sizes):
    folder.mkdir()
    (folder / 'config.json').write_text(json.dumps({'model_type': 'gpt_neox', **sizes}))


def test_a_folder_of_a_known_size_has_its_name_and_another_its_sizes(here):
    known = {'hidden_size': 512, 'num_hidden_layers': 6, 'num_attention_heads': 8, 'intermediate_size': 2048}
    write_config(here / 'known', vocab_size=50304, **known)
    model = find_model('known')
    assert (model.name, model.init_from, model.shape) == ('pythia-70m', 'hf:known', MODEL_SHAPES['pythia-70m'])
    assert model.tokenizer is None, 'there is no tokenizer.json in it'
    (here / 'known/tokenizer.json').touch()
    assert find_model('hf:known').tokenizer == 'known'
    write_config(here / 'mine', vocab_size=1000, rope_parameters={'partial_rotary_factor': 0.5}, **known)
    assert find_model('mine').sizes == {
        'hidden_size': 512,
        'num_hidden_layers': 6,
        'num_attention_heads': 8,
        'vocab_size': 1000,
        'rotary_pct': 0.5,
    }


def test_a_checkpoint_brings_its_run_s_model_tokenizer_precision_and_rate(run_folder, here):
    checkpoints = f'checkpoint:{run_folder}/checkpoints'
    for place in (f'checkpoint:{run_folder}', checkpoints, f'{checkpoints}/latest', f'{checkpoints}/ba00000012'):
        model = find_model(place)
        assert model.init_from == 'checkpoint:runs/tiny/checkpoints/ba00000012'
        assert (model.tokenizer, model.precision, model.peak_rate) == ('data/tokenizer.json', 'fp32', 1e-2)
        assert model.shape.vocab_size == 512
    own = here / run_folder / 'tokenizer/tokenizer.json'
    own.parent.mkdir()
    own.touch()
    assert find_model(f'checkpoint:{run_folder}').tokenizer == 'runs/tiny/tokenizer'


@pytest.mark.parametrize(
    ('text', 'words'),
    [
        ('pythia-410', 'Did you mean `pythia-410m`'),
        ('gpt2', r'no such model.* a Hugging Face folder or id'),
        ('EleutherAI/pythia-2.8b', 'hf download EleutherAI/pythia-2.8b'),
        ('checkpoint:runs/nowhere', 'no such checkpoint'),
        ('checkpoint:s3://b/runs/x', r's3://b/runs/x: what model that is can only be looked up'),
        ('a b', 'no such model'),
        ('../../etc', 'no such model'),
        ('', 'no such model'),
    ],
)
def test_what_is_no_model_is_said_with_what_to_write(here, text, words):
    with pytest.raises(UserError, match=words):
        find_model(text)


def test_a_checkpoint_far_from_its_run_says_itself_what_it_is(run_folder, here):
    shutil.copytree(here / run_folder / 'checkpoints/ba00000012', here / 'copied')
    model = find_model('checkpoint:copied')
    assert (model.init_from, model.shape.vocab_size, model.tokenizer) == ('checkpoint:copied', 512, None)
    shutil.copy(here / 'data/tokenizer.json', here / 'copied/tokenizer.json')
    assert find_model('checkpoint:copied').tokenizer == 'copied'


def test_another_kind_of_model_is_refused(here):
    write_config(here / 'llama')
    (here / 'llama/config.json').write_text('{"model_type": "llama"}')
    with pytest.raises(UserError, match='only gpt_neox'):
        find_model('llama')
