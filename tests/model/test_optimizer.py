"""AdamW: which parameters decay, what a step does by hand, and that the step is fused."""

import pytest
import torch

from rewarm.config.schema import ModelShape, OptimizerConfig
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights

SHAPE = ModelShape(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, vocab_size=40)


def new_model():
    model = Pythia(SHAPE, gelu='tanh')
    init_weights(model, seed=3)
    return model


def test_matrices_decay_and_layer_norms_and_biases_do_not():
    decaying, others = build_optimizer(new_model(), OptimizerConfig(), lr=1e-3).param_groups
    assert (decaying['weight_decay'], others['weight_decay']) == (0.1, 0.0)
    assert {'gpt_neox.embed_in.weight', 'embed_out.weight'} <= set(decaying['param_names'])
    assert len(decaying['param_names']) == 2 + 2 * 4
    assert len(others['param_names']) == 2 + 2 * 8
    assert all(name.endswith('.bias') or 'norm' in name for name in others['param_names'])
    assert not any(name.endswith('.bias') or 'norm' in name for name in decaying['param_names'])


def test_names_belong_to_the_parameters_beside_them_and_none_is_lost():
    model = new_model()
    groups = build_optimizer(model, OptimizerConfig(), lr=1e-3).param_groups
    named = {name: p for group in groups for name, p in zip(group['param_names'], group['params'], strict=True)}
    assert set(named) == set(dict(model.named_parameters()))
    assert all(named[name] is parameter for name, parameter in model.named_parameters())


def test_settings_arrive_and_the_step_is_fused():
    config = OptimizerConfig(betas=(0.8, 0.9), eps=1e-6, weight_decay=0.3)
    optimizer = build_optimizer(new_model(), config, lr=2e-4)
    assert type(optimizer) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group['lr'], group['betas'], group['eps'], group['fused']) == (2e-4, (0.8, 0.9), 1e-6, True)


def test_first_step_by_hand():
    # The first step of Adam is lr * sign(gradient) (up to eps); decay multiplies by 1 - lr * weight_decay before it.
    model = new_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)
    build_optimizer(model, OptimizerConfig(weight_decay=0.5), lr=0.01).step()
    for name, parameter in model.named_parameters():
        decay = 1 - 0.01 * 0.5 if parameter.ndim == 2 else 1
        expected = before[name] * decay - 0.01 * parameter.grad.sign()
        assert (parameter - expected).abs().max().item() == pytest.approx(0, abs=2e-5), name


def test_rate_zero_leaves_every_weight_as_it_is():
    model = new_model()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    build_optimizer(model, OptimizerConfig(), lr=0.0).step()
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
