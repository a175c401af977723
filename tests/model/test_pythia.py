"""The model against `transformers` on copied random weights: logits, loss and every gradient; initialization; sizes."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

from rewarm.config.shapes import MODEL_SHAPES, ModelShape, count_parameters
from rewarm.model.pythia import Pythia, init_weights

TINY = ModelShape(
    hidden_size=48,
    num_hidden_layers=2,
    num_attention_heads=3,  # heads of 16: neither the batch, nor the length, nor the number of layers
    intermediate_size=80,
    vocab_size=101,
    rotary_emb_base=5000.0,  # not transformers' default, so a base that is ignored shows
    layer_norm_eps=1e-4,
)


def hf_model(shape: ModelShape, gelu: str, seed: int = 0) -> GPTNeoXForCausalLM:
    """A `transformers` model with every parameter random, biases and LayerNorms included."""
    sizes = dataclasses.asdict(shape)
    act = {'tanh': 'gelu_pytorch_tanh', 'erf': 'gelu'}[gelu]
    config = GPTNeoXConfig(**sizes, hidden_act=act, bos_token_id=0, eos_token_id=0, attn_implementation='eager')
    model = GPTNeoXForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            around = 1.0 if parameter.ndim == 1 and parameter.mean() > 0.5 else 0.0
            parameter.copy_(around + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def copy_of(hf: GPTNeoXForCausalLM, shape: ModelShape, gelu: str, **kwargs) -> Pythia:
    model = Pythia(shape, gelu=gelu, **kwargs)
    model.load_state_dict(hf.state_dict())  # as it is, strictly
    return model


def logits_loss_gradients(model: torch.nn.Module, ids_BT: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    model.zero_grad()
    logits_BTV = model(ids_BT)
    logits_BTV = getattr(logits_BTV, 'logits', logits_BTV)
    loss = F.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())
    loss.backward()
    grads = {name.replace('lm_head', 'embed_out'): p.grad.clone() for name, p in model.named_parameters()}
    return logits_BTV.detach(), loss.detach(), grads


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()


@pytest.mark.parametrize('gelu', ['tanh', 'erf'])
@pytest.mark.parametrize('parallel', [True, False], ids=['parallel', 'sequential'])
@pytest.mark.parametrize('rotary_pct', [0.25, 0.5, 1.0])
@pytest.mark.parametrize('num_tokens', [1 + 1, 17, 33])
def test_logits_loss_and_every_gradient_equal_transformers(gelu, parallel, rotary_pct, num_tokens):
    # fp64 transformers is the truth, and its own fp32 error the yardstick: ours may be twice as far off, plus 1e-6.
    shape = dataclasses.replace(TINY, rotary_pct=rotary_pct, use_parallel_residual=parallel)
    hf = hf_model(shape, gelu)
    ours = copy_of(hf, shape, gelu)
    ids_BT = torch.randint(0, shape.vocab_size, (3, num_tokens), generator=torch.Generator().manual_seed(1))

    logits, loss, grads = logits_loss_gradients(ours, ids_BT)
    hf_logits, hf_loss, hf_grads = logits_loss_gradients(hf, ids_BT)
    true_logits, true_loss, true_grads = logits_loss_gradients(hf.double(), ids_BT)

    assert relative_error(logits, true_logits) <= 2 * relative_error(hf_logits, true_logits) + 1e-6
    assert relative_error(loss, true_loss) <= 2 * relative_error(hf_loss, true_loss) + 1e-6
    assert sorted(grads) == sorted(true_grads)
    scale = max(grad.norm() for grad in true_grads.values())
    for name, true_grad in true_grads.items():
        if true_grad.norm() < 1e-10 * scale:  # softmax does not see the keys' bias: this gradient is exactly zero
            continue
        ours_error, hf_error = relative_error(grads[name], true_grad), relative_error(hf_grads[name], true_grad)
        assert ours_error <= 2 * hf_error + 1e-6, name


def test_gelu_tanh_also_equals_transformers_gelu_new():
    hf = hf_model(TINY, 'tanh')
    config = GPTNeoXConfig(**dataclasses.asdict(TINY), hidden_act='gelu_new', attn_implementation='eager')
    other = GPTNeoXForCausalLM(config)
    other.load_state_dict(hf.state_dict())
    ids_BT = torch.arange(20)[None]
    torch.testing.assert_close(copy_of(hf, TINY, 'tanh')(ids_BT), other(ids_BT).logits, rtol=1e-5, atol=1e-5)


def test_the_two_gelus_differ():
    hf, ids_BT = hf_model(TINY, 'tanh'), torch.arange(20)[None]
    difference = (copy_of(hf, TINY, 'tanh')(ids_BT) - copy_of(hf, TINY, 'erf')(ids_BT)).abs().max()
    assert 1e-4 < difference < 1e-1


def test_parameter_names_and_order_are_those_of_transformers():
    hf_names = [name.replace('lm_head', 'embed_out') for name in hf_model(TINY, 'tanh').state_dict()]
    assert sorted(Pythia(TINY, gelu='tanh').state_dict()) == sorted(hf_names)


def test_state_dict_of_an_old_release_loads_without_its_buffers():
    state = copy_of(hf_model(TINY, 'tanh'), TINY, 'tanh').state_dict()
    old = dict(state) | {
        'gpt_neox.layers.0.attention.bias': torch.ones(1, 1, 8, 8, dtype=torch.bool),
        'gpt_neox.layers.0.attention.masked_bias': torch.tensor(-1e9),
        'gpt_neox.layers.0.attention.rotary_emb.inv_freq': torch.ones(2),
    }
    model = Pythia(TINY, gelu='tanh')
    model.load_state_dict(old)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert len(old) == len(state) + 3, "the dict that was passed in is the caller's"
    assert 'gpt_neox.layers.0.attention.dense.bias' in state


@pytest.mark.parametrize(('name', 'count'), [('pythia-410m', 405_334_016), ('pythia-14m', 14_067_712)])
def test_parameter_count(name, count):
    with torch.device('meta'):
        model = Pythia(MODEL_SHAPES[name], gelu='tanh')
    assert sum(parameter.numel() for parameter in model.parameters()) == count == count_parameters(MODEL_SHAPES[name])


def test_no_position_sees_a_later_token():
    model = copy_of(hf_model(TINY, 'tanh'), TINY, 'tanh')
    ids_BT = torch.arange(20)[None]
    changed_BT = ids_BT.clone()
    changed_BT[0, 12] = 99
    before, after = model(ids_BT), model(changed_BT)
    assert torch.equal(before[:, :12], after[:, :12])
    assert not torch.equal(before[:, 12:], after[:, 12:])


def test_bf16_compute_keeps_fp32_parameters_and_is_close():
    # The truth is fp64, the yardstick transformers in bf16 throughout: we must not be worse than it.
    hf = hf_model(TINY, 'tanh')
    ours = copy_of(hf, TINY, 'tanh', compute_dtype=torch.bfloat16)
    ids_BT = torch.randint(0, TINY.vocab_size, (3, 33), generator=torch.Generator().manual_seed(1))
    logits, loss, grads = logits_loss_gradients(ours, ids_BT)
    assert logits.dtype == torch.bfloat16
    assert {p.dtype for p in ours.parameters()} == {g.dtype for g in grads.values()} == {torch.float32}
    true_logits, true_loss, true_grads = logits_loss_gradients(hf.double(), ids_BT)
    hf_logits, _, hf_grads = logits_loss_gradients(hf.bfloat16(), ids_BT)
    assert relative_error(logits, true_logits) <= 1.5 * relative_error(hf_logits, true_logits)
    assert relative_error(loss, true_loss) < 5e-3
    worst = max(relative_error(grads[name], true_grads[name]) for name in grads)
    assert worst <= 1.5 * max(relative_error(hf_grads[name], true_grads[name]) for name in grads)


def test_parameters_are_nan_until_they_are_set():
    assert all(parameter.isnan().all() for parameter in Pythia(TINY, gelu='tanh').parameters())


class TestInitialization:
    """small_init and wang_init: hand-computed spreads, and values that are a function of seed and name alone."""

    shape = dataclasses.replace(
        TINY, hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=1024
    )

    def test_spreads(self):
        model = Pythia(self.shape, gelu='tanh')
        init_weights(model, seed=17)
        small, wang = math.sqrt(2 / (5 * 256)), 2 / (4 * 16)  # 0.0395 and 0.03125
        for name, parameter in model.named_parameters():
            if name.endswith('.bias'):
                assert not parameter.any(), name
            elif 'norm' in name:
                assert (parameter == 1).all(), name
            else:
                expected = wang if 'attention.dense.' in name or '4h_to_h' in name else small
                count = parameter.numel()
                assert parameter.std().item() == pytest.approx(expected, rel=4 / math.sqrt(2 * count)), name
                assert abs(parameter.mean().item()) < 4 * expected / math.sqrt(count), name

    def test_values_depend_on_seed_and_name_alone(self):
        first, again, other = (Pythia(self.shape, gelu='tanh') for _ in range(3))
        deeper = Pythia(dataclasses.replace(self.shape, num_hidden_layers=5), gelu='tanh')
        init_weights(first, seed=17)
        torch.manual_seed(99)  # the global generator plays no part
        torch.randn(5)
        init_weights(again, seed=17)
        init_weights(other, seed=18)
        init_weights(deeper, seed=17)
        for name, parameter in first.named_parameters():
            assert torch.equal(parameter, again.get_parameter(name)), name
            if parameter.ndim == 2:
                assert not torch.equal(parameter, other.get_parameter(name)), name
        name = 'gpt_neox.layers.3.attention.query_key_value.weight'
        assert torch.equal(first.get_parameter(name), deeper.get_parameter(name)), (
            'a later layer changes no earlier one'
        )
        layers = [first.get_parameter(f'gpt_neox.layers.{i}.mlp.dense_h_to_4h.weight') for i in range(4)]
        assert len({layer[0, 0].item() for layer in layers}) == 4


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'tie_word_embeddings': True}, 'tied'),
        ({'num_attention_heads': 5}, '5 heads do not divide'),
        ({'rotary_pct': 0.3125}, 'not an even number'),
    ],
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Pythia(dataclasses.replace(TINY, **change), gelu='tanh')
