"""The plan's estimate of memory against the tensors that autograd keeps."""

import pytest
import torch

from rewarm.config.memory import estimate_memory
from rewarm.config.schema import KernelsConfig
from rewarm.config.shapes import ModelShape
from rewarm.model.attention_choice import choose_attention
from rewarm.model.ops import choose_ops
from rewarm.model.pythia import Pythia, init_weights

BATCH, TOKENS = 2, 65  # 130 rows: no weight has that shape


@pytest.mark.parametrize('precision', ['fp32', 'bf16'])
@pytest.mark.parametrize('fused', [False, True])
def test_a_layer_keeps_what_the_estimate_says(fused, precision):
    shapes = [ModelShape(128, layers, 4, 512, vocab_size=256) for layers in (2, 3)]
    two, three = (kept_bytes(shape, fused, precision) for shape in shapes)
    layer = estimate_memory(shapes[0], BATCH, TOKENS, precision, fused=fused).layer
    assert three - two == layer


def kept_bytes(shape: ModelShape, fused: bool, precision: str) -> int:
    """Bytes of the distinct buffers that the backward pass needs, weights and their casts left out."""
    choices = KernelsConfig(default='triton' if fused else 'torch').choices
    dtype = {'fp32': torch.float32, 'bf16': torch.bfloat16}[precision]
    ops = choose_ops(choices, 'cpu', choose_attention('auto', 'cpu', head_dim=32, dtype=dtype))
    model = Pythia(shape, gelu='tanh', compute_dtype=dtype, ops=ops)
    init_weights(model, seed=0)
    weights = {parameter.shape for parameter in model.parameters()}
    weights |= {shape[::-1] for shape in weights}
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = model.hidden(torch.zeros(BATCH, TOKENS, dtype=torch.int64))
    assert out.requires_grad
    return sum(kept.values())
