"""The training wrapper: mean loss, exact microbatching in a real Trainer, metrics for any number of ranks, FLOPs."""

import dataclasses

import pytest
import torch
from composer import DataSpec, Evaluator, Trainer
from torch.nn import functional as F

from rewarm.config.schema import MODEL_SHAPES, ModelShape, OptimizerConfig
from rewarm.model.composer_model import PythiaForTraining
from rewarm.model.optimizer import build_optimizer
from rewarm.model.pythia import Pythia, init_weights

SHAPE = ModelShape(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=300)
NUM_TOKENS = 12


def new_model(**kwargs):
    pythia = Pythia(SHAPE, gelu='tanh', **kwargs)
    init_weights(pythia, seed=17)
    return PythiaForTraining(pythia)


def make_batch(num_samples, ignored=0, seed=0):
    """A batch; the last `ignored` positions of every sample are no targets."""
    tokens = torch.randint(0, 300, (num_samples, NUM_TOKENS + 1), generator=torch.Generator().manual_seed(seed))
    labels = tokens[:, 1:].clone()
    labels[:, NUM_TOKENS - ignored :] = -100
    return {'input_ids': tokens[:, :-1], 'labels': labels, 'sample_ids': torch.arange(num_samples)}


def plain_loss(model, batch):
    """The same loss by full logits and PyTorch's own function."""
    return F.cross_entropy(model.pythia(batch['input_ids']).flatten(0, 1).float(), batch['labels'].flatten())


@pytest.mark.parametrize('ignored', [0, 1, 5])
def test_loss_and_gradients_are_those_of_full_logits(ignored):
    model, batch = new_model(), make_batch(4, ignored)
    loss = model.loss(model(batch), batch)
    grads = torch.autograd.grad(loss, list(model.parameters()))
    expected = plain_loss(model, batch)
    expected_grads = torch.autograd.grad(expected, list(model.parameters()))
    assert loss.dtype == torch.float32
    assert loss.shape == ()
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    for got, want in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_a_batch_without_targets_has_loss_zero_and_no_gradient():
    model, batch = new_model(), make_batch(2, ignored=NUM_TOKENS)
    loss = model.loss(model(batch), batch)
    loss.backward()
    assert loss == 0
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_no_train_metrics_and_no_second_pass():
    model, batch = new_model(), make_batch(2)
    outputs = model(batch)
    assert model.get_metrics(is_train=True) == {}
    assert model.eval_forward(batch, outputs) is outputs


def test_state_dict_of_the_raw_model_keeps_the_names_of_hugging_face():
    model = new_model()
    assert 'gpt_neox.layers.1.mlp.dense_4h_to_h.weight' in model.pythia.state_dict()
    assert {f'pythia.{name}' for name in model.pythia.state_dict()} == set(model.state_dict())


@pytest.mark.parametrize('num_cuts', [1, 2, 5])
def test_metrics_do_not_depend_on_how_the_set_is_cut(num_cuts):
    model = new_model()
    whole = make_batch(10)
    whole['labels'][7:, 3:] = -100  # samples with fewer targets, and one with none (padding)
    whole['labels'][9] = -100
    metrics = model.get_metrics(is_train=False)
    with torch.no_grad():
        for part in range(num_cuts):
            batch = {name: tensor[part::num_cuts] for name, tensor in whole.items()}
            outputs = model.eval_forward(batch)
            for metric in metrics.values():
                model.update_metric(batch, outputs, metric)
        expected = plain_loss(model, whole)
    assert metrics['targets'].compute() == 7 * 12 + 2 * 3
    assert metrics['loss'].compute().dtype == torch.float64
    assert metrics['loss'].compute().item() == pytest.approx(expected.item(), rel=1e-6)


def train(microbatch, batches, evaluator=None, optimizer=None, **model_kwargs):
    model = new_model(**model_kwargs)
    optimizer = optimizer or (lambda pythia: build_optimizer(pythia, OptimizerConfig(), lr=1e-3))
    spec = DataSpec(
        batches,
        get_num_samples_in_batch=lambda batch: len(batch['input_ids']),
        get_num_tokens_in_batch=lambda batch: batch['input_ids'].numel(),
    )
    trainer = Trainer(
        model=model,
        optimizers=optimizer(model.pythia),
        train_dataloader=spec,
        device_train_microbatch_size=microbatch,
        eval_dataloader=evaluator,
        max_duration=f'{len(batches)}ba',
        precision='fp32',
        device='cpu',
        schedulers=None,
        progress_bar=False,
        seed=1,
    )
    trainer.fit()
    trainer.close()
    return model, trainer


@pytest.mark.parametrize('ignored', [0, 1])  # our shards; LLM Foundry's
def test_microbatches_of_a_trainer_give_the_step_of_the_whole_batch(ignored):
    # Plain descent: AdamW would blow the rounding of gradients that are zero in truth (the keys' bias) up to whole steps.
    def descent(pythia):
        return torch.optim.SGD(pythia.parameters(), lr=1.0)

    batches = [make_batch(8, ignored, seed) for seed in range(3)]
    whole, _ = train(8, batches, optimizer=descent)
    unequal, _ = train(3, batches, optimizer=descent)  # 3 + 3 + 2
    for name, parameter in whole.pythia.named_parameters():
        torch.testing.assert_close(parameter, unequal.pythia.get_parameter(name), rtol=1e-4, atol=2e-6, msg=name)

    bare = new_model()
    optimizer = descent(bare.pythia)
    for batch in batches:
        optimizer.zero_grad()
        plain_loss(bare, batch).backward()
        optimizer.step()
    for name, parameter in whole.pythia.named_parameters():
        torch.testing.assert_close(parameter, bare.pythia.get_parameter(name), rtol=1e-4, atol=2e-6, msg=name)


def test_trainer_evaluates_a_labelled_set_by_these_metrics():
    sets = [make_batch(4, seed=7), make_batch(3, seed=8)]
    spec = DataSpec(
        sets,
        get_num_samples_in_batch=lambda batch: len(batch['input_ids']),
        get_num_tokens_in_batch=lambda batch: batch['input_ids'].numel(),
    )
    model, trainer = train(
        4, [make_batch(4)], Evaluator(label='old', dataloader=spec, eval_interval='1ba', device_eval_microbatch_size=2)
    )
    metrics = trainer.state.eval_metrics['old']
    expected = sum(plain_loss(model, batch).item() * batch['labels'].numel() for batch in sets) / (7 * NUM_TOKENS)
    assert metrics['loss'].compute().item() == pytest.approx(expected, rel=1e-6)
    assert metrics['targets'].compute() == 7 * NUM_TOKENS


def test_bf16_trains_with_fp32_parameters_and_moments():
    model, trainer = train(4, [make_batch(8, seed=seed) for seed in range(2)], compute_dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    state = trainer.state.optimizers[0].state
    assert {entry['exp_avg'].dtype for entry in state.values()} == {torch.float32}


@pytest.mark.parametrize(('num_samples', 'gigaflops'), [(1, 2.727 * 2048), (3, 2.727 * 3 * 2048)])
def test_flops_of_a_batch_follow_the_full_convention(num_samples, gigaflops):
    with torch.device('meta'):
        model = PythiaForTraining(Pythia(MODEL_SHAPES['pythia-410m'], gelu='tanh'))
        batch = {'input_ids': torch.zeros(num_samples, 2048, dtype=torch.int64)}
    assert model.flops_per_batch(batch) / 1e9 == pytest.approx(gigaflops, rel=2e-4)


def test_loss_falls_when_a_batch_is_learned_by_heart():
    batch = make_batch(4)
    model, _ = train(4, [batch] * 40)
    assert plain_loss(model, batch) < 0.5 * plain_loss(new_model(), batch)
    assert dataclasses.asdict(model.pythia.shape) == dataclasses.asdict(SHAPE)
