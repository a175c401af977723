"""How much memory training takes on one device: an estimate, by counting what the backward pass needs."""

from dataclasses import dataclass
from typing import Literal

from rewarm.config.shapes import ModelShape, count_parameters

STATE_BYTES_PER_PARAMETER = 16
"""fp32: weight, gradient and AdamW's two moments."""

LOGITS_CHUNK_BYTES = 400 * 2**20
"""The loss holds no more logits than this at once on a GPU (``rewarm_kernels.linear_cross_entropy``)."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one device while a microbatch is at its peak, between forward and backward.

    Args:
        states (int): Weights, gradients and moments.
        layer (int): What one layer keeps for its backward.
        activations (int): What all layers keep, and the weights as they are multiplied with (cast to bf16).
        loss (int): A chunk of logits and the gradients that are made with them.
    """

    states: int
    layer: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """All together; the allocator's reserve and the CUDA context (about 1 GB) come on top."""
        return self.states + self.activations + self.loss


def estimate_memory(
    shape: ModelShape, microbatch_size: int, seq_len: int, precision: Literal['bf16', 'fp32'], *, fused: bool
) -> Memory:
    """Counts the tensors that are kept; a test compares the count with what autograd saves.

    In numbers of the activations' precision, a token keeps in a layer of width D, with F features in its MLP:

    - with Triton kernels 7 D + F: the sum, two normed copies, packed query, key and value, attention's output; GELU's input;
    - in plain PyTorch 6 D + 2 F, and the sum in fp32: GELU's output too.

    Args:
        shape (ModelShape): The model.
        microbatch_size (int): Sequences that a device works on at once.
        seq_len (int): Tokens of a sequence.
        precision (Literal['bf16', 'fp32']): Of the activations.
        fused (bool): Whether Triton kernels run.

    Returns:
        Memory: The estimate.
    """
    rows, size = microbatch_size * seq_len, {'bf16': 2, 'fp32': 4}[precision]
    width, features, heads = shape.hidden_size, shape.intermediate_size, shape.num_attention_heads
    if fused:
        token = (7 * width + features) * size + 4 * heads + 8  # fp32: lse of each head, mean and deviation
    else:
        token = (6 * width + 2 * features) * size + 4 * width + 4 * heads + 16
    parameters = count_parameters(shape)
    casts = size * parameters if precision == 'bf16' else 0
    logits = min(LOGITS_CHUNK_BYTES, rows * shape.vocab_size * size) * (1 if fused else 3)  # probabilities beside them
    gradients = shape.vocab_size * width * 4 + rows * width * size
    layer = rows * token
    return Memory(
        STATE_BYTES_PER_PARAMETER * parameters, layer, shape.num_hidden_layers * layer + casts, logits + gradients
    )
