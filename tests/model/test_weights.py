"""Weights from and to Hugging Face folders: equal logits in both directions, and every kind of wrong folder named."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPTNeoXConfig, GPTNeoXForCausalLM

from rewarm.config.errors import UserError
from rewarm.config.shapes import ModelShape
from rewarm.model.pythia import Pythia
from rewarm.model.weight_files import bin_refusal
from rewarm.model.weights import HFConfig, export_hf, find_hf_folder, import_hf, load_hf, read_hf_config

SHAPE = ModelShape(  # nothing at the default of transformers that could be ignored unseen
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=72,
    vocab_size=61,
    rotary_pct=0.5,
    rotary_emb_base=5000.0,
    max_position_embeddings=96,
    layer_norm_eps=1e-4,
    use_parallel_residual=False,
)
IDS_BT = torch.randint(0, 61, (2, 23), generator=torch.Generator().manual_seed(4))


def random_model(gelu='tanh', shape=SHAPE):
    model = Pythia(shape, gelu=gelu)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(
                (1.0 if 'norm.weight' in name else 0.0) + 0.2 * torch.randn(parameter.shape, generator=generator)
            )
    return model


def hf_from(model, gelu='tanh'):
    act = {'tanh': 'gelu_pytorch_tanh', 'erf': 'gelu'}[gelu]
    hf = GPTNeoXForCausalLM(
        GPTNeoXConfig(**dataclasses.asdict(model.shape), hidden_act=act, bos_token_id=0, eos_token_id=0)
    )
    head = 'lm_head' if hasattr(hf, 'lm_head') else 'embed_out'
    hf.load_state_dict({name.replace('embed_out', head): tensor for name, tensor in model.state_dict().items()})
    return hf


@pytest.fixture
def hf_folder(tmp_path):
    """A folder as `transformers` of this environment writes it."""
    hf_from(random_model()).save_pretrained(tmp_path / 'hf')
    return tmp_path / 'hf'


@pytest.fixture
def tokenizer_path(tmp_path):
    vocab = {'<|endoftext|>': 0} | {chr(ord('a') + i): i + 1 for i in range(26)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(['<|endoftext|>'])
    path = tmp_path / 'tokenizer.json'
    tokenizer.save(str(path))
    return path


def edit_config(folder, **changes):
    path = folder / 'config.json'
    config = json.loads(path.read_text())
    config = {key: value for key, value in (config | changes).items() if value is not ...}
    path.write_text(json.dumps(config))


class TestImport:
    def test_folder_of_transformers_gives_equal_logits(self, hf_folder):
        model = Pythia(SHAPE, gelu='tanh')
        done = load_hf(model, str(hf_folder))
        expected = AutoModelForCausalLM.from_pretrained(hf_folder)(IDS_BT).logits
        torch.testing.assert_close(model(IDS_BT), expected, rtol=1e-5, atol=1e-5)
        assert done.num_tensors == len(list(model.parameters())) == 4 + 2 * 12  # two embeddings, last norm; 12 a layer
        assert (done.folder, done.skipped, done.notes) == (hf_folder, (), ())

    def test_sharded_safetensors(self, tmp_path):
        hf_from(random_model()).save_pretrained(tmp_path / 'hf', max_shard_size='20KB')
        assert len(list((tmp_path / 'hf').glob('model-*.safetensors'))) > 1
        self.check_equal(tmp_path / 'hf')

    @pytest.mark.skipif(bin_refusal(torch.__version__) is not None, reason='this torch is too old to read .bin files')
    @pytest.mark.parametrize('sharded', [False, True])
    def test_bin_files_of_old_releases(self, hf_folder, sharded):
        state = load_file(hf_folder / 'model.safetensors')
        (hf_folder / 'model.safetensors').unlink()
        state['gpt_neox.layers.0.attention.bias'] = torch.ones(1, 1, 96, 96, dtype=torch.bool).tril()
        state['gpt_neox.layers.1.attention.masked_bias'] = torch.tensor(-1e9)
        state['gpt_neox.layers.1.attention.rotary_emb.inv_freq'] = torch.ones(4)
        if sharded:
            halves = [dict(list(state.items())[::2]), dict(list(state.items())[1::2])]
            names = ['pytorch_model-00001-of-00002.bin', 'pytorch_model-00002-of-00002.bin']
            for half, name in zip(halves, names, strict=True):
                torch.save(half, hf_folder / name)
            index = {'weight_map': {key: name for half, name in zip(halves, names, strict=True) for key in half}}
            (hf_folder / 'pytorch_model.bin.index.json').write_text(json.dumps(index))
        else:
            torch.save(state, hf_folder / 'pytorch_model.bin')
        done = self.check_equal(hf_folder)
        assert sorted(done.skipped) == [
            'gpt_neox.layers.0.attention.bias',
            'gpt_neox.layers.1.attention.masked_bias',
            'gpt_neox.layers.1.attention.rotary_emb.inv_freq',
        ]

    def test_fp16_becomes_fp32_exactly(self, hf_folder):
        halves = {name: tensor.half() for name, tensor in load_file(hf_folder / 'model.safetensors').items()}
        save_file(halves, hf_folder / 'model.safetensors')
        model = Pythia(SHAPE, gelu='tanh')
        load_hf(model, str(hf_folder))
        for name, parameter in model.named_parameters():
            assert parameter.dtype == torch.float32
            assert torch.equal(parameter.half(), halves[name])

    def test_pythias_own_config_json_is_read(self, tmp_path):
        # As in EleutherAI/pythia-14m: transformers 4 keys, no rope_parameters.
        config = {
            'architectures': ['GPTNeoXForCausalLM'], 'bos_token_id': 0, 'classifier_dropout': 0.1, 'eos_token_id': 0,
            'hidden_act': 'gelu', 'hidden_size': 128, 'initializer_range': 0.02, 'intermediate_size': 512,
            'layer_norm_eps': 1e-05, 'max_position_embeddings': 2048, 'model_type': 'gpt_neox', 'num_attention_heads': 4,
            'num_hidden_layers': 6, 'rotary_emb_base': 10000, 'rotary_pct': 0.25, 'tie_word_embeddings': False,
            'torch_dtype': 'float16', 'transformers_version': '4.24.0', 'use_cache': True,
            'use_parallel_residual': True, 'vocab_size': 50304,
        }  # fmt: skip
        (tmp_path / 'config.json').write_text(json.dumps(config))
        assert read_hf_config(tmp_path) == HFConfig(ModelShape(128, 6, 4, 512), 'erf')

    def test_another_gelu_is_noted(self, hf_folder):
        edit_config(hf_folder, hidden_act='gelu')
        done = load_hf(Pythia(SHAPE, gelu='tanh'), str(hf_folder))
        assert done.notes == ('this run computes the tanh GELU, and the folder asks for the erf one',)

    def check_equal(self, folder):
        model, expected = Pythia(SHAPE, gelu='tanh'), random_model()
        done = load_hf(model, str(folder))
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, expected.get_parameter(name)), name
        return done


class TestWrongFolders:
    def refused(self, folder):
        with pytest.raises(UserError) as error:
            load_hf(Pythia(SHAPE, gelu='tanh'), str(folder))
        return str(error.value)

    def test_every_difference_of_the_shape_is_named(self, hf_folder):
        edit_config(hf_folder, hidden_size=64, layer_norm_eps=1e-5)
        message = self.refused(hf_folder)
        assert 'another model than the run' in message
        assert '`hidden_size`: the run has 32, the folder 64' in message
        assert '`layer_norm_eps`: the run has 0.0001, the folder 1e-05' in message
        assert message.count('\n') == 2

    def test_missing_unexpected_and_misshapen_keys_are_all_named(self, hf_folder):
        path = hf_folder / 'model.safetensors'
        state = load_file(path)
        del state['gpt_neox.layers.1.mlp.dense_h_to_4h.bias']
        state['gpt_neox.layers.2.mlp.dense_h_to_4h.bias'] = torch.zeros(72)
        state['embed_out.weight'] = torch.zeros(64, 32)
        state['gpt_neox.final_layer_norm.bias'][3] = float('nan')
        state['gpt_neox.layers.0.attention.dense.bias'] = torch.zeros(32, dtype=torch.int8)
        save_file(state, path)
        message = self.refused(hf_folder)
        assert 'missing `gpt_neox.layers.1.mlp.dense_h_to_4h.bias` of shape [72]' in message
        assert 'unexpected `gpt_neox.layers.2.mlp.dense_h_to_4h.bias` of shape [72]' in message
        assert '`embed_out.weight` has shape [64, 32] where [61, 32] belongs' in message
        assert '`gpt_neox.final_layer_norm.bias` has values that are infinite or no number' in message
        assert '`gpt_neox.layers.0.attention.dense.bias` is stored as torch.int8' in message
        assert message.count('\n') == 5

    def test_a_key_under_two_names_is_refused(self, hf_folder):
        path = hf_folder / 'model.safetensors'
        state = load_file(path)
        save_file(state | {'lm_head.weight': state['embed_out.weight'].clone()}, path)
        assert '`embed_out.weight` is there twice' in self.refused(hf_folder)

    @pytest.mark.parametrize(
        ('changes', 'words'),
        [
            ({'model_type': 'llama'}, "`model_type` is 'llama'"),
            ({'attention_bias': False}, '`attention_bias` is false'),
            ({'hidden_act': 'relu'}, "`hidden_act` is 'relu'; known are gelu,"),
            ({'rope_parameters': {'rope_type': 'linear', 'factor': 2.0}}, 'rope_type: linear'),
            ({'rotary_emb_base': 7.0}, '`rotary_emb_base` is 7.0 in one place and 5000.0 in another'),
            ({'hidden_size': ..., 'vocab_size': ...}, 'damaged: hidden_size: is missing'),
            ({'tie_word_embeddings': True}, 'tied embeddings'),
            ({'quantization_config': {'bits': 4}}, 'quantized'),
            ({'num_attention_heads': 5}, '5 heads do not divide a width of 32'),
            (
                {'hidden_size': 1 << 17, 'intermediate_size': 1 << 18, 'num_hidden_layers': 1024},
                'parameters, more than',
            ),
        ],
    )
    def test_other_architectures_are_refused(self, hf_folder, changes, words):
        edit_config(hf_folder, **changes)
        message = self.refused(hf_folder)
        assert words in message
        assert message.startswith(str(hf_folder / 'config.json'))

    def test_missing_and_broken_files(self, hf_folder):
        weights = hf_folder / 'model.safetensors'
        whole = weights.read_bytes()
        weights.write_bytes(whole[: len(whole) // 2])
        assert 'model.safetensors: damaged: no safetensors file, or one cut off' in self.refused(hf_folder)
        weights.unlink()
        assert 'has no weights: none of model.safetensors' in self.refused(hf_folder)
        (hf_folder / 'model.safetensors.index.json').write_text(
            '{"weight_map": {"embed_out.weight": "gone.safetensors"}}'
        )
        assert 'names files that are not there: gone.safetensors' in self.refused(hf_folder)
        (hf_folder / 'config.json').write_text('{')
        assert 'config.json: damaged: byte 1: no JSON' in self.refused(hf_folder)
        (hf_folder / 'config.json').unlink()
        assert 'config.json does not exist' in self.refused(hf_folder)

    def test_doubles_that_single_precision_cannot_hold_are_refused(self, hf_folder):
        path = hf_folder / 'model.safetensors'
        state = load_file(path)
        state['embed_out.weight'] = state['embed_out.weight'].double()
        state['embed_out.weight'][0, 0] = 1e300
        save_file(state, path)
        assert '`embed_out.weight` has values that are infinite' in self.refused(hf_folder)

    def test_weights_of_eight_bits_are_refused(self, hf_folder):
        path = hf_folder / 'model.safetensors'
        state = load_file(path)
        state['embed_out.weight'] = state['embed_out.weight'].to(torch.float8_e4m3fn)
        save_file(state, path)
        assert '`embed_out.weight` is stored as torch.float8_e4m3fn' in self.refused(hf_folder)

    def test_a_tensor_in_two_shards_is_refused(self, hf_folder):
        state = load_file(hf_folder / 'model.safetensors')
        (hf_folder / 'model.safetensors').unlink()
        names = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
        save_file(state, hf_folder / names[0])
        save_file({'embed_out.weight': state['embed_out.weight'] + 1}, hf_folder / names[1])
        index = {'weight_map': dict.fromkeys(state, names[0]) | {'embed_out.weight': names[1]}}
        (hf_folder / 'model.safetensors.index.json').write_text(json.dumps(index))
        assert '`embed_out.weight` is there twice' in self.refused(hf_folder)

    def test_the_prefix_of_a_wrapper_is_named_and_the_list_is_short(self, hf_folder):
        path = hf_folder / 'model.safetensors'
        save_file({f'module.{name}': tensor for name, tensor in load_file(path).items()}, path)
        message = self.refused(hf_folder)
        assert 'the names begin with `module.`' in message
        assert message.count('\n') == 21
        assert message.endswith('more')


class TestFindFolder:
    @pytest.fixture
    def cache(self, tmp_path, monkeypatch):
        import huggingface_hub.constants

        monkeypatch.setattr(huggingface_hub.constants, 'HF_HUB_CACHE', str(tmp_path))
        repo = tmp_path / 'models--EleutherAI--pythia-410m'
        for revision, commit in (('main', 'a' * 40), ('step10000', 'b' * 40)):
            (repo / 'snapshots' / commit).mkdir(parents=True)
            (repo / 'refs').mkdir(exist_ok=True)
            (repo / 'refs' / revision).write_text(commit)
        monkeypatch.chdir(tmp_path)
        return repo / 'snapshots'

    def test_id_and_revision_in_the_local_cache(self, cache):
        assert find_hf_folder('EleutherAI/pythia-410m') == cache / ('a' * 40)
        assert find_hf_folder('EleutherAI/pythia-410m@step10000') == cache / ('b' * 40)

    @pytest.mark.parametrize(
        ('source', 'remedy'),
        [
            ('EleutherAI/pythia-410m@step27000', 'hf download EleutherAI/pythia-410m --revision step27000'),
            ('EleutherAI/pythia-14m', 'hf download EleutherAI/pythia-14m`'),
            ('/no/such/folder', 'write the path of its folder'),
            ('', 'write the path of its folder'),
            ('x' * 5000, 'write the path of its folder'),
            (
                'https://huggingface.co/EleutherAI/pythia-14m',
                'hf download EleutherAI/pythia-14m`, and write hf:EleutherAI',
            ),
            ('huggingface.co/a/b/tree/step3', 'hf download a/b --revision step3`, and write hf:a/b@step3'),
        ],
    )
    def test_absent_models_are_refused_with_how_to_get_them(self, cache, source, remedy):
        with pytest.raises(UserError, match=remedy):
            find_hf_folder(source)

    def test_a_folder_of_the_cache_leads_to_its_snapshots(self, cache):
        (cache / ('a' * 40) / 'config.json').write_text('{}')
        for folder in (cache.parent, cache):
            with pytest.raises(UserError, match=f'name the folder that holds one: .*snapshots/{"a" * 40}'):
                read_hf_config(find_hf_folder(str(folder)))

    def test_a_file_is_no_folder(self, tmp_path):
        (tmp_path / 'model.safetensors').touch()
        with pytest.raises(UserError, match='is a file; name the folder that holds it'):
            find_hf_folder(str(tmp_path / 'model.safetensors'))


class TestImportedModel:
    def test_it_has_the_shape_and_the_weights_of_the_folder(self, hf_folder):
        model, imported = import_hf(str(hf_folder))
        assert (model.shape, model.gelu, imported.num_tensors) == (SHAPE, 'tanh', 28)
        torch.testing.assert_close(model(IDS_BT), random_model()(IDS_BT))

    def test_sizes_that_the_files_do_not_bear_out_take_no_memory(self, hf_folder):
        edit_config(hf_folder, vocab_size=1 << 22, hidden_size=2048, intermediate_size=8192)
        with pytest.raises(
            UserError, match=r'describes 17,\d{3},\d{3},\d{3} parameters, and its weights have \d\d,\d{3} bytes'
        ):
            import_hf(str(hf_folder))


class TestExport:
    @pytest.mark.parametrize('gelu', ['tanh', 'erf'])
    @pytest.mark.parametrize('parallel', [True, False])
    def test_transformers_loads_it_with_equal_logits(self, tmp_path, tokenizer_path, gelu, parallel):
        shape = dataclasses.replace(SHAPE, use_parallel_residual=parallel)
        model = random_model(gelu, shape)
        out = export_hf(
            model.state_dict(), shape=shape, gelu=gelu, tokenizer_path=tokenizer_path, out_dir=tmp_path / 'out'
        )
        hf, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
        assert not any(info.get(kind) for kind in ('missing_keys', 'unexpected_keys', 'mismatched_keys'))
        assert {parameter.dtype for parameter in hf.parameters()} == {torch.float32}
        torch.testing.assert_close(hf(IDS_BT).logits, model(IDS_BT), rtol=1e-5, atol=1e-5)
        assert read_hf_config(out).shape == shape
        assert read_hf_config(out).gelu == gelu

    def test_tokenizer_loads(self, tmp_path, tokenizer_path):
        out = self.export(tmp_path / 'out', tokenizer_path)
        tokenizer = AutoTokenizer.from_pretrained(out)
        assert tokenizer('abz').input_ids == Tokenizer.from_file(str(tokenizer_path)).encode('abz').ids == [1, 2, 26]
        assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0
        assert tokenizer.eos_token == '<|endoftext|>'
        assert tokenizer.model_max_length == 96

    def test_import_of_an_export_has_the_same_bits(self, tmp_path, tokenizer_path):
        out = self.export(tmp_path / 'out', tokenizer_path)
        model, expected = Pythia(SHAPE, gelu='tanh'), random_model()
        load_hf(model, str(out))
        for name, parameter in model.named_parameters():
            assert torch.equal(parameter, expected.get_parameter(name)), name

    def test_whoever_may_read_the_config_may_read_the_weights(self, tmp_path, tokenizer_path):
        out = self.export(tmp_path / 'out', tokenizer_path)
        assert (out / 'model.safetensors').stat().st_mode == (out / 'config.json').stat().st_mode

    def test_tokenizer_without_an_end_of_document(self, tmp_path):
        Tokenizer(models.BPE(vocab={'a': 0, 'b': 1}, merges=[])).save(str(tmp_path / 'tokenizer.json'))
        out = self.export(tmp_path / 'out', tmp_path / 'tokenizer.json')
        assert json.loads((out / 'config.json').read_text())['eos_token_id'] is None
        AutoModelForCausalLM.from_pretrained(out)

    def test_existing_folder_is_refused(self, tmp_path, tokenizer_path):
        (tmp_path / 'out').mkdir()
        with pytest.raises(UserError, match='exists already'):
            self.export(tmp_path / 'out', tokenizer_path)

    def test_wrong_weights_are_named_and_nothing_is_written(self, tmp_path, tokenizer_path):
        state = random_model().state_dict()
        state['gpt_neox.layers.7.odd'] = state.pop('gpt_neox.final_layer_norm.bias')
        state['embed_out.weight'] = torch.zeros(3, 3)
        with pytest.raises(UserError) as error:
            export_hf(state, shape=SHAPE, gelu='tanh', tokenizer_path=tokenizer_path, out_dir=tmp_path / 'out')
        assert 'missing `gpt_neox.final_layer_norm.bias`' in str(error.value)
        assert 'unexpected `gpt_neox.layers.7.odd`' in str(error.value)
        assert '`embed_out.weight` has shape [3, 3] where [61, 32] belongs' in str(error.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['tokenizer.json']

    def test_tokenizer_with_more_ids_than_the_model_is_refused(self, tmp_path):
        Tokenizer(models.BPE(vocab={f't{i}': i for i in range(62)}, merges=[])).save(str(tmp_path / 'tokenizer.json'))
        with pytest.raises(UserError, match='ids up to 61, and the model has a vocabulary of 61'):
            self.export(tmp_path / 'out', tmp_path / 'tokenizer.json')

    def test_a_failed_write_leaves_nothing(self, tmp_path, tokenizer_path, monkeypatch):
        def full_disk(*_args, **_kwargs):
            raise OSError('no space left on device')

        monkeypatch.setattr('rewarm.model.export.save_file', full_disk)
        with pytest.raises(OSError, match='no space'):
            self.export(tmp_path / 'out', tokenizer_path)
        assert sorted(path.name for path in tmp_path.iterdir()) == ['tokenizer.json']

    def export(self, out, tokenizer_path):
        return export_hf(
            random_model().state_dict(), shape=SHAPE, gelu='tanh', tokenizer_path=tokenizer_path, out_dir=out
        )
