"""GPT-NeoX checkpoints, written here by the rules of the programs that made Pythia's and read back."""

import math
import os
import shutil
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from rewarm.config.errors import DamagedFile, UserError
from rewarm.config.schema import OptimizerConfig
from rewarm.config.shapes import ModelShape
from rewarm.model.neox_checkpoint import NeoxCheckpoint, read_neox_checkpoint
from rewarm.model.neox_files import find_neox_files
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights
from rewarm.model.weight_files import bin_refusal

pytestmark = pytest.mark.skipif(bin_refusal(torch.__version__) is not None, reason='no pickles with this torch')

SHAPE = ModelShape(32, 2, 2, 128, vocab_size=96, max_position_embeddings=64)
STEPS = 3

SETTINGS = """{
  # as the published ones are written
  "num-layers": 2,
  "hidden-size": 32,
  "num-attention-heads": 2,
  "max-position-embeddings": 64,
  "pos-emb": "rotary",
  "rotary-pct": 0.25,
  "no-weight-tying": true,
  "gpt-j-residual": true,
  "bias-gelu-fusion": true,
}
"""


@pytest.fixture(scope='module')
def trained() -> tuple[Pythia, torch.optim.AdamW]:
    """A model after some steps, its weights such that half precision holds them up to rounding."""
    torch.manual_seed(3)
    model = Pythia(SHAPE, gelu='tanh')
    init_weights(model, seed=3)
    optimizer = build_optimizer(model, OptimizerConfig(), lr=1e-3)
    ids = torch.randint(0, SHAPE.vocab_size, (4, 16), generator=torch.Generator().manual_seed(1))
    for _ in range(STEPS):
        optimizer.zero_grad()
        model.hidden(ids).square().sum().backward()
        model.embed_out.weight.grad = torch.randn_like(model.embed_out.weight)
        optimizer.step()
    return model, optimizer


def layer_of(name: str) -> tuple[int, str]:
    """Number of the layer's file, and the key in it."""
    ends = {
        'gpt_neox.embed_in.weight': (0, 'word_embeddings.weight'),
        'gpt_neox.final_layer_norm.weight': (SHAPE.num_hidden_layers + 3, 'norm.weight'),
        'gpt_neox.final_layer_norm.bias': (SHAPE.num_hidden_layers + 3, 'norm.bias'),
        'embed_out.weight': (SHAPE.num_hidden_layers + 4, 'final_linear.weight'),
    }
    if name in ends:
        return ends[name]
    _, _, number, key = name.split('.', 3)
    return int(number) + 2, key


ORDER = ['input_layernorm', 'attention.query_key_value', 'attention.dense', 'post_attention_layernorm', 'mlp']
"""Of the modules of a block, in GPT-NeoX."""


def neox_order(names: list[str]) -> list[str]:
    def place(name: str) -> tuple[int, int, int, int]:
        layer, key = layer_of(name)
        inside = next((index for index, start in enumerate(ORDER) if key.startswith(start)), 0)
        return layer, inside, int('4h_to_h' in key), int(key.endswith('bias'))

    return sorted(names, key=place)


def flatten(tensors: list[Tensor], ranks: int, intervals: int) -> list[list[Tensor]]:
    """Rank -> interval -> piece, without the padding: as ZeRO 1 of DeeperSpeed's first version saves them."""
    flat = torch.cat([tensor.detach().flatten() for tensor in tensors])
    size = math.ceil(len(flat) / (ranks * intervals))
    pieces = [flat[start * size : (start + 1) * size].clone() for start in range(ranks * intervals)]
    return [[pieces[interval * ranks + rank] for interval in range(intervals)] for rank in range(ranks)]


class DynamicLossScaler:
    """Of DeepSpeed, which is not installed here."""

    def __init__(self) -> None:
        self.cur_scale = 4096.0


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> DynamicLossScaler:
    name = 'deepspeed.runtime.fp16.loss_scaler'
    for end in range(1, 4):
        package = '.'.join(name.split('.')[:end])
        monkeypatch.setitem(sys.modules, package, types.ModuleType(package))
    module = types.ModuleType(name)
    module.DynamicLossScaler = DynamicLossScaler  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(DynamicLossScaler, '__module__', name)
    return DynamicLossScaler()


def save(folder: Path, trained, scaler: object, *, ranks: int, intervals: int = 1, form: str = 'elastic') -> None:
    """Writes what GPT-NeoX would have.

    ``elastic`` and ``rigid`` are DeeperSpeed's first version, ``flat`` is DeepSpeed since 0.7.
    """
    model, optimizer = trained
    folder.mkdir(parents=True, exist_ok=True)
    parameters = dict(model.named_parameters())
    names = neox_order(list(parameters))
    layers: dict[int, dict[str, Tensor]] = {}
    for name in names:
        layer, key = layer_of(name)
        layers.setdefault(layer, {})[key] = parameters[name].detach().half()
    for layer, tensors in layers.items():
        if 'attention.dense.weight' in tensors:
            tensors['attention.rotary_emb.inv_freq'] = torch.ones(2)
        torch.save(tensors, folder / f'layer_{layer:02d}-model_00-model_states.pt')
    plain = [name for name in names if name.endswith('bias') or 'norm' in name]
    groups = [[name for name in names if name not in plain], plain]
    pieces = {
        what: [flatten([of(parameters[name]) for name in group], ranks, intervals) for group in groups]
        for what, of in {
            'fp32': lambda parameter: parameter,
            'exp_avg': lambda parameter: optimizer.state[parameter]['exp_avg'],
            'exp_avg_sq': lambda parameter: optimizer.state[parameter]['exp_avg_sq'],
        }.items()
    }
    for rank in range(ranks):
        states = [
            [
                {'exp_avg': average, 'exp_avg_sq': square, **({} if form == 'flat' else {'step': STEPS})}
                for average, square in zip(
                    pieces['exp_avg'][group][rank], pieces['exp_avg_sq'][group][rank], strict=True
                )
            ]
            for group in (0, 1)
        ]
        weights = [pieces['fp32'][group][rank] for group in (0, 1)]
        state = {'loss_scaler': scaler, 'dynamic_loss_scale': True, 'overflow': False, 'zero_stage': 1}
        if form == 'flat':
            state |= {
                'single_partition_of_fp32_groups': [group[0] for group in weights],
                'partition_count': [ranks] * 2,
            }
            state |= {'base_optimizer_state': [group[0] for group in states], 'base_optimizer_state_step': STEPS}
        else:
            state['local_sub_partitions_of_fp32_groups'] = weights
            numbered = dict(enumerate(each for group in states for each in group))
            state['base_optimizer_state'] = states if form == 'elastic' else {'state': numbered, 'param_groups': []}
        torch.save({'optimizer_state_dict': state}, folder / f'zero_pp_rank_{rank}_mp_rank_00_optim_states.pt')
    (folder / '14M.yml').write_text(SETTINGS)


def read(folder: Path) -> NeoxCheckpoint:
    files = find_neox_files(folder)
    assert files is not None
    return read_neox_checkpoint(files)


@pytest.mark.parametrize(
    ('ranks', 'intervals', 'form'),
    [(1, 1, 'elastic'), (4, 1, 'elastic'), (3, 2, 'elastic'), (32, 1, 'elastic'), (3, 2, 'rigid'), (5, 1, 'flat')],
)
def test_weights_moments_and_steps_are_those_that_were_trained(tmp_path, trained, scaler, ranks, intervals, form):
    save(tmp_path, trained, scaler, ranks=ranks, intervals=intervals, form=form)
    found = read(tmp_path)
    assert (found.shape, found.gelu, found.step) == (SHAPE, 'tanh', STEPS)
    model, optimizer = trained
    for name, parameter in model.named_parameters():
        assert torch.equal(found.model[name], parameter)
        assert torch.equal(found.optimizer[f'{name}.exp_avg'], optimizer.state[parameter]['exp_avg'])
        assert torch.equal(found.optimizer[f'{name}.exp_avg_sq'], optimizer.state[parameter]['exp_avg_sq'])
        assert float(found.optimizer[f'{name}.step']) == STEPS
    assert len(found.optimizer) == 3 * len(found.model)


def test_the_folder_of_all_steps_is_read_at_the_newest(tmp_path, trained, scaler):
    save(tmp_path / 'global_step3', trained, scaler, ranks=2)
    (tmp_path / 'latest').write_text('global_step3')
    assert read(tmp_path).step == STEPS


def test_steps_come_from_the_counters_where_the_optimizer_does_not_keep_them(tmp_path, trained, scaler):
    save(tmp_path, trained, scaler, ranks=1)
    path = tmp_path / 'zero_pp_rank_0_mp_rank_00_optim_states.pt'
    content = torch.load(path, weights_only=False)
    for group in content['optimizer_state_dict']['base_optimizer_state']:
        for state in group:
            del state['step']
    torch.save(content, path)
    with pytest.raises(DamagedFile, match='how many steps'):
        read(tmp_path)
    counters = {
        'global_steps': 143,
        'skipped_steps': 2,
        'np_rng_state': np.random.default_rng(1).bytes(4),
        'at': np.ones(2),
    }
    torch.save(counters, tmp_path / 'mp_rank_00_model_states.pt')
    assert read(tmp_path).step == 141


def test_without_optimizer_state_the_weights_are_the_halves(tmp_path, trained, scaler):
    save(tmp_path, trained, scaler, ranks=2)
    for path in tmp_path.glob('zero_*'):
        path.unlink()
    found = read(tmp_path)
    assert found.optimizer == {}
    name, parameter = next(trained[0].named_parameters())
    assert torch.equal(found.model[name], parameter.half().float())


def test_a_known_size_needs_no_settings_and_another_does(tmp_path, trained, scaler):
    save(tmp_path, trained, scaler, ranks=1)
    (tmp_path / '14M.yml').unlink()
    with pytest.raises(UserError, match=r'32 wide with 2 blocks and 96 ids is none of pythia-14m'):
        read(tmp_path)


def test_optimizer_state_of_another_step_is_refused(tmp_path, trained, scaler):
    save(tmp_path, trained, scaler, ranks=2)
    path = tmp_path / 'layer_03-model_00-model_states.pt'
    layer = torch.load(path)
    layer['mlp.dense_4h_to_h.bias'] += 1
    torch.save(layer, path)
    with pytest.raises(DamagedFile, match=r'gpt_neox\.layers\.1\.mlp\.dense_4h_to_h\.bias.*of different steps'):
        read(tmp_path)


def test_moments_that_adamw_does_not_write_are_refused(tmp_path, trained, scaler):
    save(tmp_path, trained, scaler, ranks=1)
    path = tmp_path / 'zero_pp_rank_0_mp_rank_00_optim_states.pt'
    content = torch.load(path, weights_only=False)
    content['optimizer_state_dict']['base_optimizer_state'][1][0]['exp_avg_sq'][7] = -1.0
    torch.save(content, path)
    with pytest.raises(DamagedFile, match='`exp_avg_sq` has numbers from -1'):
        read(tmp_path)


def test_a_missing_rank_or_a_split_model_is_refused_by_name(tmp_path, trained, scaler):
    save(tmp_path, trained, scaler, ranks=3)
    (tmp_path / 'zero_pp_rank_1_mp_rank_00_optim_states.pt').rename(tmp_path / 'hidden')
    with pytest.raises(UserError, match='rank 1 is missing'):
        find_neox_files(tmp_path)
    (tmp_path / 'hidden').rename(tmp_path / 'zero_pp_rank_1_mp_rank_01_optim_states.pt')
    with pytest.raises(UserError, match='split over several GPUs'):
        find_neox_files(tmp_path)


def test_a_cut_off_rank_is_told_by_its_sum(tmp_path, trained, scaler):
    save(tmp_path, trained, scaler, ranks=2)
    shutil.copy(
        tmp_path / 'zero_pp_rank_0_mp_rank_00_optim_states.pt', tmp_path / 'zero_pp_rank_1_mp_rank_00_optim_states.pt'
    )
    with pytest.raises(DamagedFile, match='of different steps'):
        read(tmp_path)
    (tmp_path / 'zero_pp_rank_1_mp_rank_00_optim_states.pt').unlink()
    with pytest.raises(DamagedFile, match=r'numbers of `fp32` where .* belong'):
        read(tmp_path)


class Attack:
    def __reduce__(self):
        return os.mkdir, ('attacked',)


def test_nothing_that_a_file_names_is_run(tmp_path, trained, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / 'step', trained, Attack(), ranks=1)
    with pytest.raises(DamagedFile, match=r'no training program saves \(posix\.mkdir\)'):
        read(tmp_path / 'step')
    assert not Path('attacked').exists()


def test_a_folder_of_something_else_is_no_such_checkpoint(tmp_path):
    (tmp_path / 'model.safetensors').touch()
    assert find_neox_files(tmp_path) is None
