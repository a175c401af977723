"""Pythia: a decoder-only transformer of the GPT-NeoX family, all of it in this file.

    x = embed(ids)
    x = x + attention(norm_1(x)) + mlp(norm_2(x))      for each layer (parallel residual), or
    x = x + attention(norm_1(x)); x = x + mlp(norm_2(x))       without it
    logits = embed_out(norm(x))

Queries, keys and values come from one projection, viewed per head as ``[heads, 3 * head_dim]``; the first ``rotary_pct``
of each head's dimensions are rotated by position; every projection but the last has a bias; there is no dropout.

Parameters are fp32 and have the names of the Hugging Face checkpoints (``gpt_neox.layers.0.attention.dense.weight``);
activations are in ``compute_dtype``. The arithmetic is in :mod:`rewarm.model.ops`.

Shapes: B = batch, T = tokens, D = width, H = heads, K = head dimension, C = 3 K, V = vocabulary.

Source: Black et al. 2022, https://arxiv.org/abs/2204.06745; Biderman et al. 2023, https://arxiv.org/abs/2304.01373.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rewarm.config.shapes import ModelShape
from rewarm.model.ops import TORCH_OPS, Ops, rotary_tables

__all__ = ['Pythia', 'hf_name', 'init_weights', 'shape_problem']

_OLD_BUFFERS = re.compile(r'(^|\.)(attention\.(bias|masked_bias)|rotary_emb\.inv_freq)$')


class Pythia(nn.Module):
    """A GPT-NeoX language model.

    Its parameters are NaN until :func:`init_weights` or :meth:`load_state_dict` has set them.

    Args:
        shape (ModelShape): Sizes and the switches of the architecture.
        gelu (str): ``tanh``, what Pythia was trained with, or ``erf``, what ``transformers`` evaluates it with.
        compute_dtype (torch.dtype): Dtype of activations and matrix products; parameters stay fp32.
        ops (Ops): What :func:`rewarm.model.ops.choose_ops` chose.

    Raises:
        ValueError: If the shape asks for something that no Pythia has.
    """

    def __init__(
        self,
        shape: ModelShape,
        *,
        gelu: Literal['tanh', 'erf'],
        compute_dtype: torch.dtype = torch.float32,
        ops: Ops = TORCH_OPS,
    ) -> None:
        super().__init__()
        if (problem := shape_problem(shape)) is not None:
            raise ValueError(problem)
        self.shape = shape
        self.gelu = gelu
        self.compute_dtype = compute_dtype
        self.ops = ops
        self.gpt_neox = _Trunk(shape, gelu=gelu, ops=ops)
        self.embed_out = _Weights((shape.vocab_size, shape.hidden_size), bias=False)
        self.register_load_state_dict_pre_hook(_take_hf_names)

    def compile_layers(self) -> None:
        """Compiles the layers with ``torch.compile``: all have one graph, so it is compiled once (and once for the first)."""
        for layer in self.gpt_neox.layers:
            layer.compile(fullgraph=True)

    def hidden(self, input_ids_BT: Tensor) -> Tensor:
        """Runs the model up to and with the last LayerNorm.

        Args:
            input_ids_BT (Tensor): ``(B, T)``, int64.

        Returns:
            Tensor: ``(B, T, D)``, in ``compute_dtype``.
        """
        x_BTD = F.embedding(input_ids_BT, self.gpt_neox.embed_in.weight).to(self.compute_dtype)
        return self.gpt_neox(x_BTD)

    def forward(self, input_ids_BT: Tensor) -> Tensor:
        """Computes all logits; training uses :meth:`hidden` and a loss that never holds them all.

        Args:
            input_ids_BT (Tensor): ``(B, T)``, int64.

        Returns:
            Tensor: ``(B, T, V)``, in ``compute_dtype``.
        """
        return self.ops.linear(self.hidden(input_ids_BT), self.embed_out.weight)


class _Stream(NamedTuple):
    """The residual stream: its sum so far, and what the last layer computed and the next one adds while normalizing."""

    x_BTD: Tensor
    attention_BTD: Tensor | None = None
    mlp_BTD: Tensor | None = None
    attention_bias_D: Tensor | None = None
    mlp_bias_D: Tensor | None = None


class _Trunk(nn.Module):
    """Everything between the embedding's output and the vocabulary projection."""

    def __init__(self, shape: ModelShape, *, gelu: str, ops: Ops) -> None:
        super().__init__()
        self.shape = shape
        self.ops = ops
        self.embed_in = _Weights((shape.vocab_size, shape.hidden_size), bias=False)
        self.layers = nn.ModuleList(_Layer(shape, gelu=gelu, ops=ops) for _ in range(shape.num_hidden_layers))
        self.final_layer_norm = _Weights((shape.hidden_size,))

    def forward(self, x_BTD: Tensor) -> Tensor:
        head_dim = self.shape.hidden_size // self.shape.num_attention_heads
        rotary_dim = int(head_dim * self.shape.rotary_pct)
        cos_TR, sin_TR = rotary_tables(x_BTD.shape[1], rotary_dim, self.shape.rotary_emb_base, x_BTD.device)
        stream = _Stream(x_BTD)
        for layer in self.layers:
            stream = layer(stream, cos_TR, sin_TR)
        norm = self.final_layer_norm
        return self.ops.add_dual_layer_norm(*stream, norm.weight, norm.bias, eps=self.shape.layer_norm_eps)[1]


class _Layer(nn.Module):
    """One layer. Its results are added by the next, so that the sum, both biases and both norms are one pass."""

    def __init__(self, shape: ModelShape, *, gelu: str, ops: Ops) -> None:
        super().__init__()
        self.eps = shape.layer_norm_eps
        self.parallel = shape.use_parallel_residual
        self.ops = ops
        self.input_layernorm = _Weights((shape.hidden_size,))
        self.post_attention_layernorm = _Weights((shape.hidden_size,))
        self.attention = _Attention(shape, ops=ops)
        self.mlp = _MLP(shape, gelu=gelu, ops=ops)

    def forward(self, stream: _Stream, cos_TR: Tensor, sin_TR: Tensor) -> _Stream:
        norm_1, norm_2 = self.input_layernorm, self.post_attention_layernorm
        attention_bias_D, mlp_bias_D = self.attention.dense.bias, self.mlp.dense_4h_to_h.bias
        if self.parallel:
            x_BTD, y_1_BTD, y_2_BTD = self.ops.add_dual_layer_norm(
                *stream, norm_1.weight, norm_1.bias, norm_2.weight, norm_2.bias, eps=self.eps
            )
            attention_BTD = self.attention(y_1_BTD, cos_TR, sin_TR)
            return _Stream(x_BTD, attention_BTD, self.mlp(y_2_BTD), attention_bias_D, mlp_bias_D)
        x_BTD, y_BTD, _ = self.ops.add_dual_layer_norm(*stream, norm_1.weight, norm_1.bias, eps=self.eps)
        attended = _Stream(x_BTD, self.attention(y_BTD, cos_TR, sin_TR), attention_bias_D=attention_bias_D)
        x_BTD, y_BTD, _ = self.ops.add_dual_layer_norm(*attended, norm_2.weight, norm_2.bias, eps=self.eps)
        return _Stream(x_BTD, mlp_BTD=self.mlp(y_BTD), mlp_bias_D=mlp_bias_D)


class _Attention(nn.Module):
    """Attention and its output projection, without that projection's bias."""

    def __init__(self, shape: ModelShape, *, ops: Ops) -> None:
        super().__init__()
        width = shape.hidden_size
        self.num_heads = shape.num_attention_heads
        self.ops = ops
        self.query_key_value = _Weights((3 * width, width))
        self.dense = _Weights((width, width))

    def forward(self, y_BTD: Tensor, cos_TR: Tensor, sin_TR: Tensor) -> Tensor:
        qkv = self.query_key_value
        out_BTD = self.ops.qkv_attention(y_BTD, qkv.weight, qkv.bias, cos_TR, sin_TR, self.num_heads)
        return self.ops.linear(out_BTD, self.dense.weight)


class _MLP(nn.Module):
    """The MLP, without the bias of its second projection."""

    def __init__(self, shape: ModelShape, *, gelu: str, ops: Ops) -> None:
        super().__init__()
        self.approximate = {'tanh': 'tanh', 'erf': 'none'}[gelu]
        self.ops = ops
        self.dense_h_to_4h = _Weights((shape.intermediate_size, shape.hidden_size))
        self.dense_4h_to_h = _Weights((shape.hidden_size, shape.intermediate_size))

    def forward(self, y_BTD: Tensor) -> Tensor:
        up, down = self.dense_h_to_4h, self.dense_4h_to_h
        return self.ops.mlp(y_BTD, up.weight, up.bias, down.weight, self.approximate)


class _Weights(nn.Module):
    """A named weight with its bias; the operations are functions, this only gives the parameters their names."""

    bias: nn.Parameter  # absent where no bias is asked for

    def __init__(self, shape: tuple[int, ...], *, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full(shape, math.nan, dtype=torch.float32))
        if bias:
            self.bias = nn.Parameter(torch.full(shape[:1], math.nan, dtype=torch.float32))


def init_weights(model: Pythia, seed: int) -> None:
    """Sets a model's parameters to what GPT-NeoX starts Pythia from.

    LayerNorms are the identity, biases zero. The projections that write into the residual stream get ``wang_init``,
    N(0, 2 / (layers * sqrt(width))); everything else, both embeddings included, ``small_init``, N(0, sqrt(2 / (5 * width))).
    A parameter's values depend on the seed and its name alone, and are drawn on the CPU, so neither the number of
    processes nor the device nor the order of the parameters changes them.

    Args:
        model (Pythia): The model, on any device but ``meta``.
        seed (int): The run's seed.

    Source: small_init, Nguyen and Salazar 2019, https://arxiv.org/abs/1910.05895; wang_init, mesh-transformer-jax;
    both as in GPT-NeoX's ``init_functions.py`` and Pythia's ``410M/pythia-410m.yml``.
    """
    width, num_layers = model.shape.hidden_size, model.shape.num_hidden_layers
    small_std = math.sqrt(2 / (5 * width))
    wang_std = 2 / (num_layers * math.sqrt(width))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith('.bias'):
                parameter.zero_()
            elif parameter.ndim == 1:
                parameter.fill_(1.0)
            else:
                std = wang_std if name.endswith(('attention.dense.weight', 'mlp.dense_4h_to_h.weight')) else small_std
                digest = hashlib.sha256(f'{seed}/{name}'.encode()).digest()
                generator = torch.Generator('cpu').manual_seed(int.from_bytes(digest[:7], 'big'))
                parameter.copy_(torch.empty(parameter.shape).normal_(0.0, std, generator=generator))


def hf_name(key: str) -> str | None:
    """The name that a key of a Hugging Face state dict has here.

    Args:
        key (str): A key of any release's GPT-NeoX: ``transformers`` 5 says ``lm_head`` in memory for what every
            checkpoint file and version 4 call ``embed_out``.

    Returns:
        str | None: Our name, or ``None`` for the buffers of old releases (masks, rotary frequencies) that hold no weights.
    """
    if _OLD_BUFFERS.search(key):
        return None
    return re.sub(r'(^|\.)lm_head\.weight$', r'\1embed_out.weight', key)


def _take_hf_names(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
    for key in [key for key in state_dict if key.startswith(prefix)]:
        name = hf_name(key)
        if name is None:
            del state_dict[key]
        elif name != key:
            state_dict[name] = state_dict.pop(key)


def shape_problem(shape: ModelShape) -> str | None:
    """What a shape asks for that no Pythia has; ``None`` if it can be built."""
    head_dim = shape.hidden_size // shape.num_attention_heads
    if shape.tie_word_embeddings:
        return 'tied embeddings (`tie_word_embeddings`) are not supported: no Pythia has them'
    if shape.hidden_size % shape.num_attention_heads:
        return f'{shape.num_attention_heads} heads do not divide a width of {shape.hidden_size}'
    if int(head_dim * shape.rotary_pct) % 2:
        return f'rotary_pct {shape.rotary_pct} of a head of {head_dim} dimensions is not an even number of them'
    return None
