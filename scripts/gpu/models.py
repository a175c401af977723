"""The models that are compared, the data they see, and one training step of any of them.

Ours: fp32 parameters, activations in bf16 (or fp32), the loss chunk by chunk. Hugging Face's: ``hf`` is bf16 throughout,
``hf-amp`` fp32 under bf16 autocast, with its own loss over all logits. All have the erf GELU, which is Hugging Face's, and
train with PyTorch's fused AdamW and clipping at norm 1.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from bench_cases import FULL, TINY, Sizes
from torch import Tensor, nn
from torch.nn import functional as F

from rewarm.config.shapes import ModelShape

__all__ = [
    'Trainee',
    'build',
    'flops_per_token',
    'hugging_face',
    'optimizer_for',
    'our_model',
    'set_weights',
    'shape_of',
    'sizes_of',
    'tokens',
    'train',
]

IGNORED = -100
SEED = 17


@dataclass
class Trainee:
    """A model with its loss.

    Args:
        model (nn.Module): Its parameters are what is trained.
        loss (Callable): ``(ids, labels) -> loss``, a scalar: the mean over the labels that count.
        description (str): What computes it, in words.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    description: str = ''


def sizes_of(dry: bool) -> Sizes:
    """Sizes of the model and of a batch: Pythia-410M's, or a dry run's."""
    return TINY if dry else FULL


def flops_per_token(sizes: Sizes) -> dict[str, float]:
    """Floating-point operations of forward and backward for a token, as three conventions count them.

    Args:
        sizes (Sizes): The model, and the length of a sequence.

    Returns:
        dict[str, float]: ``causal``, the work really done; ``palm``, with attention as if it were not causal; ``foundry``
        (LLM Foundry, Composer), which also counts the embedding, norms and biases. 2.423, 2.725 and 3.036 GF at 410M.
    """
    d, layers = sizes.width, sizes.layers
    products = 2 * (layers * (4 * d * d + 2 * d * sizes.mlp_width) + sizes.vocabulary * d)
    scores = 4 * layers * d * sizes.tokens
    parameters = sum(torch.Size(shape).numel() for shape in sizes.parameters)
    return {
        'causal': 3.0 * (products + scores / 2),
        'palm': 3.0 * (products + scores),
        'foundry': 6.0 * parameters + 3.0 * scores,
    }


def tokens(sizes: Sizes, batch: int, device: torch.device, seed: int = SEED) -> tuple[Tensor, Tensor]:
    """Sequences of a Markov chain, in which there is something to learn (1.06 nats a token remain).

    Args:
        sizes (Sizes): Length of a sequence, and vocabulary.
        batch (int): Sequences.
        device (torch.device): Where to put them.
        seed (int): Of the sequences; the chain is always the same.

    Returns:
        tuple[Tensor, Tensor]: ids and labels, ``(batch, T)`` int64: a label is the next id, and the last is none.
    """
    states = min(4096, sizes.vocabulary)
    successors = torch.randint(states, (states, 4), generator=torch.Generator().manual_seed(SEED))
    generator = torch.Generator().manual_seed(seed)
    shares = torch.tensor([0.6, 0.2, 0.15, 0.05])  # of a state's four successors
    picks = torch.multinomial(shares, sizes.tokens * batch, replacement=True, generator=generator).view(-1, batch)
    now, rows = torch.randint(states, (batch,), generator=generator), []
    for pick in picks:
        rows.append(now)
        now = successors[now, pick]
    ids = torch.stack(rows, dim=1).to(device)
    labels = F.pad(ids[:, 1:], (0, 1), value=IGNORED)
    return ids, labels


def build(way: str, sizes: Sizes, device: torch.device) -> Trainee:
    """A model by its name, with weights that do not depend on which it is.

    Args:
        way (str): ``triton``, ``torch``, ``hf`` or ``hf-amp``; compiled with ``-compiled``, or, layer by layer, with
            ``-compiled-layers``. Ours are always compiled layer by layer: nothing but the embedding is outside.
        sizes (Sizes): The model's.
        device (torch.device): Where.

    Returns:
        Trainee: The model, on its device.
    """
    name, _, compiled = way.partition('-compiled')
    backend = 'inductor' if device.type == 'cuda' else 'aot_eager'
    is_compiled = '-compiled' in way
    if name in ('hf', 'hf-amp'):
        trainee = hugging_face(sizes, device, torch.bfloat16 if name == 'hf' else torch.float32, amp=name == 'hf-amp')
        set_weights(trainee.model)
        body: Any = trainee.model
        for part in [] if not is_compiled else body.gpt_neox.layers if compiled else [body]:
            part.compile(dynamic=False, backend=backend)
        return trainee
    trainee = our_model(name, sizes, device, torch.bfloat16)
    set_weights(trainee.model)
    ours: Any = trainee.model
    if is_compiled and device.type == 'cuda':
        ours.compile_layers()
    elif is_compiled:
        for layer in ours.gpt_neox.layers:
            layer.compile(fullgraph=True, backend=backend)
    return trainee


def hugging_face(sizes: Sizes, device: torch.device, dtype: torch.dtype, *, amp: bool = False) -> Trainee:
    """GPT-NeoX of ``transformers``, with its own loss."""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    config_class: Any = GPTNeoXConfig  # whose keywords depend on the release
    config = config_class(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_width,
        max_position_embeddings=sizes.tokens,
        rotary_pct=sizes.rotary / sizes.head_dim,
        hidden_act='gelu',
        use_parallel_residual=True,
        tie_word_embeddings=False,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        attn_implementation='sdpa',
    )
    with torch.device(device):
        model: Any = GPTNeoXForCausalLM(config)
    model.to(dtype).train()

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        # It takes the ids as labels and shifts them itself.
        with torch.autocast(device.type, dtype=torch.bfloat16) if amp else nullcontext():
            return model(input_ids=ids, labels=ids, use_cache=False).loss

    return Trainee(model, loss, f'transformers, {"fp32 under bf16 autocast" if amp else dtype}, sdpa')


def our_model(kernels: str, sizes: Sizes, device: torch.device, dtype: torch.dtype) -> Trainee:
    """Our GPT-NeoX; its weights are NaN until they are set.

    Args:
        kernels (str): ``triton`` or ``torch``.
        sizes (Sizes): The model's.
        device (torch.device): Where.
        dtype (torch.dtype): Of activations and products.

    Returns:
        Trainee: The model.
    """
    from rewarm.model.attention_choice import choose_attention
    from rewarm.model.ops import FUSED_OPS, choose_ops
    from rewarm.model.pythia import Pythia

    attention = choose_attention(
        'auto',
        device,
        head_dim=sizes.head_dim,
        dtype=dtype,
        num_sequences=sizes.batch,
        num_heads=sizes.heads,
        num_tokens=sizes.tokens,
    )
    ops = choose_ops(dict.fromkeys(FUSED_OPS, kernels), device, attention)
    with torch.device(device):
        model = Pythia(shape_of(sizes), gelu='erf', compute_dtype=dtype, ops=ops)

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        hidden = model.hidden(ids).flatten(0, 1)
        total, counted = ops.linear_cross_entropy(
            hidden, model.embed_out.weight, labels.flatten(), ignore_index=IGNORED
        )
        return (total / counted).float()

    return Trainee(model, loss, f'{ops.description}. Attention: {attention.description}')


def shape_of(sizes: Sizes) -> ModelShape:
    """The same sizes under the names of ``rewarm.config``."""
    return ModelShape(
        hidden_size=sizes.width,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        intermediate_size=sizes.mlp_width,
        vocab_size=sizes.vocabulary,
        rotary_pct=sizes.rotary / sizes.head_dim,
        max_position_embeddings=sizes.tokens,
    )


def set_weights(model: nn.Module) -> None:
    """Sets a model's weights, drawn where it is, in the order of its parameters: N(0, 0.02), norms the identity."""
    parameters = list(model.named_parameters())
    generator = torch.Generator(parameters[0][1].device).manual_seed(SEED)
    with torch.no_grad():
        for name, parameter in parameters:
            if parameter.ndim > 1:
                parameter.normal_(std=0.02, generator=generator)
            else:
                parameter.fill_(1.0 if 'norm' in name and name.endswith('weight') else 0.0)


def optimizer_for(model: nn.Module, lr: float = 3e-4) -> torch.optim.Optimizer:
    """PyTorch's fused AdamW; matrices decay, vectors do not."""
    groups = [
        {'params': [p for p in model.parameters() if p.ndim > 1], 'weight_decay': 0.1},
        {'params': [p for p in model.parameters() if p.ndim <= 1], 'weight_decay': 0.0},
    ]
    return torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)


def train(trainee: Trainee, optimizer: torch.optim.Optimizer, ids: Tensor, labels: Tensor, microbatch: int) -> Tensor:
    """One step: forward and backward of each microbatch, clipping, the optimizer; never waits for the device.

    Args:
        trainee (Trainee): The model.
        optimizer (torch.optim.Optimizer): Its optimizer.
        ids (Tensor): ``(batch, T)``.
        labels (Tensor): ``(batch, T)``, as many that count in each row.
        microbatch (int): Rows at a time.

    Returns:
        Tensor: The loss before the step, on the device.
    """
    losses = []
    for some_ids, some_labels in zip(ids.split(microbatch), labels.split(microbatch), strict=True):
        loss = trainee.loss(some_ids, some_labels) * (len(some_ids) / len(ids))
        loss.backward()
        losses.append(loss.detach())
    torch.nn.utils.clip_grad_norm_(trainee.model.parameters(), 1.0, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.stack(losses).sum()
