"""The model made of Triton kernels against transformers, against the model of definitions, and compiled."""

import dataclasses

import pytest
import torch
from rewarm_kernels.launch import INTERPRETED
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rewarm.config.schema import KernelsConfig
from rewarm.config.shapes import ModelShape
from rewarm.model.attention_choice import choose_attention
from rewarm.model.composer_model import PythiaForTraining
from rewarm.model.ops import Ops, choose_ops
from rewarm.model.pythia import Pythia, init_weights
from tests.kernels.interpreter import correct

SHAPE = ModelShape(64, 2, 2, 160, vocab_size=101, rotary_pct=0.5)
DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'

pytestmark = pytest.mark.skipif(not INTERPRETED and DEVICE == 'cpu', reason='no GPU, and kernels are not interpreted')


@pytest.fixture(scope='module', autouse=True)
def corrected_interpreter():
    correct()


def ops(kernels: str, dtype: torch.dtype, shape: ModelShape = SHAPE) -> Ops:
    head_dim = shape.hidden_size // shape.num_attention_heads
    return choose_ops(
        KernelsConfig(default=kernels).choices, DEVICE, choose_attention('math', DEVICE, head_dim=head_dim, dtype=dtype)
    )


def batch_of(shape: ModelShape, num_sequences: int, num_tokens: int, seed: int) -> dict[str, torch.Tensor]:
    ids = torch.randint(
        shape.vocab_size, (num_sequences, num_tokens + 1), generator=torch.Generator().manual_seed(seed)
    )
    ids = ids.to(DEVICE)
    return {'input_ids': ids[:, :-1], 'labels': ids[:, 1:]}


def loss_and_grads(model, batch) -> dict[str, torch.Tensor]:
    if isinstance(model, Pythia):
        wrapped = PythiaForTraining(model)
        loss = wrapped.loss(wrapped.forward(batch), batch)
    else:
        logits = model(batch['input_ids']).logits
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)), batch['labels'].flatten()
        )
    model.zero_grad()
    loss.backward()
    grads = {name.replace('lm_head', 'embed_out'): p.grad.double() for name, p in model.named_parameters()}
    return {'loss': loss.detach().double(), **grads}


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('parallel', [True, False], ids=['parallel', 'sequential'])
@pytest.mark.parametrize('gelu', ['tanh', 'erf'])
def test_loss_and_every_gradient_equal_transformers(gelu, parallel, dtype):
    # transformers in fp64 is the truth and in the same dtype the yardstick: twice its error, plus 1e-6 or 1e-3 for bf16.
    shape = dataclasses.replace(SHAPE, use_parallel_residual=parallel)
    act = {'tanh': 'gelu_pytorch_tanh', 'erf': 'gelu'}[gelu]
    torch.manual_seed(0)
    config = GPTNeoXConfig(**dataclasses.asdict(shape), hidden_act=act, attn_implementation='eager')
    hf = GPTNeoXForCausalLM(config).to(DEVICE)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter)).copy_(parameter.to(dtype))
    ours = Pythia(shape, gelu=gelu, compute_dtype=dtype, ops=ops('triton', dtype, shape)).to(DEVICE)
    ours.load_state_dict(hf.state_dict())
    batch = batch_of(shape, 3, 17, seed=1)
    got, truth, same = (
        loss_and_grads(ours, batch),
        loss_and_grads(hf.double(), batch),
        loss_and_grads(hf.to(dtype), batch),
    )
    floor = 1e-6 if dtype == torch.float32 else 1e-3
    largest = max(value.norm() for value in truth.values())
    for name, want in truth.items():
        if want.norm() < 1e-10 * largest:  # softmax does not see the keys' bias: this gradient is exactly zero
            continue
        errors = [((each[name] - want).norm() / want.norm()).item() for each in (got, same)]
        assert errors[0] <= 2 * errors[1] + floor, f'{name}: {errors}'


@pytest.mark.slow
@pytest.mark.proof('200 steps')
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_200_steps_with_kernels_give_the_losses_of_200_steps_without(dtype):
    # In bf16 the yardstick is rounding itself: how far the definitions in bf16 are from the definitions in fp32.
    shape = ModelShape(32, 1, 2, 64, vocab_size=53, rotary_pct=0.5)
    plain = losses_of_training(shape, 'torch', dtype)
    bound = 1e-4
    if dtype == torch.bfloat16:
        bound += 2 * largest_difference(plain, losses_of_training(shape, 'torch', torch.float32))
    assert bound < 0.2
    assert plain[0] - plain[-1] > 1, 'nothing was learned'
    assert largest_difference(losses_of_training(shape, 'triton', dtype), plain) < bound


def largest_difference(first: list[float], second: list[float]) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


def losses_of_training(shape: ModelShape, kernels: str, dtype: torch.dtype, num_steps: int = 200) -> list[float]:
    model = Pythia(shape, gelu='tanh', compute_dtype=dtype, ops=ops(kernels, dtype, shape)).to(DEVICE)
    init_weights(model, seed=0)
    wrapped = PythiaForTraining(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.95), weight_decay=0.1)
    losses = []
    for step in range(num_steps):
        batch = batch_of(shape, 4, 16, seed=step % 8)  # eight batches again and again: they are learned by heart
        loss = wrapped.loss(wrapped.forward(batch), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.slow
@pytest.mark.parametrize('kernels', ['torch', 'triton'])
def test_compiled_layers_give_the_loss_and_gradients_of_eager_ones(kernels):
    batch = batch_of(SHAPE, 2, 9, seed=2)
    results = []
    for compiled in (False, True):
        model = Pythia(SHAPE, gelu='tanh', ops=ops(kernels, torch.float32)).to(DEVICE)
        init_weights(model, seed=0)
        names = list(model.state_dict())
        if compiled:
            model.compile_layers()
        results.append(loss_and_grads(model, batch))
        assert list(model.state_dict()) == names
    for name, want in results[0].items():
        torch.testing.assert_close(results[1][name], want, rtol=1e-4, atol=1e-6)
