"""rotary and its in-place and packing forms against the definition in fp64, and what every operator promises."""

import importlib

import pytest
import torch
from rewarm_kernels.rotary import pack_qkv_grad, rotary, rotary_ref, rotate_
from torch.utils.checkpoint import checkpoint

from tests.kernels.yardstick import DTYPES, assert_bit_equal, check, compare, error, outputs_and_grads

module = importlib.import_module('rewarm_kernels.rotary')  # in the package the name is the function's

# (B, T, H, K, R). Interpreted, a program has 64 tokens in bf16 and 32 in fp32 (in place: 4,096 queries and keys), and the
# packing 2 programs.
CASES = [
    (2, 70, 16, 64, 8),  # the model's heads; two steps and more, a sequence ends within a block of tokens
    (1, 7, 3, 32, 4),  # heads that are no power of two
    (2, 5, 2, 80, 10),  # Pythia-2.8b: neither K nor R a power of two
    (2, 3, 2, 16, 8),  # all dimensions rotated
    (1, 1, 1, 8, 1),  # sizes of one, which Triton makes constants
    (3, 130, 20, 8, 2),  # two chunks of a sequence in place, the second not full
]
BATCH = (32, 2048, 16, 64, 8)


def make_inputs(B, T, H, K, R):
    angles = torch.rand(T, R) * 6.3
    return {'qkv': torch.randn(B, T, H, 3, K), 'cos': angles.cos(), 'sin': angles.sin()}


def run(function, inputs, dtype=torch.float32):
    """Output and gradient with qkv of a dtype."""
    dtypes = {'qkv': dtype, 'cos': torch.float32, 'sin': torch.float32}
    return outputs_and_grads(function, inputs, dtypes, differentiate=['qkv'])


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('case', CASES)
def test_output_and_gradient(case, dtype):
    check(rotary, rotary_ref, make_inputs(*case), dtype, activations=['qkv'])


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('case', CASES)
def test_in_place_it_is_the_same_and_touches_nothing_else(case, dtype):
    R = case[-1]
    inputs = make_inputs(*case)
    qkv = inputs['qkv'].to(dtype)
    turned = rotate_(qkv.clone(), inputs['cos'], inputs['sin'])
    assert torch.equal(turned[..., 2, :], qkv[..., 2, :])
    assert torch.equal(turned[..., 2 * R :], qkv[..., 2 * R :])
    truth, theirs = (rotary_ref(**{**inputs, 'qkv': qkv.to(like)}) for like in (torch.float64, dtype))
    compare({'qkv': turned}, {'qkv': theirs}, {'qkv': truth}, dtype)


def packed_grads(case, dtype):
    """Random gradients of the rotated tensor, and what autograd makes of them through the definition."""
    inputs = make_inputs(*case)
    upstream = inputs['qkv'].to(dtype)

    def through_definition(like):
        leaf = torch.zeros(upstream.shape, dtype=like, requires_grad=True)
        tables = (inputs[name].to(torch.promote_types(like, torch.float32)) for name in ('cos', 'sin'))
        rotary_ref(leaf, *tables).backward(upstream.to(like))
        wide = leaf.grad.to(torch.promote_types(like, torch.float32))
        return {'dqkv': leaf.grad, 'dbias': wide.sum((0, 1)).flatten()}

    return upstream, inputs['cos'], inputs['sin'], through_definition(dtype), through_definition(torch.float64)


LAYOUTS = {
    'packed': lambda part: part,  # (B, T, H, 3, K) in memory
    'heads first': lambda part: part.contiguous(),  # (B, H, T, K)
    'tokens first': lambda part: part.transpose(1, 2).contiguous().transpose(1, 2),  # (B, T, H, K)
    'dimensions first': lambda part: part.mT.contiguous().mT,  # (B, H, K, T)
}


@pytest.mark.parametrize('dtype', DTYPES)
@pytest.mark.parametrize('case', CASES)
def test_packed_gradient_and_gradient_of_the_bias(case, dtype):
    upstream, cos, sin, theirs, truth = packed_grads(case, dtype)
    parts = (part.transpose(1, 2) for part in upstream.unbind(3))
    dqkv, dbias = pack_qkv_grad(*(layout(part) for layout, part in zip(LAYOUTS.values(), parts)), cos, sin)
    assert dbias.dtype == torch.float32
    compare({'dqkv': dqkv, 'dbias': dbias}, theirs, truth, dtype)


def test_the_gradient_of_the_bias_is_summed_before_the_others_are_rounded():
    upstream, cos, sin, _, truth = packed_grads(CASES[1], torch.bfloat16)
    _, dbias = pack_qkv_grad(*(part.transpose(1, 2) for part in upstream.unbind(3)), cos, sin)
    assert error(dbias, truth['dbias']) < 1e-6


@pytest.mark.gpu
def test_a_whole_batch():
    check(rotary, rotary_ref, make_inputs(*BATCH), torch.bfloat16, activations=['qkv'])
    upstream, cos, sin, theirs, truth = packed_grads(BATCH, torch.bfloat16)
    parts = [part.transpose(1, 2) for part in upstream.unbind(3)]
    for layout in LAYOUTS.values():
        dqkv, dbias = pack_qkv_grad(*(layout(part) for part in parts), cos, sin)
        compare({'dqkv': dqkv, 'dbias': dbias}, theirs, truth, torch.bfloat16)
    theirs, truth = (rotary_ref(upstream.to(like), cos, sin) for like in (torch.bfloat16, torch.float64))
    compare({'qkv': rotate_(upstream, cos, sin)}, {'qkv': theirs}, {'qkv': truth}, torch.bfloat16)


@pytest.mark.parametrize('layout', LAYOUTS.values(), ids=LAYOUTS.keys())
def test_the_layout_of_the_gradients_does_not_matter(layout):
    inputs = make_inputs(2, 9, 2, 16, 4)
    parts = [part.transpose(1, 2) for part in inputs['qkv'].unbind(3)]
    plain, moved = (pack_qkv_grad(*map(to, parts), inputs['cos'], inputs['sin']) for to in (LAYOUTS['packed'], layout))
    assert torch.equal(plain[0], moved[0])
    assert torch.equal(plain[1], moved[1])


def test_any_layout_of_the_input_and_the_upstream_gradient():
    def strided(function):
        return lambda qkv, cos, sin: function(qkv.permute(2, 1, 4, 3, 0), cos.mT.contiguous().mT, sin).transpose(0, 1)

    inputs = {**make_inputs(1, 6, 2, 8, 2), 'qkv': torch.randn(8, 6, 2, 3, 2)}
    check(strided(rotary), strided(rotary_ref), inputs, torch.float32, activations=['qkv'])
    grads = []
    for function in (rotary, rotary_ref):
        leaf = inputs['qkv'].permute(2, 1, 4, 3, 0).contiguous().requires_grad_()
        function(leaf, inputs['cos'], inputs['sin']).sum().backward()  # an upstream gradient of strides 0
        grads.append(leaf.grad)
    torch.testing.assert_close(*grads)


def test_the_gradient_of_a_gradient():
    """A rotation is linear, and so is its way back: the operator is its own derivative, the other way round."""
    inputs = make_inputs(1, 5, 2, 16, 4)
    found = []
    for function in (rotary, rotary_ref):
        qkv = inputs['qkv'].clone().requires_grad_()
        (grad,) = torch.autograd.grad(function(qkv, inputs['cos'], inputs['sin']).pow(3).sum(), qkv, create_graph=True)
        found.append(torch.autograd.grad(grad.pow(2).sum(), qkv)[0])
    torch.testing.assert_close(*found)


def test_there_and_back_is_where_it_was():
    inputs = make_inputs(2, 5, 3, 16, 8)
    there = module._rotary(*inputs.values(), False)
    torch.testing.assert_close(module._rotary(there, inputs['cos'], inputs['sin'], True), inputs['qkv'])


@pytest.mark.parametrize('empty', [(0, 5, 2, 16, 4), (2, 0, 2, 16, 4)])
def test_an_empty_batch(empty):
    inputs = make_inputs(*empty)
    found = run(rotary, inputs)
    assert found['out0'].shape == found['dqkv'].shape == inputs['qkv'].shape
    assert rotate_(*inputs.values()).numel() == 0
    parts = (part.transpose(1, 2) for part in inputs['qkv'].unbind(3))
    dqkv, dbias = pack_qkv_grad(*parts, inputs['cos'], inputs['sin'])
    assert dqkv.shape == inputs['qkv'].shape
    assert torch.equal(dbias, torch.zeros(2 * 3 * 16))


@pytest.mark.parametrize('bad', [float('nan'), float('inf')])
def test_a_bad_number_spoils_its_pair_alone(bad):
    inputs = make_inputs(2, 40, 3, 16, 4)
    inputs['qkv'][1, 17, 2, 0, 1] = bad  # paired with dimension 5
    inputs['qkv'][0, 3, 1, 1, 9] = bad  # not rotated
    inputs['qkv'][0, 4, 1, 2, 0] = bad  # a value
    bad_places = torch.zeros_like(inputs['qkv'], dtype=torch.bool)
    bad_places[1, 17, 2, 0, [1, 5]] = bad_places[0, 3, 1, 1, 9] = bad_places[0, 4, 1, 2, 0] = True
    for out in (rotary(**inputs), rotate_(inputs['qkv'].clone(), inputs['cos'], inputs['sin'])):
        assert torch.equal(~out.isfinite(), bad_places)


def test_two_runs_are_equal_bit_for_bit():
    inputs = make_inputs(2, 70, 4, 16, 4)
    assert_bit_equal(*(run(rotary, inputs, torch.bfloat16) for _ in range(2)))
    parts = [part.transpose(1, 2) for part in inputs['qkv'].bfloat16().unbind(3)]
    first, second = (pack_qkv_grad(*parts, inputs['cos'], inputs['sin']) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


def test_compiled_or_recomputed_in_a_checkpoint_it_is_the_same():
    def checkpointed(**inputs):
        return checkpoint(lambda: rotary(**inputs), use_reentrant=False)

    inputs = make_inputs(2, 5, 2, 16, 4)
    plain = run(rotary, inputs, torch.bfloat16)
    assert_bit_equal(plain, run(checkpointed, inputs, torch.bfloat16))
    compiled = torch.compile(rotary, fullgraph=True, backend='aot_eager')
    assert_bit_equal(plain, run(compiled, inputs, torch.bfloat16))


@pytest.mark.parametrize('is_inverse', [False, True])
def test_the_operator_is_registered_correctly(is_inverse):
    inputs = make_inputs(2, 5, 2, 16, 4)
    inputs['qkv'].requires_grad_()
    torch.library.opcheck(module._rotary, (*inputs.values(), is_inverse))


@pytest.mark.parametrize(
    ('name', 'value', 'match'),
    [
        ('qkv', torch.zeros(2, 5, 6, 16), r'qkv is \(2, 5, 6, 16\): it must be \(B, T, H, 3, K\)'),
        ('sin', torch.zeros(5, 3), r'cos is \(5, 4\) and sin is \(5, 3\): the shapes must be equal'),
        (
            'qkv',
            torch.zeros(2, 6, 2, 3, 16),
            r'cos is \(5, 4\) and qkv is \(2, 6, 2, 3, 16\): it must be \(T, R\), T = 6',
        ),
        (
            'qkv',
            torch.zeros(2, 5, 2, 3, 6),
            r'cos is \(5, 4\) and qkv is .*: it rotates 8 dimensions of a head that has 6',
        ),
    ],
)
def test_wrong_shapes_are_refused(name, value, match):
    inputs = {**make_inputs(2, 5, 2, 16, 4), name: value}
    for function in (rotary, rotate_):
        with pytest.raises(ValueError, match=match):
            function(**inputs)


def test_only_a_contiguous_buffer_is_rotated_in_place():
    inputs = make_inputs(2, 5, 2, 16, 4)
    with pytest.raises(ValueError, match=r'qkv of strides \(.*\) is not contiguous'):
        rotate_(inputs['qkv'].transpose(0, 1).contiguous().transpose(0, 1), inputs['cos'], inputs['sin'])


def test_it_exports():
    class Module(torch.nn.Module):
        def forward(self, qkv, cos, sin):
            return rotary(qkv, cos, sin)

    values = tuple(make_inputs(2, 5, 2, 16, 4).values())
    assert torch.equal(torch.export.export(Module(), values).module()(*values), rotary(*values))
